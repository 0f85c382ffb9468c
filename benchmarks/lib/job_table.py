"""The table of rows that were timed with several variants."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.lib.output import megabytes, number, print_table, seconds
from benchmarks.lib.row import PROJECT

COLUMNS = (
    "row",
    "who",
    "median",
    "lowest..highest",
    "cpu",
    "faster",
    "goal",
    "x limit",
    "peak MB",
    "out MB",
)

Cells = Callable[[dict[str, Any]], tuple[str, ...]]
"""The further cells of a line."""


def print_jobs(
    title: str, results: list[dict[str, Any]], columns: Sequence[str], cells: Cells
) -> int:
    """Print the table and, on stderr, what was skipped or failed; 1 where anything failed.

    Columns with a dash in every line are left out.
    ``failed`` in the table is no failure where coremltools was known to.
    """
    lines = []
    failures = []
    for result in results:
        if "error" in result:
            failures.append((result["name"], result["error"]))
        for who, line in result.get("variants", {}).items():
            lines.append((*_measured(result, who, line), *cells(line)))
            if "error" in line and not line.get("error_known"):
                failures.append((f"{result['name']}, {who}", line["error"]))
            if "exceeded" in line:
                failures.append((f"{result['name']}, {who}", line["exceeded"]))
    print_table(title, *_with_content((*COLUMNS, *columns), lines))
    for result in results:
        if "skipped" in result:
            print(f"skipped: {result['name']}: {result['skipped']}", file=sys.stderr)
    for where, error in failures:
        print(f"\nfailed: {where}\n{error}", file=sys.stderr)
    return 1 if failures else 0


def _with_content(
    columns: Sequence[str], lines: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines without those columns that have a dash in every line."""
    kept = [i for i in range(len(columns)) if not lines or any(line[i] != "-" for line in lines)]
    return tuple(columns[i] for i in kept), [tuple(line[i] for i in kept) for line in lines]


def _measured(result: dict[str, Any], who: str, line: dict[str, Any]) -> tuple[str, ...]:
    spread = line.get("spread_wall_s")
    return (
        result["name"],
        who,
        "failed" if "error" in line else seconds(line.get("median_wall_s")),
        f"{seconds(spread[0])}..{seconds(spread[1])}" if spread else "-",
        seconds(line.get("median_cpu_s")),
        times(line.get("times_faster")),
        times(result["goal"] if who.startswith(PROJECT) else None),
        times(line.get("times_over_limit")),
        megabytes(line.get("memory", {}).get("peak_above_imports_bytes")),
        megabytes(line.get("output_bytes")),
    )


def comparison_cells(against: dict[str, Any] | None) -> tuple[str, str]:
    """On how many weights our error is not larger, and the ratios; None: nothing was compared."""
    if not against:
        return "-", "-"
    keys = ("ratio_min", "ratio_median", "ratio_max")
    ratios = " / ".join(number(against[key], 6) for key in keys)
    ours, theirs = len(against["only_ours"]), len(against["only_theirs"])
    ratios += (f" (+{ours})" if ours else "") + (f" (-{theirs})" if theirs else "")
    return f"{against['compared'] - against['violations']}/{against['compared']}", ratios


def times(value: float | None) -> str:
    """A factor with three significant digits; a dash for None."""
    return "-" if value is None else f"{value:.3g}x"
