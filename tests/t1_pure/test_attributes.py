# SPDX-License-Identifier: GPL-2.0-only
"""Owners and modes are those of now, also where inotify watches run out.

Plain directories serve as cgroupfs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a user namespace, which has a limit of its own.
_RUNS_OUT = """
import sys
from pathlib import Path
from cgstatfs.attributes import Attributes
from cgstatfs.hierarchy import Hierarchy

top = Path(sys.argv[1])
Path("/proc/sys/user/max_inotify_watches").write_text("1")
hierarchy = Hierarchy(top)
hierarchy.scan()
attributes = Attributes(hierarchy, lambda _: None)

def mode(*names):
    status, noticed = attributes.get(hierarchy.resolve(list(names)))
    return oct(status.st_mode & 0o777), noticed

(top / "a").chmod(0o750)
print(*mode(b"other", b"below"))
print(*mode(b"a"))
(top / "a").chmod(0o700)
# Nothing says so: it is asked for each time.
print(*mode(b"a"))
(top / "a").chmod(0o711)
(top / "other" / "below").rmdir()
(top / "other").rmdir()
hierarchy.scan()
print(*mode(b"a"))
(top / "a").chmod(0o755)
attributes.drain()
print(*mode(b"a"))
"""


def test_watches_run_out_and_come_back(tmp_path: Path) -> None:
    for name in ("a", "other/below"):
        (tmp_path / name).mkdir(parents=True)
    alone = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", _RUNS_OUT, tmp_path], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "0o755 True", "0o750 False", "0o700 False", "0o711 True", "0o755 True",
    ], done.stderr  # fmt: skip
