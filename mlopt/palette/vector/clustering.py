"""k-means over vectors: tables whose entries stand for several consecutive elements.

Everything that decides a stored byte is summed in a fixed order, with random numbers from a bit
generator whose stream numpy guarantees. The same centres come out on every machine and for any
number of workers. (scikit-learn adds up in the order in which threads finish, and with whichever
BLAS is installed.)

The plan for one weight:

1. Equal vectors collapse to one with their importances added; if they fit the table, it is exact.
2. Above a certain size, a stratified sample stands in for the vectors, and a smaller one for steps
   3 and 4.
3. Greedy k-means++ (Arthur and Vassilvitskii 2007; several candidates per step).
4. Local search (Lattanzi and Sohler 2019): a centre moves to a point drawn by its cost, if that
   pays. It finds the clusters that the initialisation missed, which Lloyd's iteration cannot.
   Lloyd's iteration and the search alternate.
5. Lloyd's iteration until it gains little; for small problems then more swaps, each judged by the
   cost after Lloyd's iteration (Conrads et al. 2024).
6. Some iterations over all vectors, and a final, exact assignment.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.palette.vector.nearest import Floats, Nearest, slices
from mlopt.palette.vector.points import (
    distinct_vectors,
    exponent_of,
    fine_enough,
    floats,
    scaled_columns,
)
from mlopt.palette.vector.start import local_search, plus_plus, suggested_swaps

MAX_CENTERS = 256
"""Labels are uint8."""

_SAMPLE = 1 << 17
"""Vectors that stand in for a larger number of them."""

_SCOUTS = 96
"""Vectors per centre among which starting centres are searched for."""

_FEWEST_SCOUTS = 2048

_ONE_START = 1 << 18
"""Scouts times centres above which only one start is made."""

_SWAP_WORK = 4e6
"""Vectors times numbers in the centres for which one swap is attempted after convergence."""

_MOST_SWAPS = 16

_RELAXATION = 1.8
"""Moves of centres, in units of the way to the means of their vectors."""

_SETTLED = 5e-5
"""The iteration stops when moving to the means gains less than this share of the cost."""

_MOST_ROUNDS = 100
_MOST_FULL_ROUNDS = 20
_SCOUT_ROUNDS = 6

_SEED = 20071021


def cluster_vectors(
    points: Floats,
    k: int,
    importance: npt.NDArray[np.float64] | None = None,
    *,
    stored_as: npt.DTypeLike | None = None,
    workers: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Cluster vectors so that the weighted squared error is small; deterministic.

    Parameters
    ----------
    points
        [n, d] with n >= 1 and d >= 1; float16, bfloat16, float32 or float64, finite.
    k
        The maximum number of centres, 1 .. 256.
    importance
        float64[n], at least 0; the cost is ``sum_i importance[i] * |points[i] - center|**2``. None,
        or zero everywhere, means 1 for each vector.
    stored_as
        A float dtype to which the centres are rounded before vectors are labelled, or None.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    centers, labels
        float64[k', d] in lexicographic order with ``k' = min(k, distinct vectors)`` (fewer only
        where the other vectors have no importance), and uint8[n], the nearest centre of each vector
        (the first of equally near ones). If ``k'`` covers all distinct vectors, these are the
        centres.

    Work
    ----
    With s = min(n, 196,608) vectors in the sample and m = min(s, max(96 k, 2048)) scouts: one sort
    of n; at most 4 starts of ``3 k + 2 max(64, k)`` passes over m vectors and 12 rounds on them; at
    most 100 rounds on s and, where s < n, 20 on n; at most 16 swaps of up to 108 rounds, of which
    there are ``4e6 / (s k d)``. A round is :meth:`Nearest.assign`: ``n k`` distances at first, a
    few per vector later. Memory: ``4 d + 9`` bytes per vector (float64: ``8 d + 17``) besides the
    input, and about 40 while they are sorted. No input exceeds these bounds.

    Raises
    ------
    ConfigError
        A shape, a dtype or ``k`` is out of the range above.
    """
    _check(points, k, importance)
    if importance is not None and not np.any(importance):
        importance = None
    distinct = distinct_vectors(points, importance, 2 * _SAMPLE)
    if distinct is None:
        vectors, weights, inverse = points, importance, None
    else:
        vectors, weights, inverse = distinct
        if len(vectors) <= k:
            exact = np.asarray(floats(vectors), np.float64)
            centers = _rounded(exact, stored_as)
            if np.array_equal(centers, exact):
                return centers, inverse.astype(np.uint8)
            return centers, assign_vectors(points, centers, workers=workers)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        data = _Data(vectors, weights, exponent_of(vectors), pool if workers > 1 else None)
        nearest, scaled = _fit(data, k)
        centers = _rounded(np.ldexp(scaled, data.exponent), stored_as)
        nearest.assign(np.ldexp(centers, -data.exponent), exact=True)
    labels = nearest.labels
    return centers, labels if inverse is None else labels[inverse]


def _rounded(
    centers: npt.NDArray[np.float64], stored_as: npt.DTypeLike | None
) -> npt.NDArray[np.float64]:
    """Return centres as they are read back from a table of that dtype."""
    if stored_as is None:
        return centers
    return np.asarray(floats(centers.astype(stored_as)), np.float64)


def assign_vectors(
    points: Floats,
    centers: Floats,
    weights: npt.NDArray[np.float64] | None = None,
    *,
    workers: int = 1,
) -> npt.NDArray[np.uint8]:
    """Label each vector with its nearest centre, the first of equally near ones.

    Parameters
    ----------
    points
        [n, d], as for :func:`cluster_vectors`.
    centers
        [k, d] with 1 <= k <= 256, any of the float dtypes: a table after rounding, say.
    weights
        float64[n, d], not negative: the importance of elements, see :class:`Nearest`; None for 1.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    uint8[n], as if all ``n k`` distances had been compared in float64. They are computed, in
    float32 where that is exact enough, in memory for one block of vectors per thread.
    """
    exponent = exponent_of(points)
    scaled = np.ldexp(floats(centers).astype(np.float64), -exponent)
    labels = np.empty(len(points), np.uint8)

    def label(part: slice) -> None:
        # a block at a time, so that bounds are kept for none
        heavy = None if weights is None else weights[part]
        nearest = Nearest(fine_enough(points[part], centers), exponent, heavy)
        nearest.assign(scaled, exact=True)
        labels[part] = nearest.labels

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for _ in (map if workers < 2 else pool.map)(label, slices(len(points))):
            pass
    return labels


def _check(points: Floats, k: int, importance: npt.NDArray[np.float64] | None) -> None:
    if points.ndim != 2 or not points.size:
        raise ConfigError(
            f"vectors to cluster must be a non-empty array [n, d], got shape {points.shape}; "
            "see mlopt.palette.Layout"
        )
    if not 1 <= k <= MAX_CENTERS:
        raise ConfigError(f"k must be between 1 and {MAX_CENTERS}, got {k}; use fewer bits")
    if importance is not None and importance.shape != (len(points),):
        raise ConfigError(
            f"importance must have one number per vector, ({len(points)},), got shape "
            f"{importance.shape}; add it up over the elements of each vector"
        )


@attrs.frozen(eq=False)
class _Data:
    """Vectors [n, d] with their importances, float64[n] or None for 1.

    ``exponent`` of the power of two to divide by; ``pool`` of threads, if any.
    """

    points: Floats
    weights: npt.NDArray[np.float64] | None
    exponent: int
    pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.points)

    def some(self, most: int, far: int, *, stream: int) -> _Data:
        """Return ``most`` vectors that stand in for all; itself if it has no more than that.

        These are the ``far`` vectors that cost most about the mean, as a few outliers may cost more
        than all others, and one from each of equal stretches of the rest, which counts for its
        stretch.
        """
        n = len(self)
        if n <= most:
            return self
        columns, weights = self.columns, self.importance
        middle = np.array([float(np.cumsum(x, dtype=np.float64)[-1]) / n for x in columns])
        costs = weights * sum((x - m) ** 2 for x, m in zip(columns, middle, strict=True))
        far = min(far, most // 4)
        is_far = costs > np.partition(costs, n - far - 1)[n - far - 1]
        rest = np.flatnonzero(~is_far)
        count = most - int(is_far.sum())
        edges = np.arange(count + 1, dtype=np.int64) * len(rest) // count
        draws = _uniforms(count, stream=stream)
        picked = rest[edges[:-1] + (draws * np.diff(edges)).astype(np.int64)]
        stands_for = np.where(is_far, 1.0, len(rest) / count)
        rows = np.sort(np.concatenate([np.flatnonzero(is_far), picked]))
        return attrs.evolve(self, points=self.points[rows], weights=(weights * stands_for)[rows])

    @property
    def columns(self) -> Floats:
        """Return all scaled vectors [d, n]."""
        return scaled_columns(self.points, self.exponent)

    @property
    def importance(self) -> npt.NDArray[np.float64]:
        """float64[n]."""
        return np.ones(len(self)) if self.weights is None else self.weights

    def nearest(self) -> Nearest:
        """Its vectors, ready to be assigned to centres."""
        return Nearest(self.points, self.exponent, self.weights, self.pool)


def _uniforms(count: int, *, stream: int) -> npt.NDArray[np.float64]:
    """Draw numbers in [0, 1) from raw bits: numpy keeps those stable, but not distributions."""
    raw = np.random.PCG64([_SEED, stream]).random_raw(count)
    numbers: npt.NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _fit(data: _Data, k: int) -> tuple[Nearest, npt.NDArray[np.float64]]:
    """Return the vectors, and centres float64[k', d] of the scaled ones in lexicographic order."""
    n = len(data)
    sample = data.some(_SAMPLE, 8 * k, stream=0) if n > 3 * _SAMPLE // 2 else data
    centers = _started(sample, k)
    nearest = sample.nearest()
    centers, cost = _lloyd(nearest, centers, tolerance=_SETTLED, rounds=_MOST_ROUNDS)
    centers = _swapped(sample, centers, cost)
    if len(sample) < n:
        nearest = data.nearest()
        centers, _ = _lloyd(nearest, centers, tolerance=_SETTLED, rounds=_MOST_FULL_ROUNDS)
    return nearest, np.asarray(centers[np.lexsort(centers.T[::-1])])


def _started(data: _Data, k: int) -> npt.NDArray[np.float64]:
    """Return centres to start from, found among a few of the vectors.

    The final cost of a start varies by a percent or two, least so for many centres: the fewer there
    are, the more starts are made, of which the best is taken.
    """
    scouts = data.some(max(_SCOUTS * k, _FEWEST_SCOUTS), 8 * k, stream=1000)
    columns, weights = scouts.columns, scouts.importance
    trials = 3
    starts = 1 if len(scouts) * k > _ONE_START else 4
    best, least = None, math.inf
    for start in range(starts):
        draws = _uniforms(k * trials, stream=2000 + start).reshape(k, trials)
        centers = np.asarray(columns[:, plus_plus(columns, weights, k, draws)].T, np.float64)
        for turn in range(2):
            table = centers.astype(columns.dtype)
            draws = _uniforms(max(64, k), stream=3000 + 2 * start + turn)
            local_search(columns, weights, table, draws)
            centers = table.astype(np.float64)
            if turn == 0 or starts > 1:
                centers, cost = _lloyd(
                    scouts.nearest(), centers, tolerance=1e-3, rounds=_SCOUT_ROUNDS
                )
        if best is None or cost < least:
            best, least = centers, cost
    assert best is not None
    return best


def _swapped(data: _Data, centers: npt.NDArray[np.float64], cost: float) -> npt.NDArray[np.float64]:
    """Return centres [k, d] after swaps that pay only once Lloyd's iteration has followed them.

    As many attempts as are cheap: none for large problems, whose local optima are much alike.
    """
    attempts = min(int(_SWAP_WORK / (len(data) * centers.size)), _MOST_SWAPS)
    if len(centers) < 2 or not cost > 0:
        return centers
    columns, weights = data.columns, data.importance
    draws = _uniforms(attempts, stream=4000)
    nearest = data.nearest()
    done = 0
    while done < attempts:
        table = centers.astype(columns.dtype)
        for position, gone in zip(
            *suggested_swaps(columns, weights, table, draws[done:]), strict=True
        ):
            done += 1
            moved = centers.copy()
            moved[gone] = columns[:, position]
            moved, moved_cost = _lloyd(nearest, moved, tolerance=3e-4, rounds=8)
            if moved_cost < cost * (1 - 1e-6):
                centers, cost = _lloyd(nearest, moved, tolerance=1e-5, rounds=_MOST_ROUNDS)
                break
    return centers


def _lloyd(
    nearest: Nearest, centers: npt.NDArray[np.float64], *, tolerance: float, rounds: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Iterate as Lloyd, over-relaxed: centres float64[k, d] and the cost before their last move.

    A centre moves :data:`_RELAXATION` times the way to the mean of its vectors. For given labels
    any factor below 2 lowers the cost, and the one taken gets as far in half the rounds. Stops
    after ``rounds``, or when the means are worth less than ``tolerance`` of the cost; the last move
    ends at the means.
    """
    sums, masses = nearest.assign(centers)
    cost = nearest.cost()
    for left in range(rounds, 0, -1):
        used = masses[:, 0] > 0
        moves = np.zeros_like(centers)
        moves[used] = sums[used] / masses[used] - centers[used]
        gain = float((masses * moves**2).sum())
        lost = nearest.farthest(int(np.count_nonzero(~used)))
        if left == 1 or (gain <= tolerance * cost and not len(lost)):
            return centers + moves, nearest.cost()
        empty = np.flatnonzero(~used)[: len(lost)]
        centers = centers + _RELAXATION * moves
        centers[empty] = lost[: len(empty)]
        sums, masses = nearest.assign(centers)
    raise AssertionError("rounds must be at least 1")
