"""The speed of scalar k-means on bare arrays, without Core ML around it.

    python -m benchmarks.exact_kmeans [--rows NAME ...] [--json FILE] [--list]

Each row clusters one Gaussian array with one table, on one thread, from the array to table,
indices and stored error. The reference is the function that coremltools calls for each weight:
exact on fp16 arrays of 10,000 elements and more (values distinct, counted), scikit-learn's Lloyd
otherwise. It takes no importance, so it clusters the weighted rows unweighted and its error is
left out there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lib import child
from benchmarks.lib.options import add_common, choose
from benchmarks.lib.output import number, print_table, seconds, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.timing import Timing

SUBJECT = "scalar k-means on arrays"
MEGA = 1 << 20
CHANNEL = 14336


@dataclass(frozen=True)
class Case:
    """``n`` elements of ``dtype`` in ``2**nbits`` clusters.

    ``quoted_s`` is the published time of flash1dkmeans (arXiv 2412.15295), which is not exact,
    on another machine: quoted, not measured here.
    """

    name: str
    n: int
    dtype: str
    nbits: int
    weighted: bool = False
    quoted_s: float | None = None
    quoted: str = ""


CASES = {
    each.name: each
    for each in (
        Case("fp16-2^20-k16", MEGA, "float16", 4, quoted_s=0.067),
        Case("fp16-2^20-k256", MEGA, "float16", 8, quoted_s=0.084),
        Case("fp32-2^20-k16", MEGA, "float32", 4, quoted_s=0.067),
        Case("fp32-2^20-k256", MEGA, "float32", 8, quoted_s=0.084),
        Case("fp16-channel-k8", CHANNEL, "float16", 3, weighted=True),
        Case(
            "fp16-channel-k256",
            CHANNEL,
            "float16",
            8,
            weighted=True,
            quoted_s=0.0009,
            quoted="k = 8, refined to 256",
        ),
        Case("fp32-channel-k8", CHANNEL, "float32", 3, weighted=True),
        Case(
            "fp32-channel-k256",
            CHANNEL,
            "float32",
            8,
            weighted=True,
            quoted_s=0.0009,
            quoted="k = 8, refined to 256",
        ),
    )
}


def weighted_squared_error(
    values: np.ndarray, stored: np.ndarray, importance: np.ndarray | None
) -> float:
    """Sum of importance * (values - stored)**2 in float64; None: importance 1."""
    difference = values.astype(np.float64) - stored.astype(np.float64)
    weights = 1.0 if importance is None else importance
    return float(np.sum(weights * difference * difference))


def measure(name: str, tools: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row for each tool: times and stored error (runs in a child)."""
    case = CASES[name]
    rng = np.random.default_rng(14336)
    values = (0.02 * rng.standard_normal(case.n)).astype(case.dtype)
    importance = rng.exponential(size=case.n) if case.weighted else None
    rows = []
    for tool in tools:
        cluster = _clusterer(tool, case.nbits)
        cluster(values[:12000], None if importance is None else importance[:12000])  # warm-up
        timing = Timing()
        for _ in range(min(repeats, 2) if tool == REFERENCE else repeats):
            stored = timing.measure(lambda c=cluster: c(values, importance))()
        error = None
        if not (tool == REFERENCE and case.weighted):
            error = weighted_squared_error(values, stored, importance)
        row = {"name": name, "tool": tool, "squared_error": error, "quoted_s": case.quoted_s}
        rows.append(row | timing.summary())
    return rows


Clusterer = Callable[[np.ndarray, np.ndarray | None], Callable[[], np.ndarray]]


def _clusterer(tool: str, nbits: int) -> Clusterer:
    """A call that clusters; what it returns expands to the stored values when called."""
    if tool == REFERENCE:
        import_coremltools()
        from coremltools.models.neural_network import quantization_utils

        def reference(values: np.ndarray, _: np.ndarray | None) -> Callable[[], np.ndarray]:
            table, indices = quantization_utils._get_kmeans_lookup_table_and_weight(nbits, values)
            return lambda: table.ravel().astype(values.dtype)[indices]

        return reference

    from mlopt.palette.palettize import palettize
    from mlopt.palette.value.spec import PaletteSpec

    spec = PaletteSpec(mode="kmeans", nbits=nbits)

    def project(values: np.ndarray, importance: np.ndarray | None) -> Callable[[], np.ndarray]:
        palettized, _ = palettize(values, spec, importance=importance)
        return palettized.dequantize

    return project


def main(argv: list[str] | None = None) -> int:
    """Run the chosen cases; 1 where anything raised, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.exact_kmeans", description=__doc__)
    add_common(parser, repeats=7)
    options = parser.parse_args(argv)
    if options.list:
        for case in CASES.values():
            weighted = ", weighted" if case.weighted else ""
            print(f"{case.name:26} {case.n} {case.dtype}, k = {2**case.nbits}{weighted}")
        return 0
    tools = [] if options.only_reference else [PROJECT]
    tools += [] if options.skip_reference else [REFERENCE]
    rows: list[dict[str, Any]] = []
    failed = False
    for case in choose(CASES, options.rows):
        for tool in tools:
            say(f"{case.name}: {tool}")
            try:
                rows += child.call(
                    "benchmarks.exact_kmeans:measure",
                    name=case.name,
                    tools=[tool],
                    repeats=options.repeats,
                )
            except child.ChildError as error:
                failed = True
                rows.append({"name": case.name, "tool": tool, "error": str(error)})
                print(f"\nfailed: {case.name}, {tool}\n{error}", file=sys.stderr)
        write_json(options.json, SUBJECT, rows)
    _print(rows)
    return 1 if failed else 0


def _print(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        if "error" in row:
            continue
        case = CASES[row["name"]]
        reference = next(
            (r for r in rows if r["name"] == case.name and r["tool"] == REFERENCE), {}
        ).get("median_wall_s")
        faster = reference / row["median_wall_s"] if reference else None
        quoted = f"{seconds(case.quoted_s)} {case.quoted}".strip() if case.quoted_s else "-"
        lines.append(
            (
                case.name,
                row["tool"],
                seconds(row["median_wall_s"]),
                f"{row['median_wall_s'] / case.n * 1e9:.1f}",
                f"{faster:.3g}x" if faster and row["tool"] == PROJECT else "-",
                number(row["squared_error"], 7),
                quoted,
            )
        )
    columns = ("case", "who", "median", "ns a weight", "faster", "squared error")
    print_table("Scalar k-means on arrays", (*columns, "flash1dkmeans, quoted (not exact)"), lines)


if __name__ == "__main__":
    sys.exit(main())
