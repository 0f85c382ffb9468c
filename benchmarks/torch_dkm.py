"""What differentiable k-means adds to a step of training: time, peak memory, what is saved.

    python -m benchmarks.torch_dkm [--rows NAME ...] [--repeats N] [--json FILE] [--list]

The first step clusters; it and the later ones are timed apart, and the plain module's beside them.
Each line runs in a process of its own. Rows of coremltools take minutes. More bytes saved for the
backward pass than the limit are a failure of the script; goals that are missed are none.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.dkm_rows import DKM_BY_NAME, DKM_ROWS, FIRST_GOAL, LATER_GOAL, DkmRow
from benchmarks.lib.dkm_table import COLUMNS, compare, exceeded, goals, table_line
from benchmarks.lib.options import add_common, choose
from benchmarks.lib.output import print_table, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.row import PROJECT, REFERENCE

SUBJECT = "steps of training with differentiable k-means"


def _measure(row: DkmRow, options: argparse.Namespace) -> dict[str, Any]:
    lines: dict[str, dict[str, Any]] = {}
    left_out = {options.skip_reference: REFERENCE, options.only_reference: PROJECT}.get(True)
    for tool in row.tools:
        if tool == left_out:
            continue
        say(f"{row.name}: {tool}")
        try:
            lines[tool] = child.call(
                "benchmarks.lib.dkm_steps:measure_steps",
                name=row.name,
                tool=tool,
                repeats=options.repeats,
            )
        except child.ChildError as error:
            lines[tool] = {"error": str(error)}
    compare(lines)
    goal = {"first": FIRST_GOAL, "later": LATER_GOAL} if row.has_goals else None
    named = {"name": row.name, "title": row.title, "goal": goal, "quoted": row.quoted}
    return {**named, "variants": lines}


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or saved too much, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.torch_dkm", description=__doc__)
    add_common(parser, repeats=7)
    options = parser.parse_args(argv)
    if options.list:
        for row in DKM_ROWS:
            print(f"{row.name:16} {row.title}{' (on request)' if row.on_request else ''}")
        return 0
    default = [row.name for row in DKM_ROWS if not row.on_request]
    results: list[dict[str, Any]] = []
    for row in choose(DKM_BY_NAME, options.rows or default):
        result = _measure(row, options)
        if result["variants"]:
            results.append(result)
        write_json(options.json, SUBJECT, results)
    lines = [
        (result["name"], who, line)
        for result in results
        for who, line in result["variants"].items()
    ]
    print_table("Steps of training with DKM", COLUMNS, [table_line(*line) for line in lines])
    print(goals())
    failures = [(name, who, line["error"]) for name, who, line in lines if "error" in line]
    for name, who, line in lines:
        found = exceeded(line) if who == PROJECT else None
        if found:
            failures.append((name, who, found))
    for name, who, what in failures:
        print(f"\nfailed: {name}, {who}\n{what}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
