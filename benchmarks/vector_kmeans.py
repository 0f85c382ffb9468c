"""k-means over vectors on bare arrays, beside scikit-learn in the same process.

    python -m benchmarks.vector_kmeans [--rows NAME ...] [--json FILE] [--list] [--seeds N]

Each row clusters arrays of one kind, several seeds of each. The reference is scikit-learn's KMeans
as it is by default (k-means++, one start, tol 1e-4), as coremltools calls it (tol 1e-2), and its
MiniBatchKMeans; as many threads each as mlopt. Errors are those of the table in the array's dtype
with every vector at its nearest entry. Ratios are mlopt's over theirs: below 1 is better.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lib import child
from benchmarks.lib.options import add_common, choose
from benchmarks.lib.output import print_table, seconds, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.timing import Timing

SUBJECT = "k-means over vectors on arrays"
REFERENCES = ("KMeans", "KMeans tol 1e-2", "MiniBatchKMeans")


@dataclass(frozen=True)
class Case:
    """``n`` vectors of ``d`` elements of ``dtype`` in ``2**nbits`` clusters."""

    kind: str
    n: int
    d: int
    dtype: str
    nbits: int

    @property
    def name(self) -> str:
        """What ``--rows`` calls it."""
        return f"{self.kind}-{self.n}x{self.d}-{self.dtype}-{self.nbits}"


_PLAIN = [
    Case(kind, 73_728 * 2 // d, d, "float16", nbits)
    for kind in ("gaussian", "laplace")
    for d in (2, 4)
    for nbits in (4, 6, 8)
]
_HARD = [
    Case(kind, 73_728 * 2 // d, d, dtype, 8)
    for kind in ("cauchy", "lattice4", "lattice8", "few", "ties")
    for d, dtype in ((2, "float16"), (4, "float32"))
]
_LARGE = [Case("gaussian", 2_000_000, 2, "float16", 8), Case("cauchy", 2_000_000, 2, "float32", 8)]
CASES = {case.name: case for case in (*_PLAIN, *_HARD, *_LARGE)}


def sample(case: Case, seed: int) -> np.ndarray:
    """The vectors [n, d] of one seed."""
    rng = np.random.default_rng([seed, case.n, case.d])
    shape = (case.n, case.d)
    if case.kind == "gaussian":
        values = 0.02 * rng.standard_normal(shape)
    elif case.kind == "laplace":
        values = 0.02 * rng.laplace(size=shape)
    elif case.kind == "cauchy":
        values = np.clip(0.02 * rng.standard_cauchy(shape), -6e4, 6e4)
    elif case.kind.startswith("lattice"):
        # weights that were quantized in blocks of 32 vectors, a scale each
        top = 2 ** (int(case.kind[-1]) - 1) - 1
        plain = rng.standard_normal(shape)
        step = np.abs(plain.reshape(-1, 32, case.d)).max(axis=(1, 2)).repeat(32)[:, None] / top
        values = 0.02 * step * np.round(plain / step)
    elif case.kind == "few":
        values = rng.standard_normal((1000, case.d))[rng.integers(0, 1000, case.n)]
    else:
        values = rng.integers(-20, 21, shape) / 64
    return np.asarray(values.astype(case.dtype))


def stored_error(points: np.ndarray, centers: np.ndarray) -> float:
    """Sum of squared errors in float64, by brute force, with the centres in the points' dtype."""
    table = np.asarray(centers).astype(points.dtype).astype(np.float64)
    error = 0.0
    for start in range(0, len(points), 4096):
        part = points[start : start + 4096].astype(np.float64)
        square = sum((part[:, j, None] - table[:, j]) ** 2 for j in range(points.shape[1]))
        error += float(np.min(square, axis=1).sum())
    return error


def measure(name: str, seeds: int, workers: int, references: bool) -> list[dict[str, Any]]:
    """A row for each tool: seconds and error of each seed (runs in a child)."""
    case = CASES[name]
    k = 2**case.nbits
    arrays = [sample(case, seed) for seed in range(seeds)]
    rows = []
    for tool in ("mlopt", *(REFERENCES if references else ())):
        cluster = _clusterer(tool, k, workers)
        cluster(arrays[0][:9000])  # warm-up
        timing = Timing()
        errors = [
            stored_error(points, timing.measure(lambda p=points, c=cluster: c(p)))
            for points in arrays
        ]
        rows.append({"name": name, "tool": tool, "squared_errors": errors} | timing.summary())
    return rows


def _clusterer(tool: str, k: int, workers: int) -> Callable[[np.ndarray], np.ndarray]:
    if tool == "mlopt":
        from mlopt.palette import cluster_vectors

        return lambda points: cluster_vectors(points, k, stored_as=points.dtype, workers=workers)[0]
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    warnings.filterwarnings("ignore")  # fewer distinct vectors than centres
    kind = MiniBatchKMeans if tool == "MiniBatchKMeans" else KMeans
    more = {"tol": 1e-2} if "tol" in tool else {}

    def reference(points: np.ndarray) -> np.ndarray:
        with threadpool_limits(workers):
            fitted = kind(k, init="k-means++", n_init=1, random_state=0, **more).fit(points)
        return np.asarray(fitted.cluster_centers_)

    return reference


def main(argv: list[str] | None = None) -> int:
    """Run the chosen cases; 1 where anything raised, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.vector_kmeans", description=__doc__)
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=5, help="arrays of each row (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="threads of each tool (default 2)")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(CASES))
        return 0
    rows: list[dict[str, Any]] = []
    failed = False
    for case in choose(CASES, options.rows):
        say(case.name)
        try:
            rows += child.call(
                "benchmarks.vector_kmeans:measure",
                name=case.name,
                seeds=options.seeds,
                workers=options.workers,
                references=not options.skip_reference,
            )
        except child.ChildError as error:
            failed = True
            print(f"\nfailed: {case.name}\n{error}", file=sys.stderr)
        write_json(options.json, SUBJECT, rows)
    _print(rows)
    return 1 if failed else 0


def _print(rows: list[dict[str, Any]]) -> None:
    ours = {row["name"]: row for row in rows if row["tool"] == "mlopt"}
    lines = []
    for row in rows:
        own = ours[row["name"]]
        cells = [row["name"], row["tool"], seconds(row["median_wall_s"]), "-", "-"]
        if row is not own:
            faster = [a / b for a, b in zip(row["wall_s"], own["wall_s"], strict=True)]
            pairs = zip(own["squared_errors"], row["squared_errors"], strict=True)
            cells[3] = _spread(faster, "x")
            cells[4] = _spread([a / b if b else 1.0 + bool(a) for a, b in pairs])
        lines.append(tuple(cells))
    columns = ("case", "who", "median", "mlopt faster", "mlopt's error over theirs")
    print_table("k-means over vectors: median (lowest to highest)", columns, lines)


def _spread(values: list[float], unit: str = "") -> str:
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.4g}{unit} ({low:.4g} to {high:.4g})"


if __name__ == "__main__":
    sys.exit(main())
