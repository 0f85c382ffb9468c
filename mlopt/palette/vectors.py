"""k-means over vectors: tables whose entries stand for several consecutive weights.

Everything that decides a stored byte is summed in a fixed order by kernels of this file, over
blocks of a fixed length, with random numbers from a bit generator whose stream is part of numpy's
promise. The same centres come out on every machine and for any number of workers. (scikit-learn
adds up in the order in which threads finish, and with whichever BLAS is installed.)

The plan for one weight:

1. Equal vectors collapse to one with their importances added; if they fit the table, it is exact.
2. Above a size, a stratified sample stands in for the vectors during the steps 3 to 5.
3. Greedy k-means++ (Arthur and Vassilvitskii 2007; several candidates a step).
4. Local search (Lattanzi and Sohler 2019): a centre moves to a point drawn by its cost, if that
   pays. It finds the clusters that the initialisation missed, which Lloyd's iteration cannot.
5. Lloyd's iteration until the cost settles; for small problems then more swaps, each judged by
   the cost after Lloyd's iteration (Conrads et al. 2024).
6. Some iterations over all vectors, and a last assignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.errors import ConfigError

MAX_CENTERS = 256
"""Labels are uint8."""

_BLOCK = 1 << 15
"""Vectors that are summed together. A part of the result: sums of blocks are added in order."""

_SAMPLE = 1 << 17
"""Vectors that stand in for a larger number of them."""

_SWAP_WORK = 1e7
"""Vectors times numbers in the centres for which one swap is attempted after convergence."""

_SEED = 20071021

Floats = npt.NDArray[Any]


def as_vectors(weight: Floats, axis: int, d: int) -> Floats:
    """Group each ``d`` consecutive weights along ``axis`` into a vector.

    Parameters
    ----------
    weight
        [n_0, ..., n_{K-1}] of any dtype and layout.
    axis
        Channel axis, -K .. K-1.
    d
        Weights in a vector; divides ``n_axis``.

    Returns
    -------
    [weight.size // d, d] in the C order of the indices: vector ``i`` holds the weights at
    ``p[axis] * d .. p[axis] * d + d - 1`` for the i-th position ``p`` of the array of shape
    :func:`indices_shape`. A copy unless the vectors lie so in memory already.

    Raises
    ------
    ConfigError
        ``d`` does not divide the number of channels.
    """
    axis %= weight.ndim
    indices_shape(weight.shape, axis, d)
    before, channels, after = weight.shape[:axis], weight.shape[axis], weight.shape[axis + 1 :]
    split = weight.reshape(*before, channels // d, d, *after)
    return np.moveaxis(split, axis + 1, -1).reshape(-1, d)


def indices_shape(shape: tuple[int, ...], axis: int, d: int) -> tuple[int, ...]:
    """Shape of the indices of a weight whose vectors of ``d`` lie along ``axis``.

    Labels of :func:`as_vectors`' rows become indices by a plain reshape to this.

    Raises
    ------
    ConfigError
        ``d`` does not divide the number of channels.
    """
    axis %= len(shape)
    if d < 1 or shape[axis] % d:
        raise ConfigError(
            f"cluster_dim has to divide the channels of its axis, got {d} for the "
            f"{shape[axis]} channels on axis {axis} of a weight of shape {shape}; choose a divisor"
        )
    return tuple(n // d if i == axis else n for i, n in enumerate(shape))


def cluster_vectors(
    points: Floats,
    k: int,
    importance: npt.NDArray[np.float64] | None = None,
    *,
    workers: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Cluster vectors so that the weighted squared error is small; deterministic.

    Parameters
    ----------
    points
        [n, d] with n >= 1 and d >= 1; float16, bfloat16, float32 or float64, finite.
    k
        Centres to use at most, 1 .. 256.
    importance
        float64[n], at least 0; the cost is ``sum_i importance[i] * |points[i] - center|**2``. None,
        or zero everywhere, means 1 for each vector.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    centers, labels
        float64[k', d] in lexicographic order with ``k' = min(k, distinct vectors)`` (fewer only
        where the other vectors have no importance), and uint8[n], the nearest centre of each vector
        (the first of equally near ones). If ``k'`` covers all distinct vectors, these are the
        centres.

    Raises
    ------
    ConfigError
        A shape, a dtype or ``k`` is out of the range above.
    """
    _check(points, k, importance)
    if importance is not None and not np.any(importance):
        importance = None
    distinct = _distinct(points, importance)
    if distinct is None:
        vectors, weights, inverse = points, importance, None
    else:
        vectors, weights, inverse = distinct
        if len(vectors) <= k:
            return np.asarray(_floats(vectors), np.float64), inverse.astype(np.uint8)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        data = _Data(vectors, weights, _exponent(vectors), pool if workers > 1 else None)
        centers = _fit(data, k)
        labels = data.labels(centers)
    exact = np.ldexp(centers, data.exponent)
    return exact, labels if inverse is None else labels[inverse]


def assign_vectors(points: Floats, centers: Floats, *, workers: int = 1) -> npt.NDArray[np.uint8]:
    """Label each vector by its nearest centre, the first of equally near ones.

    Parameters
    ----------
    points
        [n, d], as for :func:`cluster_vectors`.
    centers
        [k, d] with 1 <= k <= 256, any of the float dtypes: a table after rounding, say.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    uint8[n]
    """
    exponent = _exponent(points)
    scaled = np.ldexp(_floats(centers).astype(np.float64), -exponent)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return _Data(points, None, exponent, pool if workers > 1 else None).labels(scaled)


def _check(points: Floats, k: int, importance: npt.NDArray[np.float64] | None) -> None:
    if points.ndim != 2 or not points.size:
        raise ConfigError(
            f"vectors to cluster have to be a non-empty array [n, d], got shape {points.shape}; "
            "see as_vectors"
        )
    if not 1 <= k <= MAX_CENTERS:
        raise ConfigError(f"k has to be between 1 and {MAX_CENTERS}, got {k}; use fewer bits")
    if importance is not None and importance.shape != (len(points),):
        raise ConfigError(
            f"importance has to have one number a vector, ({len(points)},), got shape "
            f"{importance.shape}; add it up over the weights of a vector"
        )


# --- vectors, a block at a time -------------------------------------------------------------------


def _floats(values: Floats) -> Floats:
    """Values as float32 or float64, unchanged, with -0.0 as 0.0. May be a view."""
    if values.dtype.name == "bfloat16":
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << np.uint32(16)
        values = wide.view(np.float32)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    return np.asarray(values + values.dtype.type(0))


def _slices(n: int) -> Iterator[slice]:
    """Consecutive slices of a fixed length."""
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def _exponent(points: Floats) -> int:
    """The exponent e with ``2**(e-1) <= max |points| < 2**e``; 0 where all are zero.

    Vectors are clustered after division by ``2**e``: squares cannot overflow or vanish, and a
    power of two on the weights is the same power of two on the centres.
    """
    largest = max(float(np.abs(_floats(points[part])).max()) for part in _slices(len(points)))
    return math.frexp(largest)[1]


@attrs.frozen
class _Data:
    """Vectors with their importances, read in blocks.

    points [n, d]; weights float64[n], or None for 1; ``exponent`` of the power of two to divide by;
    ``blocks`` the columns of all blocks where they are kept.
    """

    points: Floats
    weights: npt.NDArray[np.float64] | None
    exponent: int
    pool: ThreadPoolExecutor | None = None
    blocks: tuple[Floats, ...] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def columns(self, rows: slice | npt.NDArray[np.int64]) -> Floats:
        """Some scaled vectors as [d, m], C-contiguous, in float32 or float64."""
        scaled = np.ascontiguousarray(_floats(self.points[rows]).T)
        # Two exact factors, as one can be out of float32's range. (ldexp is ten times slower.)
        half = self.exponent // 2
        scaled *= scaled.dtype.type(2.0**-half)
        scaled *= scaled.dtype.type(2.0 ** (half - self.exponent))
        return scaled

    def block(self, part: slice) -> Floats:
        """Columns of one of the blocks."""
        return self.columns(part) if self.blocks is None else self.blocks[part.start // _BLOCK]

    def kept(self) -> _Data:
        """The same, with its columns kept for many passes: 4 (float64: 8) bytes a weight."""
        return attrs.evolve(self, blocks=tuple(map(self.columns, _slices(len(self)))))

    def importance(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The importances of some vectors, float64[m]."""
        if self.weights is not None:
            return self.weights[rows]
        return np.ones(rows.stop - rows.start if isinstance(rows, slice) else len(rows))

    def map(self, function: Any) -> Iterator[Any]:
        """``function`` of each block's slice, in order."""
        parts = _slices(len(self))
        return map(function, parts) if self.pool is None else self.pool.map(function, parts)

    def labels(self, centers: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Nearest centre [k, d] of each vector, uint8[n]."""
        labels = np.empty(len(self), np.uint8)

        def label(part: slice) -> None:
            columns = self.block(part)
            nearest = np.empty(columns.shape[1], np.int32)
            distance = np.empty(columns.shape[1], columns.dtype)
            _assign(columns, centers.astype(columns.dtype), nearest, distance)
            labels[part] = nearest

        for _ in self.map(label):
            pass
        return labels


def _distinct(
    points: Floats, importance: npt.NDArray[np.float64] | None
) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """Distinct vectors, their added importances, and the place of each vector among them.

    Vectors come out in an order that depends only on their values, so that a permutation of the
    input is one of the labels and nothing else. None where there are many vectors and hardly any
    two alike: sorting them would cost more than it saves.
    """
    n = len(points)
    if n > 2 * _SAMPLE:
        some = points[:: n // (_SAMPLE // 4)]
        if _group(some)[1].max() + 1 > len(some) // 2:
            return None
    first, inverse = _group(points)
    weights = np.bincount(inverse, weights=importance, minlength=len(first))
    return points[first], weights.astype(np.float64), inverse


def _group(points: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each distinct vector a row that holds it, and for each row its distinct vector."""
    words = _words(points)
    order = np.argsort(words[0]) if len(words) == 1 else np.lexsort(words[::-1])
    starts = np.zeros(len(points), bool)
    starts[0] = True
    for word in words:
        in_order = word[order]
        starts[1:] |= in_order[1:] != in_order[:-1]
    inverse = np.empty(len(points), np.int64)
    inverse[order] = np.cumsum(starts) - 1
    return order[starts], inverse


def _words(points: Floats) -> list[npt.NDArray[np.uint64]]:
    """Bit patterns of vectors, joined to 64-bit words: equal words are equal vectors.

    The order of words is lexicographic in keys that grow with a power of two as the values do.
    """
    narrow = points.dtype.itemsize == 2
    bits = 16 if narrow else 8 * points.dtype.itemsize
    per_word = 64 // bits
    words = []
    for start in range(0, points.shape[1], per_word):
        word = np.zeros(len(points), np.uint64)
        for column in range(start, min(start + per_word, points.shape[1])):
            values = np.ascontiguousarray(points[:, column])
            codes = values.view(f"u{values.dtype.itemsize}")
            sign = codes.dtype.type(1 << (bits - 1))
            # -0.0 is the value 0.0; ascending codes make ascending values.
            codes = np.where(codes == sign, codes.dtype.type(0), codes)
            keys = np.where(codes & sign, ~codes, codes | sign)
            word = (word << np.uint64(bits % 64)) | keys.astype(np.uint64)
        words.append(word)
    return words


# --- the plan -------------------------------------------------------------------------------------


def _fit(data: _Data, k: int) -> npt.NDArray[np.float64]:
    """Centres float64[k', d] of the scaled vectors, in lexicographic order."""
    n = len(data)
    if n > 3 * _SAMPLE // 2:
        # One vector from each of equal stretches.
        edges = np.arange(_SAMPLE + 1, dtype=np.int64) * n // _SAMPLE
        draws = _uniforms(_SAMPLE, stream=0)
        rows = edges[:-1] + (draws * np.diff(edges)).astype(np.int64)
        weights = None if data.weights is None else data.weights[rows]
        if weights is not None and not weights.any():
            weights = None
        sample = _Data(data.points[rows], weights, data.exponent, data.pool)
    else:
        sample = data
    sample = sample.kept()
    # Where a start ends up varies by a percent or two, and shows early: of several starts the
    # better half goes on. Small problems vary most, and cost nothing.
    starts = 8 if len(sample) <= 20_000 else 4
    runs = [
        _lloyd(sample, _initial(sample, k, stream=stream), tolerance=1e-3, rounds=5)
        for stream in range(1, starts + 1)
    ]
    for tolerance in (1e-3, 1e-4):
        runs = sorted(runs, key=lambda run: run[1])[: max(1, len(runs) // 2)]
        runs = [
            _lloyd(sample, _searched(sample, centers), tolerance=tolerance, rounds=40)
            for centers, _ in runs
        ]
    runs = [_lloyd(sample, centers, tolerance=1e-5, rounds=200) for centers, _ in runs]
    best, cost = min(runs, key=lambda run: run[1])
    best = _swapped(sample, best, cost)
    if len(sample) < n:
        best, _ = _lloyd(data, best, tolerance=1e-4, rounds=20)
    return np.asarray(best[np.lexsort(best.T[::-1])])


def _uniforms(count: int, *, stream: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1). Raw bits: numpy keeps those the same for ever, its distributions not."""
    raw = np.random.PCG64([_SEED, stream]).random_raw(count)
    numbers: npt.NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _initial(data: _Data, k: int, *, stream: int) -> npt.NDArray[np.float64]:
    """k-means++ centres float64[k', d]; 64 vectors a centre are enough to choose from."""
    n, most = len(data), max(64 * k, 4096)
    edges = np.arange(most + 1, dtype=np.int64) * n // most
    rows = np.arange(n, dtype=np.int64) if n <= most else edges[:-1]
    weights = data.importance(rows)
    if not weights.any():
        rows, weights = np.arange(n, dtype=np.int64), data.importance(slice(0, n))
    trials = 2 + int(math.log(k))
    columns = data.columns(rows)
    chosen = _plus_plus(
        columns, weights, k, _uniforms(k * trials, stream=1000 + stream).reshape(k, trials)
    )
    return np.asarray(columns[:, chosen].T, np.float64)


def _searched(data: _Data, centers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centres after the local search."""
    everything = slice(0, len(data))
    columns = data.columns(everything)
    table = centers.astype(columns.dtype)
    draws = _uniforms(max(64, len(centers)), stream=2000)
    _local_search(columns, data.importance(everything), table, draws)
    return np.asarray(table, np.float64)


def _swapped(data: _Data, centers: npt.NDArray[np.float64], cost: float) -> npt.NDArray[np.float64]:
    """Centres [k, d] after swaps that pay only when Lloyd's iteration has followed them.

    As many attempts as are cheap: none for large problems, whose local optima are much alike.
    """
    attempts = min(int(_SWAP_WORK / (len(data) * centers.size)), 64)
    if len(centers) < 2 or not cost > 0:
        return centers
    everything = slice(0, len(data))
    columns, weights = data.columns(everything), data.importance(everything)
    draws = _uniforms(attempts, stream=3000)
    done = 0
    while done < attempts:
        table = centers.astype(columns.dtype)
        for position, gone in zip(
            *_suggested_swaps(columns, weights, table, draws[done:]), strict=True
        ):
            done += 1
            moved = centers.copy()
            moved[gone] = columns[:, position]
            moved, moved_cost = _lloyd(data, moved, tolerance=3e-4, rounds=8)
            if moved_cost < cost * (1 - 1e-6):
                centers, cost = _lloyd(data, moved, tolerance=1e-5, rounds=100)
                break
    return centers


def _lloyd(
    data: _Data, centers: npt.NDArray[np.float64], *, tolerance: float, rounds: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Lloyd's iteration: centres float64[k, d] and the cost before their last move.

    Stops after ``rounds``, or when a round lowers the cost by less than ``tolerance`` of it.
    """
    k, d = centers.shape
    before = math.inf
    cost = math.inf
    for _ in range(rounds):

        def block_sums(part: slice, table: npt.NDArray[np.float64] = centers) -> Any:
            columns = data.block(part)
            weights = data.importance(part)
            nearest = np.empty(len(weights), np.int32)
            distance = np.empty(len(weights), columns.dtype)
            _assign(columns, table.astype(columns.dtype), nearest, distance)
            sums, mass = np.zeros((k, d)), np.zeros(k)
            block_cost, farthest = _accumulate(columns, weights, nearest, distance, sums, mass)
            far = float(weights[farthest] * distance[farthest])
            return sums, mass, block_cost, far, columns[:, farthest].astype(np.float64)

        total, mass, cost = np.zeros((k, d)), np.zeros(k), 0.0
        far_points = []
        for sums, block_mass, block_cost, far, point in data.map(block_sums):
            total += sums
            mass += block_mass
            cost += block_cost
            far_points.append((far, point))
        used = mass > 0
        moved = centers.copy()
        moved[used] = total[used] / mass[used, None]
        far_points.sort(key=lambda pair: -pair[0])
        for empty, (far, point) in zip(np.flatnonzero(~used), far_points, strict=False):
            if far > 0:
                moved[empty] = point
        centers = moved
        if before - cost <= tolerance * cost and used.all():
            break
        before = cost
    return centers, cost


# --- kernels: columns [d, n] and centres [k, d] of one float dtype --------------------------------

_STRIP = 256
"""Vectors whose best distance stays in the first-level cache while all centres pass by."""


@njit(cache=True, nogil=True)
def _distances(columns, start, stop, center, out):  # type: ignore[no-untyped-def]
    """Squared distance of the vectors start .. stop to one centre [d], into out[0 .. stop-start].

    Four components at a time, so that the loops over vectors run in SIMD registers.
    """
    d = columns.shape[0]
    m = stop - start
    whole = d - d % 4
    if whole:
        x0, x1 = columns[0, start:stop], columns[1, start:stop]
        x2, x3 = columns[2, start:stop], columns[3, start:stop]
        c0, c1, c2, c3 = center[0], center[1], center[2], center[3]
        for i in range(m):
            a, b, c, e = x0[i] - c0, x1[i] - c1, x2[i] - c2, x3[i] - c3
            out[i] = (a * a + b * b) + (c * c + e * e)
    else:
        x0, c0 = columns[0, start:stop], center[0]
        for i in range(m):
            a = x0[i] - c0
            out[i] = a * a
        whole = 1
    for j in range(4, whole - 3, 4):
        x0, x1 = columns[j, start:stop], columns[j + 1, start:stop]
        x2, x3 = columns[j + 2, start:stop], columns[j + 3, start:stop]
        c0, c1, c2, c3 = center[j], center[j + 1], center[j + 2], center[j + 3]
        for i in range(m):
            a, b, c, e = x0[i] - c0, x1[i] - c1, x2[i] - c2, x3[i] - c3
            out[i] += (a * a + b * b) + (c * c + e * e)
    for j in range(whole, d):
        x0, c0 = columns[j, start:stop], center[j]
        for i in range(m):
            a = x0[i] - c0
            out[i] += a * a


@njit(cache=True, nogil=True)
def _assign(columns, centers, nearest, distance):  # type: ignore[no-untyped-def]
    """Nearest centre int32[n] and its squared distance, float[n]; the first of equal ones."""
    n = columns.shape[1]
    scratch = np.empty(_STRIP, columns.dtype)
    for start in range(0, n, _STRIP):
        stop = min(start + _STRIP, n)
        best, label = distance[start:stop], nearest[start:stop]
        _distances(columns, start, stop, centers[0], best)
        label[:] = 0
        for k in range(1, centers.shape[0]):
            _distances(columns, start, stop, centers[k], scratch)
            for i in range(stop - start):
                closer = scratch[i] < best[i]
                best[i] = scratch[i] if closer else best[i]
                label[i] = np.int32(k) if closer else label[i]


@njit(cache=True, nogil=True)
def _accumulate(columns, weights, nearest, distance, sums, mass):  # type: ignore[no-untyped-def]
    """Add vectors to ``sums`` [k, d] and importances to ``mass`` [k]; return cost, farthest row."""
    cost, far, farthest = 0.0, -1.0, 0
    for i in range(columns.shape[1]):
        w = weights[i]
        mass[nearest[i]] += w
        share = w * np.float64(distance[i])
        cost += share
        if share > far:
            far, farthest = share, i
    for j in range(columns.shape[0]):
        for i in range(columns.shape[1]):
            sums[nearest[i], j] += weights[i] * np.float64(columns[j, i])
    return cost, farthest


@njit(cache=True, nogil=True)
def _draw(cumulative, uniform):  # type: ignore[no-untyped-def]
    """First position whose cumulative weight is above ``uniform`` of the total."""
    target = uniform * cumulative[-1]
    low, high = 0, cumulative.size - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] > target:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def _plus_plus(columns, weights, k, draws):  # type: ignore[no-untyped-def]
    """Greedy k-means++: positions int64[k'] of the chosen vectors; stops where the cost is 0.

    ``draws`` float64[k, trials]: each step tries ``trials`` vectors and keeps the one that lowers
    the cost most.
    """
    n = columns.shape[1]
    chosen = np.empty(k, np.int64)
    cumulative = np.cumsum(weights)
    chosen[0] = _draw(cumulative, draws[0, 0])
    distance = np.empty(n, columns.dtype)
    trial = np.empty(n, columns.dtype)
    kept = np.empty(n, columns.dtype)
    _distances(columns, 0, n, columns[:, chosen[0]].copy(), distance)
    for step in range(1, k):
        total = 0.0
        for i in range(n):
            total += weights[i] * np.float64(distance[i])
            cumulative[i] = total
        if not total > 0.0:
            return chosen[:step].copy()
        lowest = np.inf
        for t in range(draws.shape[1]):
            candidate = _draw(cumulative, draws[step, t])
            _distances(columns, 0, n, columns[:, candidate].copy(), trial)
            # Four sums, since one would wait for each addition.
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
            for i in range(n):
                trial[i] = min(trial[i], distance[i])
            for i in range(0, n - 3, 4):
                s0 += weights[i] * np.float64(trial[i])
                s1 += weights[i + 1] * np.float64(trial[i + 1])
                s2 += weights[i + 2] * np.float64(trial[i + 2])
                s3 += weights[i + 3] * np.float64(trial[i + 3])
            for i in range(n - n % 4, n):
                s0 += weights[i] * np.float64(trial[i])
            cost = (s0 + s1) + (s2 + s3)
            if cost < lowest:
                lowest = cost
                chosen[step] = candidate
                kept, trial = trial, kept
        distance, kept = kept, distance
    return chosen


@njit(cache=True, nogil=True)
def _two_nearest(columns, i, centers, near, label):  # type: ignore[no-untyped-def]
    """Distances [n, 2] and labels [n, 2] of the nearest and the second centre of vector ``i``."""
    first, second = np.inf, np.inf
    a, b = 0, 0
    for k in range(centers.shape[0]):
        total = 0.0
        for j in range(columns.shape[0]):
            difference = np.float64(columns[j, i]) - np.float64(centers[k, j])
            total += difference * difference
        if total < first:
            first, second, a, b = total, first, k, a
        elif total < second:
            second, b = total, k
    near[i, 0], near[i, 1] = first, second
    label[i, 0], label[i, 1] = a, b


@njit(cache=True, nogil=True)
def _removal_costs(weights, near, label, cumulative, removal):  # type: ignore[no-untyped-def]
    """What losing each centre would cost, into ``removal`` [k], and the running cost of vectors."""
    removal[:] = 0.0
    total = 0.0
    for i in range(weights.size):
        total += weights[i] * near[i, 0]
        cumulative[i] = total
        removal[label[i, 0]] += weights[i] * (near[i, 1] - near[i, 0])
    return total


@njit(cache=True, nogil=True)
def _cheapest_swap(weights, near, label, removal, relief, trial):  # type: ignore[no-untyped-def]
    """The centre to give up for a vector at the distances ``trial``, and the change in cost.

    For a candidate at distance t of a vector whose nearest centres are at a <= b: without other
    changes the vector gains max(a - t, 0); if its nearest centre goes, it moves to min(b, t). So
    vectors with t >= b matter only through the removal cost b - a, summed beforehand.
    """
    gain = 0.0
    relief[:] = 0.0
    for i in range(weights.size):
        t = np.float64(trial[i])
        if t < near[i, 1]:
            relief[label[i, 0]] += weights[i] * (near[i, 1] - max(t, near[i, 0]))
            if t < near[i, 0]:
                gain += weights[i] * (near[i, 0] - t)
    gone, lowest = 0, np.inf
    for j in range(removal.size):
        if removal[j] - relief[j] < lowest:
            gone, lowest = j, removal[j] - relief[j]
    return gone, lowest - gain


@njit(cache=True, nogil=True)
def _local_search(columns, weights, centers, draws):  # type: ignore[no-untyped-def]
    """Move centres, in place, to vectors drawn by their cost, where that lowers the cost."""
    n, k = columns.shape[1], centers.shape[0]
    if k < 2:
        return
    near = np.empty((n, 2), np.float64)
    label = np.empty((n, 2), np.int32)
    for i in range(n):
        _two_nearest(columns, i, centers, near, label)
    cumulative = np.empty(n)
    removal = np.empty(k)
    relief = np.empty(k)
    trial = np.empty(n, columns.dtype)
    cost = _removal_costs(weights, near, label, cumulative, removal)
    for draw in draws:
        if not cost > 0.0:
            return
        point = columns[:, _draw(cumulative, draw)].copy()
        _distances(columns, 0, n, point, trial)
        gone, change = _cheapest_swap(weights, near, label, removal, relief, trial)
        if change > -1e-6 * cost:
            continue
        centers[gone] = point
        for i in range(n):
            t = np.float64(trial[i])
            if label[i, 0] == gone or label[i, 1] == gone:
                _two_nearest(columns, i, centers, near, label)
            elif t < near[i, 0]:
                near[i, 1], label[i, 1] = near[i, 0], label[i, 0]
                near[i, 0], label[i, 0] = t, gone
            elif t < near[i, 1]:
                near[i, 1], label[i, 1] = t, gone
        cost = _removal_costs(weights, near, label, cumulative, removal)


@njit(cache=True, nogil=True)
def _suggested_swaps(columns, weights, centers, draws):  # type: ignore[no-untyped-def]
    """For vectors drawn by their cost: their positions, and the centres that each best replaces.

    int64[m] and int64[m], m the number of draws.
    """
    n, k = columns.shape[1], centers.shape[0]
    near = np.empty((n, 2), np.float64)
    label = np.empty((n, 2), np.int32)
    for i in range(n):
        _two_nearest(columns, i, centers, near, label)
    cumulative = np.empty(n)
    removal = np.empty(k)
    relief = np.empty(k)
    trial = np.empty(n, columns.dtype)
    _removal_costs(weights, near, label, cumulative, removal)
    positions = np.empty(draws.size, np.int64)
    gone = np.empty(draws.size, np.int64)
    for m in range(draws.size):
        positions[m] = _draw(cumulative, draws[m])
        _distances(columns, 0, n, columns[:, positions[m]].copy(), trial)
        gone[m], _ = _cheapest_swap(weights, near, label, removal, relief, trial)
    return positions, gone
