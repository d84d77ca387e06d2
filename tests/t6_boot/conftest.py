# SPDX-License-Identifier: GPL-2.0-only
"""Which machines to boot. A test boots its own, or a module has one for all; one runs at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from ..conftest import BUILD
from ..vm import boot, images


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """They take longer than all other tests do, so they have to be asked for."""
    return None if config.getoption("--release") else True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.config.getoption("--release")
    if wanted not in ("all", *images.RELEASES):
        raise pytest.UsageError(f"--release {wanted}: there are {', '.join(images.RELEASES)}")
    # trixie, as what is newest has most to say.
    releases = reversed(images.RELEASES) if wanted == "all" else [wanted]
    metafunc.parametrize("release", list(releases), scope="session")


def _unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def bare_machine(release: str) -> Callable[..., AbstractContextManager[boot.Machine]]:
    """Boots a machine of the release."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = [each for each in boot.PROGRAMS if not shutil.which(each, path=path)]
    if os.geteuid():
        _unavailable("not root, so no image can be made")
    if missing:
        _unavailable(f"{', '.join(missing)}: not installed, so no machine can be booted")
    try:
        images.fetch(release)
    except images.KernelError as error:
        _unavailable(f"no image of {release}: {error}")
    return partial(boot.machine, release)


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of this tree, as `make deb` has left it."""
    found = sorted((BUILD / "deb").glob("cgstatfs_*.deb"))
    if not found:
        _unavailable(f"{BUILD / 'deb'}: no package; make deb builds it")
    return found[-1]


@pytest.fixture(scope="session")
def machine(
    bare_machine: Callable[..., AbstractContextManager[boot.Machine]], package: Path
) -> Callable[..., AbstractContextManager[boot.Machine]]:
    """Boots one that has the package installed, and nothing of it enabled."""
    return partial(bare_machine, packages=[package])
