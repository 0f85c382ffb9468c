"""Whether the time of scalar k-means depends on what the weights look like.

    python -m benchmarks.clustering_kinds [--sizes N ...] [--bits B ...] [--kinds NAME ...]
        [--dtypes NAME ...] [--scales no yes] [--repeats N] [--limit SECONDS] [--json FILE]

Each row clusters one array of ``--sizes`` elements with one table, on one thread, from the array to
table, indices and stored error, and its time is put beside that of Gaussian weights of the same
dtype, size, number of clusters and per-channel scale. The aim is ``AIM`` times as long at most. A
row that is not done within ``--limit`` seconds is ended and counts as failed.

The least of several samples is taken, of processor time: both are what noise disturbs least.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.clustering_inputs import DTYPES, KINDS, make_input
from benchmarks.lib.output import print_table, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.timing import Timing

SUBJECT = "scalar k-means of weights of many kinds"
BASE = "gaussian"
AIM = 4.0
BITS = (1, 2, 3, 4, 6, 8)
NANO = 1e9


def measure(
    kind: str, dtype: str, scale: bool, n: int, bits: list[int], repeats: int
) -> list[dict[str, Any]]:
    """A row for each number of bits (runs in a child): samples, and the signal-to-noise ratio."""
    from mlopt.palette.palettize import palettize
    from mlopt.palette.value.spec import PaletteSpec

    weight, importance = make_input(kind, dtype, n)
    small, of_small = make_input(kind, dtype, 1 << 16)
    rows = []
    for nbits in bits:
        spec = PaletteSpec(nbits=nbits, scale_axis=0 if scale else None)
        # kernels, also those of large weights
        palettize(small, spec, importance=of_small)
        palettize(weight[: 1 << 9], PaletteSpec(nbits=1, scale_axis=spec.scale_axis))
        timing, cpu_s = Timing(), []
        for _ in range(repeats):
            began = time.process_time()
            _, distortion = timing.measure(
                lambda s=spec: palettize(weight, s, importance=importance)
            )
            cpu_s.append(time.process_time() - began)
        row = {"kind": kind, "dtype": dtype, "scale": scale, "n": weight.size, "nbits": nbits}
        row |= {"snr_db": distortion.snr_db, "within": distortion.within}
        row["ns_per_weight"] = min(cpu_s) / weight.size * NANO
        rows.append(row | timing.summary())
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen rows; 1 where one failed or took more than ``AIM`` times Gaussian's."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.clustering_kinds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--scales", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=[1, 2, 4, 6, 8])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1 << 20], metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--list", action="store_true", help="print the kinds and stop")
    options = parser.parse_args(argv)
    if options.list:
        for name, kind in KINDS.items():
            print(f"{name:18} {kind.what}")
        return 0
    kinds = [BASE, *(kind for kind in options.kinds if kind != BASE)]
    rows: list[dict[str, Any]] = []
    for n, dtype, scale in itertools.product(options.sizes, options.dtypes, options.scales):
        for kind in kinds:
            what = {"kind": kind, "dtype": dtype, "scale": scale == "yes", "n": n}
            say(f"{n} {dtype}, scale: {scale}, {kind}")
            rows += _measured(what, options)
        write_json(options.json, SUBJECT, _compared(rows))
    rows = _compared(rows)
    _print(rows, kinds)
    bad = [row for row in rows if "error" in row or row.get("of_gaussian", 0.0) > AIM]
    return 1 if bad else 0


def _measured(what: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all bits: together, or, where that fails, one by one."""
    limit, repeats = options.limit, options.repeats
    target = "benchmarks.clustering_kinds:measure"
    try:
        return child.call(
            target,
            limit_s=limit * len(options.bits) * repeats,
            **what,
            bits=options.bits,
            repeats=repeats,
        )
    except child.ChildError:
        rows = []
        for nbits in options.bits:
            try:
                rows += child.call(target, limit_s=limit, **what, bits=[nbits], repeats=1)
            except child.ChildError as error:
                print(f"\nfailed: {what}, {nbits} bits\n{error}", file=sys.stderr)
                rows.append(what | {"nbits": nbits, "error": str(error)})
        return rows


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["n"], row["dtype"], row["scale"], row["nbits"]


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their time over Gaussian's."""
    base = {_key(row): row for row in rows if row["kind"] == BASE and "error" not in row}
    return [
        row | {"of_gaussian": row["ns_per_weight"] / base[_key(row)]["ns_per_weight"]}
        if "error" not in row and _key(row) in base
        else row
        for row in rows
    ]


def _print(rows: list[dict[str, Any]], kinds: list[str]) -> None:
    """A line for each dtype, scale, size and number of clusters: Gaussian's ns, others over it."""
    lines = []
    for key in dict.fromkeys(map(_key, rows)):
        n, dtype, scale, nbits = key
        of_key = {row["kind"]: row for row in rows if _key(row) == key}
        base = of_key[BASE].get("ns_per_weight")
        cells = [
            f"{of_key[kind]['of_gaussian']:.2f}" if "of_gaussian" in of_key[kind] else "failed"
            for kind in kinds[1:]
        ]
        first = f"{dtype}{', scale' if scale else ''}"
        lines.append((first, str(n), str(1 << nbits), f"{base:.1f}" if base else "failed", *cells))
    columns = ("weights", "n", "k", f"{BASE}, ns", *kinds[1:])
    print_table("Scalar k-means: time over that of Gaussian weights", columns, lines)
    over = [row for row in rows if row.get("of_gaussian", 0.0) > AIM]
    failed = sum("error" in row for row in rows)
    print(f"{len(rows)} rows, {len(over)} over {AIM:g}x, {failed} failed")


if __name__ == "__main__":
    sys.exit(main())
