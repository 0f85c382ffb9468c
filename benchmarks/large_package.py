"""A package of 0.77 GB, palettized from file to file within 600 MB above the imports.

    python -m benchmarks.large_package [--rows NAME ...] [--json FILE] [--list]

Random weights, in a fresh process for each row, after a call on a small model in another, which
leaves compiled kernels in their cache. Checked: the peak, that every matrix of the
output is palettized (as the benchmark's own reader sees it), and that it is smaller by what the
bits promise. The check failing is a failure of the script. coremltools does the same job in
`--rows ... --with-reference`, which takes minutes and is off unless asked for.

A language model of 7 billion weights (14 GB, in packages of this size) would take the time for a
weight, times their number. A plain copy of the source is the time of reading and writing alone.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.options import choose
from benchmarks.lib.output import megabytes, print_table, seconds, write_json
from benchmarks.lib.packages import package
from benchmarks.lib.perform import import_tool, open_source, perform
from benchmarks.lib.progress import say
from benchmarks.lib.reader import read_package
from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant
from benchmarks.lib.sizes import package_bytes
from benchmarks.lib.timing import Timing

SUBJECT = "a large package, file to file"
LIMIT_BYTES = 600e6
MASK = "causal_mask"  # the one matrix that is not a weight and should be left alone
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "kmeans4": {"mode": "kmeans", "nbits": 4},
    "kmeans8": {"mode": "kmeans", "nbits": 8},
    "kmeans4-g16": {"mode": "kmeans", "nbits": 4, **GROUPS},
    "uniform8": {"mode": "uniform", "nbits": 8},
}
DEFAULT = ["kmeans4", "kmeans4-g16"]
LANGUAGE_MODEL = 7e9
"""Weights."""


def measure(name: str, tool: str, source: str) -> dict[str, Any]:
    """Time, peak and output of one row (runs in a fresh process)."""
    variant = Variant(tool, streaming=tool == PROJECT)
    row = Row(name, name, "large", "palettize", SETTINGS[name])
    api = import_tool(variant)
    timing = Timing()
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        output = Path(folder) / "output.mlpackage"
        memory = PeakMemory()
        opened = open_source(row, variant, source)
        timing.measure(lambda: perform(row, variant, api, opened, output))
        peak = memory.above_start_bytes()
        stored = read_package(output)
        kept = [key for key, weight in stored.items() if not weight.palettized and key != MASK]
        return {
            "name": name,
            "tool": tool,
            "wall_s": timing.wall_s[0],
            "peak_above_imports_bytes": peak,
            "copy_s": _copied(source, Path(folder) / "copy.mlpackage"),
            "weights": sum(math.prod(each.shape) for each in stored.values() if each.palettized),
            "source_bytes": package_bytes(source),
            "output_bytes": package_bytes(output),
            "matrices_kept": kept,
        }


def _copied(source: str, copy: Path) -> float:
    timing = Timing()
    timing.measure(lambda: shutil.copytree(source, copy))
    return timing.wall_s[0]


def within(row: dict[str, Any]) -> bool:
    """True where the peak is below the limit and the output is complete and small enough."""
    nbits = SETTINGS[row["name"]]["nbits"]
    small = row["output_bytes"] < 1.05 * row["source_bytes"] * nbits / 16
    return row["peak_above_imports_bytes"] < LIMIT_BYTES and not row["matrices_kept"] and small


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or mlopt missed a check, else 0."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.large_package",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=DEFAULT)
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--with-reference", action="store_true", help="run coremltools too")
    options = parser.parse_args(argv)
    if options.list:
        for name, settings in SETTINGS.items():
            print(f"{name:26} {settings}{' (default)' if name in DEFAULT else ''}")
        return 0
    choose(SETTINGS, options.rows)
    source, warmup = package("large"), package("warmup")
    rows = []
    status = 0
    for name in options.rows:
        for tool in [PROJECT, REFERENCE] if options.with_reference else [PROJECT]:
            try:
                for each in (warmup, source):  # the first call compiles kernels, for all later ones
                    say(f"{name}: {tool}, {each.stem}")
                    row = child.call(
                        "benchmarks.large_package:measure", name=name, tool=tool, source=str(each)
                    )
            except child.ChildError as error:
                print(f"\nfailed: {name}, {tool}\n{error}", file=sys.stderr)
                rows.append({"name": name, "tool": tool, "error": str(error)})
                status = 1
                continue
            row["within"] = within(row)
            rows.append(row)
            if tool == PROJECT and not row["within"]:
                status = 1
        write_json(options.json, SUBJECT, rows)
    print_table(
        f"A package of {megabytes(package_bytes(source))} MB, file to file; "
        f"limit {megabytes(LIMIT_BYTES)} MB",
        (
            "row",
            "who",
            "time",
            "of a copy",
            "ns a weight",
            "GB/s",
            "7 B weights",
            "peak MB",
            "out MB",
            "matrices kept",
            "within",
        ),
        [
            (
                row["name"],
                row["tool"],
                seconds(row["wall_s"]),
                f"{row['wall_s'] / row['copy_s']:.3g}x",
                f"{row['wall_s'] / row['weights'] * 1e9:.3g}",
                f"{row['source_bytes'] / row['wall_s'] / 1e9:.3g}",
                f"{row['wall_s'] / row['weights'] * LANGUAGE_MODEL / 60:.3g} min",
                megabytes(row["peak_above_imports_bytes"]),
                megabytes(row["output_bytes"]),
                str(len(row["matrices_kept"])),
                "yes" if row["within"] else "NO",
            )
            for row in rows
            if "error" not in row
        ],
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
