"""The table of ``dkm_accuracy``: means and spreads over the seeds, and whether the aim is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.lib.output import seconds
from benchmarks.lib.row import PROJECT
from benchmarks.lib.sensitivity_table import spread

COLUMNS = ("bits", "method", "seeds", "accuracy %", "loss, held out", "below float", "time")
AIM_BITS = 2
AIM_POINTS = 1.0
"""How many percentage points DKM at ``AIM_BITS`` may lose at most, on average."""

Row = dict[str, Any]


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line for each method and tool, by bits; those of the float network first.

    ``rows``: those without failures. ``below float``: in percentage points of accuracy, of the mean
    below the network as it was trained; a dash where that was not measured.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        tool = row["tool"] if row["bits"] else ""
        groups.setdefault((row["bits"] or 0, row["method"], tool), []).append(row)
    trained = accuracy_of_float(rows)
    return [
        (
            str(bits) if bits else "-",
            f"{method} {tool}".strip(),
            str(len(group)),
            spread([100 * row["accuracy"] for row in group]),
            spread([row["loss"] for row in group]),
            "-" if trained is None else f"{points_below(group, trained):.2f}",
            seconds(statistics.fmean(row["seconds"] for row in group)),
        )
        for (bits, method, tool), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def accuracy_of_float(rows: Sequence[Row]) -> float | None:
    """Of the network as it was trained; None where it is not among the rows."""
    return next((row["accuracy"] for row in rows if row["method"] == "float"), None)


def points_below(rows: Sequence[Row], accuracy: float) -> float:
    """By how many percentage points the mean accuracy of ``rows`` is below ``accuracy``."""
    return 100 * (accuracy - statistics.fmean(row["accuracy"] for row in rows))


def missed(rows: Sequence[Row]) -> str | None:
    """What is wrong where our DKM at ``AIM_BITS`` bits loses more than ``AIM_POINTS``; else None.

    None also where either was not measured.
    """
    trained = accuracy_of_float(rows)
    ours = [
        row
        for row in rows
        if (row["tool"], row["method"], row["bits"]) == (PROJECT, "DKM", AIM_BITS)
    ]
    if trained is None or not ours or points_below(ours, trained) <= AIM_POINTS:
        return None
    return (
        f"DKM at {AIM_BITS} bits is {points_below(ours, trained):.2f} percentage points below the "
        f"float network; the aim is at most {AIM_POINTS:g}"
    )
