"""How small whole packages become, beside the ratios published for the same architectures.

    python -m benchmarks.compression_ratios [--rows NAME ...] [--json FILE] [--list]

The fp16 package of an architecture over its palettized one, per tensor at 8, 6, 4 and 2 bits,
in bytes of all files. Weights are random: how many bytes a table and its indices take does not
depend on them. coremltools runs at one width in its quick uniform mode, whose packages are as
large as those of its k-means.
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
from benchmarks.lib.output import megabytes, print_table, write_json
from benchmarks.lib.packages import package
from benchmarks.lib.progress import say
from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.rows import PROJECT, REFERENCE
from benchmarks.lib.sizes import package_bytes

SUBJECT = "compression ratios"
REFERENCE_NBITS = 4


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
    ct = import_coremltools()
    mode = "uniform"
    api = ct.optimize.coreml
    if tool == PROJECT:
        import mlopt.coreml

        api, mode = mlopt.coreml, "kmeans"
    sizes = {}
    for nbits in widths:
        config = api.OptimizationConfig(
            global_config=api.OpPalettizerConfig(mode=mode, nbits=nbits)
        )
        model = ct.models.MLModel(source, skip_model_load=True)
        with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
            output = Path(folder) / "output.mlpackage"
            api.palettize_weights(model, config).save(str(output))
            sizes[str(nbits)] = package_bytes(output)
    return sizes


def measure(architecture: Architecture, tools: list[str]) -> list[dict[str, Any]]:
    """A row for each tool and width: bytes, ratio and the published ratio."""
    source = package(architecture.name)
    before = package_bytes(source)
    rows: list[dict[str, Any]] = []
    for tool in tools:
        widths = [REFERENCE_NBITS] if tool == REFERENCE else list(architecture.published)
        say(f"{architecture.name}: {tool}, {widths} bits")
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
                    "published_ratio": published,
                    "reaches_published": round(before / after, 2) >= published,
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
        ("architecture", "who", "bits", "fp16 MB", "MB", "ratio", "published", "reached"),
        [
            (
                row["title"],
                row["tool"],
                str(row["nbits"]),
                megabytes(row["bytes_fp16"]),
                megabytes(row["bytes"]),
                f"{row['ratio']:.2f}",
                f"{row['published_ratio']:.2f}",
                "yes" if row["reaches_published"] else "no",
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
