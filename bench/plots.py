# SPDX-License-Identifier: GPL-2.0-only
"""Tables as pictures: bars of medians with their quartiles, or lines over a number."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

from .frame import Figure, Table

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

__all__ = ("write",)

_OURS, _THEIRS = "#1f6fb4", "#9aa5ad"


def _errors(figures: list[Figure]) -> list[list[float]]:
    quartiles = [figure.quartiles for figure in figures]
    return [
        [max(0.0, f.median - low) for f, (low, _) in zip(figures, quartiles, strict=True)],
        [max(0.0, high - f.median) for f, (_, high) in zip(figures, quartiles, strict=True)],
    ]


def _bars(axes: pyplot.Axes, table: Table) -> None:
    names, figures = list(table.figures), list(table.figures.values())
    colors = [_OURS if name.startswith("cgstatfs") else _THEIRS for name in names]
    axes.barh(
        names, [figure.median for figure in figures], xerr=_errors(figures), color=colors, capsize=2
    )
    axes.invert_yaxis()
    axes.set_xlabel(table.unit)
    positive = [figure.median for figure in figures if figure.median > 0]
    if positive and max(positive) > 50 * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive))


def _lines(axes: pyplot.Axes, table: Table) -> None:
    for name, points in table.lines.items():
        figures = [table.figures[figure] for figure in points.values()]
        axes.errorbar(
            list(points), [figure.median for figure in figures], yerr=_errors(figures),
            marker="o", markersize=3, capsize=2, label=name,
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_xlabel(table.axis)
    axes.set_ylabel(table.unit)
    axes.legend(fontsize="small")


def write(tables: list[tuple[str, Table]], directory: Path) -> None:
    """One file a table."""
    for case, table in tables:
        if not table.figures:
            continue
        height = 4.5 if table.lines else 1.2 + 0.28 * len(table.figures)
        figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
        (_lines if table.lines else _bars)(axes, table)
        axes.set_title(table.title, fontsize="medium")
        name = re.sub(r"[^a-z0-9]+", "-", f"{case} {table.title}".lower()).strip("-")[:80].strip("-")
        figure.savefig(directory / f"{name}.png", dpi=100)
        pyplot.close(figure)
