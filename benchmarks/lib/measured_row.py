"""Everything about a row: timed in one process, checked, and the memory of each line in its own."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.limit_lines import add_times_over_limit, check_limits
from benchmarks.lib.output import megabytes, write_json
from benchmarks.lib.packages import located, missing
from benchmarks.lib.progress import say
from benchmarks.lib.row import LIMIT, REFERENCE, Row
from benchmarks.lib.sizes import package_bytes

Lines = dict[str, dict[str, Any]]
"""What was measured, by the name of the variant; ``error`` where it failed."""

Check = Callable[[Row, str, Lines], None]
"""Looks at the outputs in the lines and puts in what it finds.

It gets the row, the source (a path, or the name of a task) and the lines.
"""


def measure_rows(
    rows: Iterable[Row], options: argparse.Namespace, subject: str, check: Check
) -> list[dict[str, Any]]:
    """The result of each row, written to ``options.json`` after each: ``variants`` has the lines.

    A row has ``skipped`` or ``error`` instead where it could not be measured at all. A line has
    ``exceeded`` where our memory was over the limit.
    """
    results: list[dict[str, Any]] = []
    for row in rows:
        results.append(_attempt(row, options, check))
        write_json(options.json, subject, results)
    return results


def _attempt(row: Row, options: argparse.Namespace, check: Check) -> dict[str, Any]:
    named = {"name": row.name, "title": row.title, "goal": row.goal, "quoted": row.quoted}
    lacking = missing(row.model)
    if lacking is not None:
        return named | {"skipped": lacking}
    on_request = getattr(options, "with_reference", False)
    variants = [
        variant.name
        for variant in row.variants
        if not (options.skip_reference and variant.tool == REFERENCE)
        and not (options.only_reference and variant.tool != REFERENCE)
        and not (row.reference_on_request and variant.tool == REFERENCE and not on_request)
    ]
    if not variants:
        return named | {"skipped": "needs --with-reference"}
    try:
        return named | _measure(row, variants, options, check)
    except (child.ChildError, OSError) as error:
        return named | {"error": str(error)}


def _measure(
    row: Row, variants: list[str], options: argparse.Namespace, check: Check
) -> dict[str, Any]:
    source = located(row.model)
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        lines = child.call(
            "benchmarks.lib.timed_row:time_row",
            name=row.name,
            variants=variants,
            source=source,
            warmup=located(row.warmup_model),
            folder=folder,
            repeats=options.repeats,
        )
        _mark_known_errors(row, lines)
        check_limits(row, lines)
        check(row, source, lines)
    for name in [] if options.skip_memory else variants:
        if "error" not in lines[name] and not name.startswith(LIMIT):
            say(f"{row.name}: {name}, memory")
            _add_memory(row, name, source, lines[name])
    _add_speedups(lines)
    add_times_over_limit(row, lines)
    size = {"source_bytes": package_bytes(source)} if Path(source).exists() else {}
    return {**size, "variants": lines}


def _mark_known_errors(row: Row, lines: Lines) -> None:
    """``error_known`` where coremltools raised what it is known to raise in this row."""
    line = lines.get(REFERENCE, {})
    if row.reference_error and row.reference_error in line.get("error", ""):
        line["error_known"] = True


def _add_memory(row: Row, variant: str, source: str, line: dict[str, Any]) -> None:
    """Put the peak memory of ``variant``, measured in a fresh process, into ``line``."""
    try:
        line["memory"] = child.call(
            "benchmarks.lib.memory_row:peak_of", name=row.name, variant=variant, source=source
        )
    except child.ChildError as error:
        line["error"] = str(error)
        return
    peak, limit = line["memory"]["peak_above_imports_bytes"], row.peak_limit_bytes
    if limit is not None and variant != REFERENCE and peak > limit:
        line["exceeded"] = f"a peak of {megabytes(peak)} MB; the limit is {megabytes(limit)} MB"


def _add_speedups(lines: Lines) -> None:
    """Median wall (and processor) time of coremltools over that of every other variant."""
    reference = lines.get(REFERENCE, {})
    for name, line in lines.items():
        if name != REFERENCE and "median_wall_s" in line and "median_wall_s" in reference:
            line["times_faster"] = reference["median_wall_s"] / line["median_wall_s"]
            if line["median_cpu_s"] and reference["median_cpu_s"]:
                line["times_less_cpu"] = reference["median_cpu_s"] / line["median_cpu_s"]
