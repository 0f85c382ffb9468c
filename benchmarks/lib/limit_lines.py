"""Which line is the limit of which, whether their outputs agree, and our time over the limit's."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib.row import LIMIT, PROJECT, Row

Line = dict[str, Any]


def check_limits(row: Row, lines: dict[str, Line]) -> None:
    """Put ``error`` into a limit whose weight file is not, byte for byte, that of our line.

    Only where weights are palettized: the limit does all of the work then, or fails.
    """
    for name, ours, limit in _pairs(row, lines):
        if row.action != "palettize" or "output" not in ours or "output" not in limit:
            continue
        one, other = (_weight_files(Path(line["output"])) for line in (ours, limit))
        same = one.keys() == other.keys() and all(
            filecmp.cmp(one[inner], other[inner], shallow=False) for inner in one
        )
        if not same:
            limit["error"] = f"the weight file of the limit differs from that of {name}"


def add_times_over_limit(row: Row, lines: dict[str, Line]) -> None:
    """``times_over_limit`` of our lines: the median wall time over that of the line's limit."""
    for _, ours, limit in _pairs(row, lines):
        if "error" not in limit and "median_wall_s" in ours and "median_wall_s" in limit:
            ours["times_over_limit"] = ours["median_wall_s"] / limit["median_wall_s"]


def _pairs(row: Row, lines: dict[str, Line]) -> Iterator[tuple[str, Line, Line]]:
    """The name and the line of each of ours, with its limit: that of the same configuration."""
    limits = [variant for variant in row.variants if variant.tool == LIMIT]
    for variant in row.variants:
        limit = next((each for each in limits if each.extra == variant.extra), None)
        if variant.tool == PROJECT and limit and {variant.name, limit.name} <= lines.keys():
            yield variant.name, lines[variant.name], lines[limit.name]


def _weight_files(package: Path) -> dict[Path, Path]:
    return {path.relative_to(package): path for path in package.rglob("*.bin")}
