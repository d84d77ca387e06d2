# SPDX-License-Identifier: GPL-2.0-only
"""Kernel headers for the kernel that runs here, where it came without any.

They are those of a guest's kernel. bcc collectors do not mind, as long as they
do not look into the kernel's structs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .kernels import fetch

__all__ = ("provided",)

_KERNEL = "6.12"


@contextmanager
def provided() -> Iterator[None]:
    """Have `build` and `source` in /lib/modules lead to headers, meanwhile.

    What is there already is left as it is. In a guest that is what its kernel
    brought, see `kernels.fetch`.

    :raises KernelError: there is nowhere to get them from
    """
    modules = Path("/lib/modules", os.uname().release)
    with ExitStack() as stack:
        if not (modules / "build").exists():
            headers = fetch(_KERNEL).modules_path
            for directory in (modules.parent, modules):
                if not directory.exists():
                    directory.mkdir()
                    stack.callback(directory.rmdir)
            for name in ("build", "source"):
                link = modules / name
                # One that leads nowhere serves nobody.
                link.unlink(missing_ok=True)
                link.symlink_to((headers / name).resolve())
                stack.callback(link.unlink)
        yield
