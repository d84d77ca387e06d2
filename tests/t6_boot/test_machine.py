# SPDX-License-Identifier: GPL-2.0-only
"""The machines themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ..vm.boot import Machine


def test_a_machine_boots_reboots_and_powers_off(
    bare_machine: Callable[..., AbstractContextManager[Machine]], release: str
) -> None:
    with bare_machine(files={"/etc/example": "of the host's\n"}) as machine:
        assert f"VERSION_CODENAME={release}\n" in machine.check("cat /etc/os-release")
        assert machine.check("cat /etc/example") == "of the host's\n"
        assert machine.failed_units() == []
        machine.check("echo written >/var/written")
        assert machine.run("exit 3").status == 3
        machine.reboot()
        assert machine.check("cat /var/written") == "written\n"
        end = machine.shutdown()
        assert end.clean, end.trouble
        print(f"{release}: boots in {machine.boot_seconds:.0f} s, ends in {end.seconds:.0f} s")
