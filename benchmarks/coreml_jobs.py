"""Jobs on a Core ML model beside coremltools: time, peak memory, clustering error, bytes.

    python -m benchmarks.coreml_jobs [--rows NAME ...] [--json FILE] [--list]

Each row runs in processes of its own: one that times coremltools and mlopt in turn, one that
reads both outputs and compares the clustering error of every weight, and one for each variant's
peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.clustering_error import compare, largest_report_gap_db
from benchmarks.lib.job_table import print_jobs
from benchmarks.lib.options import add_common, choose
from benchmarks.lib.output import write_json
from benchmarks.lib.packages import missing, package
from benchmarks.lib.progress import say
from benchmarks.lib.rows import BY_NAME, PROJECT, REFERENCE, ROWS, Row
from benchmarks.lib.sizes import package_bytes

SUBJECT = "jobs on Core ML models"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.coreml_jobs", description=__doc__)
    add_common(parser, repeats=5)
    parser.add_argument("--skip-memory", action="store_true", help="leave out the memory runs")
    return parser.parse_args(argv)


def measure(row: Row, variants: list[str], repeats: int, memory: bool) -> dict[str, Any]:
    """Everything about one row: a dictionary with ``variants`` by name."""
    source = package(row.model)
    warmup = package(row.warmup_model)
    result: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "goal": row.goal,
        "quoted": row.quoted,
        "source_bytes": package_bytes(source),
    }
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        lines = child.call(
            "benchmarks.lib.timed_row:time_row",
            name=row.name,
            variants=variants,
            source=str(source),
            warmup=str(warmup),
            folder=folder,
            repeats=repeats,
        )
        if row.action == "palettize":
            add_errors(row, str(source), lines)
    for name in variants if memory else []:
        if "error" not in lines[name]:
            say(f"{row.name}: {name}, memory")
            add_memory(row, name, str(source), lines[name])
    add_speedups(lines)
    return result | {"variants": lines}


def add_errors(row: Row, source: str, lines: dict[str, Any]) -> None:
    """Put the clustering errors of the outputs into ``lines``, ours compared with theirs."""
    outputs = {name: line["output"] for name, line in lines.items() if "output" in line}
    if not outputs:
        return
    say(f"{row.name}: clustering errors")
    try:
        errors = child.call(
            "benchmarks.lib.clustering_error:errors_of_packages", source=source, outputs=outputs
        )
    except child.ChildError as error:
        for name in outputs:
            lines[name]["error"] = str(error)
        return
    for name, measured in errors.items():
        lines[name]["weights"] = measured
        if name != REFERENCE and REFERENCE in errors:
            lines[name]["against_reference"] = compare(measured, errors[REFERENCE])
        gap = largest_report_gap_db(lines[name].get("report"), measured)
        lines[name]["report_snr_gap_db"] = gap


def add_memory(row: Row, variant: str, source: str, line: dict[str, Any]) -> None:
    """Put the peak memory of ``variant``, measured in a fresh process, into ``line``."""
    try:
        line["memory"] = child.call(
            "benchmarks.lib.memory_row:peak_of", name=row.name, variant=variant, source=source
        )
    except child.ChildError as error:
        line["error"] = str(error)


def add_speedups(lines: dict[str, Any]) -> None:
    """Median wall (and processor) time of coremltools over that of every other variant."""
    reference = lines.get(REFERENCE, {})
    for name, line in lines.items():
        if name != REFERENCE and "median_wall_s" in line and "median_wall_s" in reference:
            line["times_faster"] = reference["median_wall_s"] / line["median_wall_s"]
            if line["median_cpu_s"] and reference["median_cpu_s"]:
                line["times_less_cpu"] = reference["median_cpu_s"] / line["median_cpu_s"]


def _attempt(row: Row, variants: list[str], repeats: int, memory: bool) -> dict[str, Any]:
    """The measured row, or why it was skipped or failed."""
    lacking = missing(row.model)
    if lacking is not None:
        return {"name": row.name, "title": row.title, "skipped": lacking}
    try:
        return measure(row, variants, repeats, memory)
    except (child.ChildError, OSError) as error:
        return {"name": row.name, "title": row.title, "error": str(error)}


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised, else 0."""
    options = arguments(argv)
    if options.list:
        for row in ROWS:
            print(f"{row.name:26} {row.title}")
        return 0
    results = []
    for row in choose(BY_NAME, options.rows):
        variants = [
            variant.name
            for variant in row.variants
            if not (options.skip_reference and variant.tool == REFERENCE)
            and not (options.only_reference and variant.tool == PROJECT)
        ]
        results.append(_attempt(row, variants, options.repeats, not options.skip_memory))
        write_json(options.json, SUBJECT, results)
    return print_jobs(results)


if __name__ == "__main__":
    sys.exit(main())
