# SPDX-License-Identifier: GPL-2.0-only
"""What pyproject.toml cannot say: that a wheel has everything which `make` puts into the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def _missing() -> list[str]:
    """What would not be in the wheel, and should be."""
    package = Path("cgstatfs")
    wanted = [
        *(package / "objects" / f"{path.stem}.o" for path in Path("bpf").glob("*.bpf.c")),
        *(package / "include" / path.name for path in Path("bpf").glob("*.h")),
        *(package / "templates" / path.name for path in Path("bpf/templates").iterdir()),
    ]
    return sorted(str(path) for path in wanted if not path.exists())


class BuildPackage(build_py):
    """An editable install may come before the objects, as it runs where they will be."""

    def run(self) -> None:
        if not self.editable_mode and (missing := _missing()):
            raise SystemExit(
                f"cgstatfs: {', '.join(missing)}: not built, and no wheel is of use without; "
                "run `make wheel`, which compiles what is missing"
            )
        super().run()


setup(cmdclass={"build_py": BuildPackage})
