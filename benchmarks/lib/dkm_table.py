"""The table of ``torch_dkm``, and what of it counts as a failure."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.dkm_rows import FIRST_GOAL, LATER_GOAL, SAVED_LIMIT
from benchmarks.lib.job_table import times
from benchmarks.lib.output import megabytes, number, seconds
from benchmarks.lib.row import PROJECT, REFERENCE

COLUMNS = (
    "row",
    "who",
    "first",
    "faster",
    "later",
    "lowest..highest",
    "faster",
    "plain",
    "DKM",
    "ns/weight",
    "peak MB",
    "saved B/weight",
)

Line = dict[str, Any]


def compare(lines: dict[str, Line]) -> None:
    """Put into each line what follows from it, and into ours how many times faster it is."""
    for line in lines.values():
        if "error" not in line:
            step, plain = line["later"]["median_wall_s"], line["plain"]["median_wall_s"]
            line["dkm_share"] = max(0.0, 1 - plain / step)
            line["ns_a_weight"] = max(0.0, step - plain) / line["weights"] * 1e9
    ours, theirs = lines.get(PROJECT, {}), lines.get(REFERENCE, {})
    if "first" in ours and "first" in theirs:
        for which in ("first", "later"):
            ratio = theirs[which]["median_wall_s"] / ours[which]["median_wall_s"]
            ours[f"{which}_times_faster"] = ratio


def exceeded(line: Line) -> str | None:
    """What a line of ours may not do: save more than ``SAVED_LIMIT`` bytes a weight."""
    saved = line.get("saved_bytes_a_weight")
    if saved is None or saved <= SAVED_LIMIT:
        return None
    return f"{saved:.2f} bytes a weight saved for the backward pass; the limit is {SAVED_LIMIT:g}"


def table_line(name: str, who: str, line: Line) -> tuple[str, ...]:
    """The cells of a line; ``failed`` and dashes where it failed."""
    if "error" in line:
        return (name, who, "failed", *["-"] * (len(COLUMNS) - 3))
    later = line["later"]
    lowest, highest = later["spread_wall_s"]
    return (
        name,
        who,
        seconds(line["first"]["median_wall_s"]),
        times(line.get("first_times_faster")),
        seconds(later["median_wall_s"]),
        f"{seconds(lowest)}..{seconds(highest)}",
        times(line.get("later_times_faster")),
        seconds(line["plain"]["median_wall_s"]),
        f"{line['dkm_share']:.0%}",
        number(line["ns_a_weight"], 3),
        megabytes(line["memory"]["peak_above_imports_bytes"]),
        f"{line['saved_bytes_a_weight']:.2f}",
    )


def goals() -> str:
    return (
        f"Goals beside coremltools: the first step {FIRST_GOAL}x faster, later steps "
        f"{LATER_GOAL}x; at most {SAVED_LIMIT:g} bytes a weight saved."
    )
