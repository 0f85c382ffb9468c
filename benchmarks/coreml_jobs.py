"""Jobs on a Core ML model beside coremltools: time, peak memory, clustering error, bytes.

    python -m benchmarks.coreml_jobs [--rows NAME ...] [--json FILE] [--list]

Each row runs in processes of its own: one that times coremltools, mlopt and the limit (the least
that the job takes) in turn, one that reads the outputs of both tools and compares the clustering
error of every weight, and one for each tool's peak memory.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.clustering_error import compare, largest_report_gap_db
from benchmarks.lib.job_rows import JOB_ROWS
from benchmarks.lib.job_table import comparison_cells, print_jobs
from benchmarks.lib.measured_row import Lines, measure_rows
from benchmarks.lib.options import choose, job_options
from benchmarks.lib.progress import say
from benchmarks.lib.row import LIMIT, REFERENCE, Row

SUBJECT = "jobs on Core ML models"


def add_errors(row: Row, source: str, lines: Lines) -> None:
    """Put the clustering errors of the outputs into ``lines``, ours compared with theirs."""
    outputs = {
        name: line["output"]
        for name, line in lines.items()
        if "output" in line and not name.startswith(LIMIT)
    }
    if row.action != "palettize" or not outputs:
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


def error_cells(line: dict[str, Any]) -> tuple[str, ...]:
    """How our clustering errors compare with coremltools'."""
    return comparison_cells(line.get("against_reference"))


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised, else 0."""
    options = job_options("benchmarks.coreml_jobs", __doc__, argv)
    available = {row.name: row for row in JOB_ROWS}
    if options.list:
        for row in JOB_ROWS:
            print(f"{row.name:26} {row.title}")
        return 0
    results = measure_rows(choose(available, options.rows), options, SUBJECT, add_errors)
    columns = ("error <=", "error ratio: min / median / max")
    return print_jobs("Jobs on Core ML models", results, columns, error_cells)


if __name__ == "__main__":
    sys.exit(main())
