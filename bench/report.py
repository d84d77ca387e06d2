# SPDX-License-Identifier: GPL-2.0-only
"""Results as text, and as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .frame import Figure, Table, Target

__all__ = ("Results", "machine")

_REPOSITORY = Path(__file__).parent.parent


def _commit() -> str:
    """Of what is measured; empty outside of a repository."""
    done = subprocess.run(
        ["git", "-C", _REPOSITORY, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def machine() -> dict[str, str]:
    """Where and when this is, and what is measured."""
    system = os.uname()
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    virtual = flags is not None and "hypervisor" in flags[1].split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cpus ({model[1] if model else system.machine}), "
        f"{memory:.0f} GiB{', virtual' if virtual else ''}",
        "kernel": f"Linux {system.release}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}"


def _spread(figure: Figure) -> str:
    low, high = figure.quartiles
    return f"{_number(low)} .. {_number(high)}" if len(figure.samples) > 1 else ""


def _rows(table: Table) -> Iterator[str]:
    for name, figure in table.figures.items():
        yield f"  {name:58} {_number(figure.median):>10}   {_spread(figure)}"


def _row_of_target(target: Target) -> str:
    value, spread = "-", ""
    if target.value:
        value, spread = _number(target.value.median), _spread(target.value)
    bound = f"<= {_number(target.bound)}"
    return f"  > {target.text:56} {value:>10}   {spread:24} {bound:>10}  {target.verdict}"


class Results:
    """All tables, in the order they were measured, by their case."""

    def __init__(self, quick: bool) -> None:
        self.about = machine()
        self.quick = quick
        self.tables: list[tuple[str, Table]] = []
        self.failed: dict[str, str] = {}

    def add(self, case: str, table: Table) -> None:
        self.tables.append((case, table))

    def heading(self) -> str:
        return "\n".join(f"{key}: {value}" for key, value in self.about.items())

    @staticmethod
    def text(table: Table) -> str:
        """A table with its targets."""
        lines = [f"\n{table.title}", f"  {table.unit:58} {'median':>10}   quartiles", *_rows(table)]
        lines += map(_row_of_target, table.targets)
        lines += [f"  note: {note}" for note in table.notes]
        return "\n".join(lines)

    def summary(self) -> str:
        """The targets alone."""
        lines = ["", f"{'target':60} {'reached':>10} {'bound':>10}  verdict"]
        for case, table in self.tables:
            for target in table.targets:
                value = _number(target.value.median) if target.value else "-"
                text = f"{case}: {target.text}"
                lines.append(f"{text:60} {value:>10} {_number(target.bound):>10}  {target.verdict}")
        lines += [f"{case}: FAILED: {reason}" for case, reason in self.failed.items()]
        return "\n".join(lines)

    def markdown(self) -> str:
        """What the README has: when and where, and the targets."""
        about = self.about
        lines = [
            f"{about['date']}, commit {about['commit']}; {about['machine']}, {about['kernel']}, load "
            f"{about['load before']} before.", "",
            "| case | of what | target | reached | bound | verdict |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for case, table in self.tables:
            for target in table.targets:
                value = _number(target.value.median) if target.value else "-"
                bound = _number(target.bound)
                cells = (case, table.title, target.text, value, bound, target.verdict)
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def alarms(self) -> list[str]:
        """What got worse than noise can make it."""
        return [
            f"{case}: {target.text}: {target.value.median:.2f}, more than {target.alarm:g}"
            for case, table in self.tables for target in table.targets
            if target.alarmed and target.value
        ]  # fmt: skip

    def write_json(self, path: Path) -> None:
        cases = [
            {
                "case": case, "title": table.title, "unit": table.unit, "notes": table.notes,
                "figures": {
                    name: {"median": f.median, "quartiles": f.quartiles, "samples": f.samples}
                    for name, f in table.figures.items()
                },
                "targets": [
                    {"text": t.text, "reached": t.value and t.value.median,
                     "quartiles": t.value and t.value.quartiles,
                     "bound": t.bound, "verdict": t.verdict}
                    for t in table.targets
                ],
            }
            for case, table in self.tables
        ]  # fmt: skip
        about = self.about | {"quick": self.quick}
        text = json.dumps(about | {"failed": self.failed, "cases": cases}, indent=1)
        path.write_text(text + "\n")
