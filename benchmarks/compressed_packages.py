"""Packages that coremltools compressed: undone, described, raised to a later target, and linted.

    python -m benchmarks.compressed_packages [--rows NAME ...] [--json FILE] [--list]

Time and peak memory, measured as in ``coreml_jobs``. The values of every weight are compared in the
same run, bit for bit, and a difference is a failure of the script: with coremltools' own
decompression, or, where coremltools does not do the job, with what the benchmark's reader reads in
the source.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.compressed_rows import COMPRESSED_ROWS
from benchmarks.lib.job_table import print_jobs
from benchmarks.lib.measured_row import Lines, measure_rows
from benchmarks.lib.options import choose, job_options
from benchmarks.lib.progress import say
from benchmarks.lib.row import PROJECT, REFERENCE, Row

SUBJECT = "packages that coremltools compressed"


def add_equality(row: Row, source: str, lines: Lines) -> None:
    """Put into our lines how many weights have the values that they should; ``error`` if not all.

    Nothing is put in where there is nothing to compare: metadata without values, findings, and
    decompression without coremltools.
    """
    good = {name: line for name, line in lines.items() if "error" not in line}
    ours = {name: line for name, line in good.items() if name.partition(" ")[0] == PROJECT}
    outputs = {name: line["output"] for name, line in ours.items() if "output" in line}
    say(f"{row.name}: values")
    try:
        if row.action == "metadata-statistics":  # the call alone reads no values
            found = child.call("benchmarks.lib.same_values:metadata_against_package", source=source)
            results = dict.fromkeys(ours, found)
        elif row.action == "raise":
            results = _against(source, outputs)
        elif row.action == "decompress" and REFERENCE in good:
            results = _against(good[REFERENCE]["output"], outputs)
        else:
            return
    except child.ChildError as error:
        results = {}
        for line in ours.values():
            line["error"] = str(error)
    for name, values in results.items():
        lines[name]["values"] = values
        if values["differing"]:
            lines[name]["error"] = f"other values than expected: {', '.join(values['differing'])}"


def _against(expected: str, outputs: dict[str, str]) -> dict[str, dict[str, Any]]:
    target = "benchmarks.lib.same_values:outputs_against"
    result: dict[str, dict[str, Any]] = child.call(target, expected=expected, outputs=outputs)
    return result


def further_cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Peak memory over the bytes of the output, and on how many weights the values are equal."""
    peak, size = line.get("memory", {}).get("peak_above_imports_bytes"), line.get("output_bytes")
    values = line.get("values")
    return (
        f"{peak / size:.2f}" if peak is not None and size else "-",
        f"{values['equal']}/{values['compared']}" if values else "-",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or values differ, else 0."""
    options = job_options("benchmarks.compressed_packages", __doc__, argv)
    available = {row.name: row for row in COMPRESSED_ROWS}
    if options.list:
        for row in COMPRESSED_ROWS:
            print(f"{row.name:32} {row.title}")
        return 0
    results = measure_rows(choose(available, options.rows), options, SUBJECT, add_equality)
    return print_jobs(
        "Packages that coremltools compressed", results, ("peak / out", "equal"), further_cells
    )


if __name__ == "__main__":
    sys.exit(main())
