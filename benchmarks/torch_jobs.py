"""Jobs on torch modules beside coremltools: time, peak memory, clustering error.

    python -m benchmarks.torch_jobs [--rows NAME ...] [--json FILE] [--list]

Measured as in ``coreml_jobs``. Each row runs in processes of its own: one that times coremltools
and mlopt in turn, one that compares the weights of both outputs with the original's, and one for
each variant's peak memory. A peak above the limit of its row is a failure of the script.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.clustering_error import compare
from benchmarks.lib.job_table import comparison_cells, print_jobs
from benchmarks.lib.measured_row import Lines, measure_rows
from benchmarks.lib.options import add_job_options, choose
from benchmarks.lib.output import megabytes
from benchmarks.lib.progress import say
from benchmarks.lib.row import REFERENCE, Row
from benchmarks.lib.torch_rows import TORCH_ROWS

SUBJECT = "jobs on torch modules"
COLUMNS = (
    "error <=",
    "error ratio: min / median / max",
    "weighted <=",
    "weighted ratio: min / median / max",
    "limit MB",
)


def add_errors(row: Row, source: str, lines: Lines) -> None:
    """Put the clustering errors of the outputs into ``lines``, ours compared with theirs."""
    outputs = {name: line["output"] for name, line in lines.items() if "output" in line}
    sensitive = row.action == "sensitive"
    if not outputs:
        return
    say(f"{row.name}: clustering errors")
    try:
        errors = child.call(
            "benchmarks.lib.torch_errors:errors_of_modules",
            source=source,
            outputs=outputs,
            settings=row.settings,
            sensitive=sensitive,
        )
    except child.ChildError as error:
        for name in outputs:
            lines[name]["error"] = str(error)
        return
    for name, measured in errors.items():
        line = lines[name]
        line["weights"] = measured
        line["peak_limit_bytes"] = None if name == REFERENCE else row.peak_limit_bytes
        if name == REFERENCE or REFERENCE not in errors:
            continue
        line["against_reference"] = compare(measured, errors[REFERENCE])
        if sensitive:
            line["weighted_against_reference"] = compare(
                measured, errors[REFERENCE], metric="weighted_error"
            )


def further_cells(line: dict[str, Any]) -> tuple[str, ...]:
    """How our errors, plain and weighted, compare with coremltools', and the memory allowed."""
    return (
        *comparison_cells(line.get("against_reference")),
        *comparison_cells(line.get("weighted_against_reference")),
        megabytes(line.get("peak_limit_bytes")),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or a limit was exceeded, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.torch_jobs", description=__doc__)
    add_job_options(parser)
    parser.add_argument(
        "--with-reference",
        action="store_true",
        help="run coremltools in rows too where it takes many minutes",
    )
    options = parser.parse_args(argv)
    available = {row.name: row for row in TORCH_ROWS}
    if options.list:
        for row in TORCH_ROWS:
            print(f"{row.name:28} {row.title}")
        return 0
    results = measure_rows(choose(available, options.rows), options, SUBJECT, add_errors)
    return print_jobs("Jobs on torch modules", results, COLUMNS, further_cells)


if __name__ == "__main__":
    sys.exit(main())
