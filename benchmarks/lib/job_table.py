"""The table of the jobs on Core ML models."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.lib.output import megabytes, number, print_table, seconds
from benchmarks.lib.rows import REFERENCE

COLUMNS = (
    "row",
    "who",
    "median",
    "lowest..highest",
    "cpu",
    "faster",
    "goal",
    "peak MB",
    "out MB",
    "error <=",
    "error ratio: min / median / max",
)


def print_jobs(results: list[dict[str, Any]]) -> int:
    """Print the table and, on stderr, what was skipped or failed; 1 where anything failed."""
    lines = []
    failures = []
    for result in results:
        if "error" in result:
            failures.append((result["name"], result["error"]))
        for who, variant in result.get("variants", {}).items():
            lines.append(_line(result, who, variant))
            if "error" in variant:
                failures.append((f"{result['name']}, {who}", variant["error"]))
    print_table("Jobs on Core ML models", COLUMNS, lines)
    for result in results:
        if "skipped" in result:
            print(f"skipped: {result['name']}: {result['skipped']}", file=sys.stderr)
    for where, error in failures:
        print(f"\nfailed: {where}\n{error}", file=sys.stderr)
    return 1 if failures else 0


def _line(result: dict[str, Any], who: str, variant: dict[str, Any]) -> tuple[str, ...]:
    against = variant.get("against_reference")
    goal = result.get("goal") if who != REFERENCE else None
    spread = variant.get("spread_wall_s")
    peak = variant.get("memory", {}).get("peak_above_imports_bytes")
    return (
        result["name"],
        who,
        "failed" if "error" in variant else seconds(variant.get("median_wall_s")),
        f"{seconds(spread[0])}..{seconds(spread[1])}" if spread else "-",
        seconds(variant.get("median_cpu_s")),
        _times(variant.get("times_faster")),
        _times(goal),
        megabytes(peak),
        megabytes(variant.get("output_bytes")),
        f"{against['compared'] - against['violations']}/{against['compared']}" if against else "-",
        _ratios(against) if against else "-",
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


def _ratios(against: dict[str, Any]) -> str:
    keys = ("ratio_min", "ratio_median", "ratio_max")
    text = " / ".join(number(against[key], 6) for key in keys)
    ours, theirs = len(against["only_ours"]), len(against["only_theirs"])
    return text + (f" (+{ours})" if ours else "") + (f" (-{theirs})" if theirs else "")
