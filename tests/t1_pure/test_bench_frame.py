# SPDX-License-Identifier: GPL-2.0-only
"""What the bench makes of its samples."""

from __future__ import annotations

import json
from pathlib import Path

from bench.frame import Figure, Table, Target, difference, ratio, take_turns
from bench.report import Results


def figure(*samples: float) -> Figure:
    return Figure(samples)


def test_subjects_take_turns_and_each_is_first_at_times() -> None:
    order = []

    def subject(name: str, value: float):
        return lambda: order.append(name) or value

    figures = take_turns({"a": subject("a", 1), "b": subject("b", 2)}, 3)
    assert "".join(order) == "abbaab"
    assert figures == {"a": figure(1, 1, 1), "b": figure(2, 2, 2)}


def test_ratios_are_of_the_same_round() -> None:
    """A round that was slow for both does not count."""
    one, other = figure(2, 200, 2), figure(1, 100, 1)
    assert ratio(one, other).median == 2
    assert ratio(one, other).quartiles == (2, 2)
    assert difference(one, other) == figure(1, 100, 1)


def test_verdicts() -> None:
    assert Target("", figure(1, 1, 1), 1).verdict == "met"
    assert Target("", figure(2, 2, 2), 1).verdict == "missed"
    assert Target("", figure(0.5, 0.9, 1.5), 1).verdict == "met?"
    assert Target("", figure(0.5, 1.1, 1.5), 1).verdict == "missed?"
    assert Target("", None, 1).verdict == "no figure"


def test_alarms() -> None:
    """Above the bound is a target that was missed; far above it is an alarm."""
    results = Results(quick=True)
    targets = [
        Target("near", figure(2.0), 1, 3), Target("far", figure(3.5), 1, 3),
        Target("never", figure(99.0), 1), Target("none", None, 1, 3),
    ]  # fmt: skip
    results.add("case", Table("title", "us", targets=targets))
    assert results.alarms() == ["case: far: 3.50, more than 3"]


def test_of_several_the_least_is_compared_with() -> None:
    table = Table("title", "us", {"ours": figure(3), "a": figure(2), "b": figure(1)})
    table.target("text", "ours", ("a", "b", "missing"), 1)
    table.target("text", "ours", "missing", 1)
    assert [t.value for t in table.targets] == [figure(3), None]


def test_tables_from_guests_are_the_same() -> None:
    table = Table("title", "us", {"a": figure(1, 2)}, [Target("t", figure(1.5), 1), Target("u", None, 1)])
    table.lines = {"n=1": {0: "a"}}
    assert Table.from_json(table.to_json()) == table


def test_results_are_written(tmp_path: Path) -> None:
    results = Results(quick=False)
    table = Table("title", "us", {"a": figure(1, 2, 3)})
    table.target("text", "a", "a", 1)
    results.add("case", table)
    results.failed["other"] = "reason"
    results.write_json(tmp_path / "results.json")
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["cases"][0]["figures"]["a"]["median"] == 2
    assert read["cases"][0]["targets"][0]["verdict"] == "met"
    assert read["failed"] == {"other": "reason"}
