"""How small whole packages become, beside the ratios published for the same architectures.

    python -m benchmarks.compression_ratios [--rows NAME ...] [--json FILE] [--list]

The fp16 package of an architecture over its palettized one, per tensor at 8, 6, 4 and 2 bits,
in bytes of all files. Weights are random: how many bytes a table and its indices take does not
depend on them. coremltools runs in its quick uniform mode, whose packages are as large as those
of its k-means.

The published ratios look like quotients of sizes in MB with one decimal (MobileNetV2: 7.1 / 3.6,
7.1 / 2.8, 7.1 / 2.1, 7.1 / 1.2 give 1.97, 2.54, 3.38, 5.92), which is an inference. So a second
ratio is taken that way; ``reached`` says by which of the two the published one is reached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.options import add_common, choose
from benchmarks.lib.output import MEGABYTE, print_table, write_json
from benchmarks.lib.packages import package
from benchmarks.lib.perform import import_tool, open_source, perform
from benchmarks.lib.progress import say
from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant
from benchmarks.lib.sizes import package_bytes

SUBJECT = "compression ratios"


@dataclass(frozen=True)
class Architecture:
    """``published``: the ratio of coremltools' published packages, by nbits."""

    name: str
    title: str
    published: dict[int, float]


ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("mobilenet-v2", "MobileNetV2", {8: 1.97, 6: 2.54, 4: 3.38, 2: 5.92}),
        Architecture(
            "mobilenet-v3-small", "MobileNetV3-small", {8: 1.93, 6: 2.6, 4: 3.47, 2: 5.82}
        ),
        Architecture("resnet50", "ResNet50", {8: 1.99, 6: 2.65, 4: 3.9, 2: 7.63}),
        Architecture(
            "centernet-resnet34", "CenterNet-ResNet34", {8: 2.0, 6: 2.65, 4: 3.94, 2: 7.71}
        ),
    )
}


def palettized_bytes(source: str, tool: str, widths: list[int]) -> dict[str, int]:
    """Bytes of ``source`` palettized by ``tool``, by nbits as text (runs in a child process)."""
    variant = Variant(tool, streaming=tool == PROJECT)
    mode = "uniform" if tool == REFERENCE else "kmeans"
    api = import_tool(variant)
    sizes = {}
    for nbits in widths:
        row = Row(f"{nbits} bits", "", "", "palettize", {"mode": mode, "nbits": nbits})
        with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
            output = Path(folder) / "output.mlpackage"
            perform(row, variant, api, open_source(row, variant, source), output)
            sizes[str(nbits)] = package_bytes(output)
    return sizes


def ratio_of_rounded(before: int, after: int) -> float:
    """The quotient of both sizes in MB with one decimal, to two decimals: as published."""
    return round(round(before / MEGABYTE, 1) / round(after / MEGABYTE, 1), 2)


def reached(before: int, after: int, published: float) -> str:
    """Whether ``published`` is reached by the "exact" quotient, by the "rounded" one, or not."""
    if round(before / after, 2) >= published:
        return "exact"
    return "rounded" if ratio_of_rounded(before, after) >= published else "no"


def measure(architecture: Architecture, tools: list[str]) -> list[dict[str, Any]]:
    """A row for each tool and width: bytes, ratio and the published ratio."""
    source = package(architecture.name)
    before = package_bytes(source)
    rows: list[dict[str, Any]] = []
    for tool in tools:
        widths = list(architecture.published)
        say(f"{architecture.name}: {tool}")
        base = {"name": architecture.name, "title": architecture.title, "tool": tool}
        try:
            sizes = child.call(
                "benchmarks.compression_ratios:palettized_bytes",
                source=str(source),
                tool=tool,
                widths=widths,
            )
        except child.ChildError as error:
            rows.append({**base, "error": str(error)})
            continue
        for nbits in widths:
            after, published = sizes[str(nbits)], architecture.published[nbits]
            rows.append(
                {
                    **base,
                    "nbits": nbits,
                    "bytes_fp16": before,
                    "bytes": after,
                    "ratio": before / after,
                    "ratio_of_rounded": ratio_of_rounded(before, after),
                    "published_ratio": published,
                    "reached": reached(before, after, published),
                }
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the chosen architectures; 1 where anything raised, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.compression_ratios", description=__doc__)
    add_common(parser)
    options = parser.parse_args(argv)
    if options.list:
        for name, each in ARCHITECTURES.items():
            print(f"{name:26} {each.title}")
        return 0
    tools = [] if options.only_reference else [PROJECT]
    tools += [] if options.skip_reference else [REFERENCE]
    rows = []
    for architecture in choose(ARCHITECTURES, options.rows):
        rows += measure(architecture, tools)
        write_json(options.json, SUBJECT, rows)
    good = [row for row in rows if "error" not in row]
    print_table(
        "Compression ratios: whole package against fp16, one table per tensor",
        (
            "architecture",
            "who",
            "bits",
            "fp16 MB",
            "MB",
            "ratio",
            "of rounded",
            "published",
            "reached",
        ),
        [
            (
                row["title"],
                row["tool"],
                str(row["nbits"]),
                f"{row['bytes_fp16'] / MEGABYTE:.3f}",
                f"{row['bytes'] / MEGABYTE:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_of_rounded']:.2f}",
                f"{row['published_ratio']:.2f}",
                row["reached"],
            )
            for row in good
        ],
    )
    for row in rows:
        if "error" in row:
            print(f"\nfailed: {row['name']}, {row['tool']}\n{row['error']}", file=sys.stderr)
    return 0 if len(good) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
