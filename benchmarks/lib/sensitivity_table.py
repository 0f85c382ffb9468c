"""The table of ``torch_sensitivity``: means and spreads over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.lib.output import number

COLUMNS = ("bits", "method", "seeds", "loss, held out", "below k-means", "loss, calibration")

Row = dict[str, Any]


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line for each method and tool, by bits; that of the float network first, and once.

    ``rows``: those of one model, without failures. The last cell is the further measure.
    """
    lines: list[tuple[str, ...]] = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["bits"] or 0, row["method"], row["tool"] if row["bits"] else "")
        groups.setdefault(key, []).append(row)
    for (bits, method, tool), group in sorted(groups.items(), key=lambda item: item[0][0]):
        own = list({row["seed"]: row for row in group}.values())  # float comes from both tools
        lines.append(
            (
                str(bits) if bits else "-",
                f"{method} {tool}".strip(),
                str(len(own)),
                spread([row["loss"] for row in own]),
                wins(own, groups.get((bits, "k-means", tool), [])) if method == "SKM" else "-",
                spread([row["calibration_loss"] for row in own]),
                spread([row["measure"] for row in own]),
            )
        )
    return lines


def wins(rows: Iterable[Row], plain: Iterable[Row]) -> str:
    """In how many of the seeds both have the held-out loss is below that of plain k-means."""
    bounds = {row["seed"]: row["loss"] for row in plain}
    shared = [row for row in rows if row["seed"] in bounds]
    return f"{sum(row['loss'] < bounds[row['seed']] for row in shared)}/{len(shared)}"


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of the sample where the values are not all the same."""
    mean = number(statistics.fmean(values))
    if len(set(values)) < 2:
        return mean
    return f"{mean} ± {number(statistics.stdev(values), 2)}"
