# SPDX-License-Identifier: GPL-2.0-only
"""What a case is made of: subjects that take turns, figures with their spread, targets.

On a machine that does other things too, no time means anything by itself. So the subjects of a
table take turns, round by round, and a ratio is the median of the ratios within each round: what
slowed a round slowed both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

__all__ = ("Figure", "Missing", "Table", "Target", "difference", "ratio", "take_turns")


class Missing(Exception):
    """Something that is to be measured is not to be had here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """What was measured, once a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one: half of all samples are between them."""
        if len(self.samples) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def ratio(one: Figure, other: Figure) -> Figure:
    """How many times the other, round by round."""
    return Figure(tuple(a / b for a, b in zip(one.samples, other.samples, strict=True)))


def difference(one: Figure, other: Figure) -> Figure:
    """How much more than the other, round by round."""
    return Figure(tuple(a - b for a, b in zip(one.samples, other.samples, strict=True)))


def take_turns(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Figure]:
    """Measure each subject once a round; each round begins with another one.

    :param subjects: by name, what gives one sample
    """
    names = list(subjects)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(subjects[name]())
    return {name: Figure(tuple(values)) for name, values in samples.items()}


@dataclass(frozen=True)
class Target:
    """Something to be reached.

    :param value: what was; None: it could not be measured, and *text* or a note says why
    :param bound: what it may be at most
    :param alarm: `bench-quick` fails above it: so far above what is usual that noise does not
        get there. None: it never fails
    """

    text: str
    value: Figure | None
    bound: float
    alarm: float | None = None

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or ``no figure``; with a ``?`` where the quartiles disagree."""
        if self.value is None:
            return "no figure"
        low, high = self.value.quartiles
        doubt = "?" if low <= self.bound < high else ""
        return ("met" if self.value.median <= self.bound else "missed") + doubt

    @property
    def alarmed(self) -> bool:
        return self.alarm is not None and self.value is not None and self.value.median > self.alarm


@dataclass
class Table:
    """The figures of one case, or a part of it.

    :param unit: of all figures: of a number to each
    :param lines: for the plot, where figures follow a number: names of figures by that number, by
        the name of the line
    :param axis: what that number is
    """

    title: str
    unit: str
    figures: dict[str, Figure] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: dict[str, dict[float, str]] = field(default_factory=dict)
    axis: str = ""

    def to_json(self) -> str:
        """For :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Table:
        """As it was measured elsewhere."""
        read = json.loads(text)

        def figure(value: dict | None) -> Figure | None:
            return value and Figure(tuple(value["samples"]))

        read["figures"] = {name: figure(value) for name, value in read["figures"].items()}
        read["targets"] = [Target(**each | {"value": figure(each["value"])}) for each in read["targets"]]
        read["lines"] = {
            name: {float(at): figure for at, figure in points.items()}
            for name, points in read["lines"].items()
        }
        return cls(**read)

    def target(
        self, text: str, one: str, others: str | Iterable[str], bound: float, alarm: float | None = None
    ) -> None:
        """Have a figure be at most so many times another; of several, of the least one there is."""
        wanted = [others] if isinstance(others, str) else others
        there = [self.figures[name] for name in wanted if name in self.figures]
        value = None
        if one in self.figures and there:
            value = ratio(self.figures[one], min(there, key=lambda figure: figure.median))
        self.targets.append(Target(text, value, bound, alarm))
