"""The nearest centre of each vector, again and again as the centres move.

Each vector keeps an upper bound on the distance to its own centre and a lower bound on the distance
to all others (Hamerly, "Making k-means even faster", 2010). When centres move, the triangle
inequality moves the bounds; while the upper one stays below the lower one, the label stays and no
distance is computed. Here the lower bound falls by the largest move among the centres *near* the
vector's own, those nearer than twice the cluster's radius, as the others cannot matter; one far
centre that jumps does not cost all vectors their bounds. Vectors whose bounds fail are compared
with the near centres only.

Work of one :meth:`Nearest.assign` of ``n`` vectors of ``d`` elements to ``k`` centres: at most
``n * (k + 1)`` distances (so many the first time), ``k**2`` between centres, and one walk over all
vectors: O(n k d + k**2 d) at worst, O(n d + k**2 d) once centres hardly move. Memory: ``4 d + 9``
bytes a vector (float64: ``8 d + 17``).

Everything is summed in a fixed order by blocks of a fixed length, so that the result is the same on
every machine and for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.vector.distances import STRIP, distances, keep_two, shared_distances
from mlopt.palette.vector.points import scaled_columns

Floats = npt.NDArray[Any]

BLOCK = 1 << 16
"""Vectors that are summed together. A part of the result: sums of blocks are added in order."""

_TIERS = 4
"""Parts of a cluster by distance from its centre."""

_WORTH_TIERS = 512
"""Vectors of a cluster below which they stay together: a part takes some time to begin with."""

_LANES = 32
"""Strips are filled up to a multiple of this, as loops over the rest of a few are slow."""

NO_WEIGHTS = np.empty((0, 0))
NO_WEIGHTS.flags.writeable = False


def slices(n: int) -> Iterator[slice]:
    """Consecutive slices of :data:`BLOCK` rows."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


@attrs.frozen(eq=False)
class _Block:
    """Some vectors [d, m] with what is known of each: label uint8[m], bounds on distances [m]."""

    columns: Floats
    weights: npt.NDArray[np.float64]
    labels: npt.NDArray[np.uint8]
    upper: Floats
    lower: Floats


def _made(columns: Floats, weights: npt.NDArray[np.float64], by_element: bool) -> _Block:
    m = columns.shape[1]
    upper = np.full(m, np.inf, columns.dtype)
    if by_element:
        # What weighs nothing is as near to each centre as to any other, for ever.
        upper[~weights.any(axis=1)] = -np.inf
    return _Block(columns, weights, np.zeros(m, np.uint8), upper, np.zeros(m, columns.dtype))


class Nearest:
    """Vectors, and which of some centres is nearest to each.

    Parameters
    ----------
    points
        [n, d]: float16, bfloat16, float32 or float64, finite.
    exponent
        The vectors are divided by ``2**exponent``, see
        :func:`mlopt.palette.vector.points.exponent_of`; centres are given so divided.
    weights
        float64[n], the importance of vectors; or float64[n, d], that of their elements, with the
        distance ``sqrt(sum_j weights[i, j] * (points[i, j] - center[j])**2)``; None for 1.
    pool
        Threads that take blocks; None for this one alone.

    Attributes
    ----------
    evaluations: distances of a vector to a centre computed so far.
    """

    def __init__(
        self,
        points: Floats,
        exponent: int,
        weights: npt.NDArray[np.float64] | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self._pool = pool
        self.by_element = weights is not None and weights.ndim == 2
        self.evaluations = 0
        self._table: Floats | None = None
        self._reach: Floats = np.empty(0)

        def block(part: slice) -> _Block:
            heavy = NO_WEIGHTS
            if weights is not None:
                heavy = np.ascontiguousarray(weights[part]).reshape(part.stop - part.start, -1)
                heavy.flags.writeable = False  # kernels are compiled for these alone
            return _made(scaled_columns(points[part], exponent), heavy, self.by_element)

        self._blocks = [block(part) for part in slices(len(points))]
        least = 1.0
        if self.by_element:
            least = min(_least_share(block.weights) for block in self._blocks)
        self._contraction = float(np.sqrt(least))

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """uint8[n]."""
        return np.concatenate([block.labels for block in self._blocks])

    def assign(
        self, centers: npt.NDArray[np.float64], *, exact: bool = False
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Label each vector by the nearest centre, and add up the vectors of each.

        Parameters
        ----------
        centers
            float64[k, d], 1 <= k <= 256, the same k in all calls. Rounded to the dtype in which
            distances are computed: float32, or float64 for vectors of float64.
        exact
            Compare nearly equal distances in float64, and of equal ones take the first centre. For
            labels to keep; the iteration in between does not care.

        Returns
        -------
        sums, masses
            float64[k, d] and float64[k, 1] (with importance of elements [k, d]).
        """
        table = centers.astype(self._blocks[0].columns.dtype)
        moves = self._moves(table)
        k, d = table.shape

        def one(block: _Block) -> Any:
            sums = np.zeros((k, d))
            masses = np.zeros((k, d if self.by_element else 1))
            reach = np.zeros(k, table.dtype)
            count = _reassign(
                block.columns,
                block.weights,
                self.by_element,
                table,
                *moves,
                block.labels,
                block.upper,
                block.lower,
                exact,
                reach,
            )
            _add_up(block.columns, block.weights, block.labels, sums, masses)
            return sums, masses, reach, count

        sums, masses = np.zeros((k, d)), np.zeros((k, d if self.by_element else 1))
        reach = np.zeros(k, table.dtype)
        for block_sums, block_masses, block_reach, count in self._each(one):
            sums += block_sums
            masses += block_masses
            np.maximum(reach, block_reach, out=reach)
            self.evaluations += count
        self._table, self._reach = table, reach
        return sums, masses

    def cost(self) -> float:
        """``sum_i weights[i] * |point - center|**2`` with the labels and centres of last time."""
        assert self._table is not None
        return sum(
            float(_cost(b.columns, b.weights, b.labels, self._table)[0]) for b in self._blocks
        )

    def farthest(self, count: int) -> npt.NDArray[np.float64]:
        """Up to ``count`` of the vectors that cost most, of one block one, none that cost nothing.

        float64[m, d], the most expensive first.
        """
        assert self._table is not None
        if count == 0:
            return np.empty((0, self._table.shape[1]))
        found = []
        for block in self._blocks:
            _, cost, row = _cost(block.columns, block.weights, block.labels, self._table)
            if cost > 0:
                found.append((cost, block.columns[:, row].astype(np.float64)))
        found.sort(key=lambda pair: -pair[0])
        return np.array([point for _, point in found[:count]]).reshape(-1, self._table.shape[1])

    def _each(self, function: Callable[[_Block], Any]) -> Iterator[Any]:
        if self._pool is None or len(self._blocks) == 1:
            return map(function, self._blocks)
        return self._pool.map(function, self._blocks)

    def _moves(self, table: Floats) -> tuple[Floats, ...]:
        """What the move from the last centres to ``table`` does to the bounds of each cluster."""
        k = len(table)
        half_gap, own, near, far = np.zeros((4, k), table.dtype)
        starts = np.zeros(k + 1, np.int64)
        members = np.empty(k * k, np.int16)
        gaps = np.zeros(k * k, table.dtype)
        if self._table is None:
            starts[1:] = k
            members[:k] = np.arange(k)
            far[:] = np.inf
        else:
            contraction = self._contraction
            _near_centers(
                self._table,
                table,
                self._reach,
                contraction,
                half_gap,
                own,
                near,
                far,
                starts,
                members,
                gaps,
            )
        return starts, members, gaps, half_gap, own, near, far


def _least_share(weights: npt.NDArray[np.float64]) -> float:
    """The smallest weight of an element beside the largest of its vector; vectors of none aside."""
    largest = weights.max(axis=1)
    some = largest > 0
    if not some.any():
        return 1.0
    return float((weights[some].min(axis=1) / largest[some]).min())


@njit(cache=True, nogil=True)
def _near_centers(  # type: ignore[no-untyped-def]
    before, after, reach, contraction, half_gap, own, near, far, starts, members, gaps
):
    """For each centre the others that may be nearest to a vector of its cluster, ascending.

    For a vector of cluster a at distance u <= r of its centre, with a centre c at distance g of
    that: d(x, c) >= g - u, which is more than u where g > 2 r. ``far`` is the least g of such c,
    ``near`` the largest move among the others, ``gaps`` their g. (With weights of elements, lengths
    shrink by up to ``contraction``.) Margins of 1e-5 cover all roundings of float32; those of
    1e-13, float64.
    """
    k, d = after.shape
    margin = 1e-5 if after.itemsize == 4 else 1e-13
    up, down = 1.0 + margin, 1.0 - margin
    columns = np.empty((d, k))
    moved = np.zeros(k)
    for j in range(d):
        for c in range(k):
            columns[j, c] = after[c, j]
            a = columns[j, c] - np.float64(before[c, j])
            moved[c] += a * a
    for c in range(k):
        moved[c] = np.sqrt(moved[c]) * up
        own[c] = moved[c] * up
    gap = np.empty(k)
    count = 0
    for a in range(k):
        distances(columns, 0, k, columns[:, a].copy(), gap)
        for c in range(k):
            gap[c] = contraction * np.sqrt(gap[c]) * down
        gap[a] = np.inf
        least = gap.min()
        gap[a] = 0.0
        radius = 2.0 * (np.float64(reach[a]) + moved[a]) * up + least
        nearest_far, largest = np.inf, 0.0
        for c in range(k):
            g = gap[c]
            if g > radius:
                nearest_far = min(nearest_far, g)
            else:
                members[count] = c
                gaps[count] = g
                count += 1
                if c != a:
                    largest = max(largest, moved[c])
        starts[a + 1] = count
        half_gap[a] = 0.5 * least * down
        near[a] = largest * up
        far[a] = nearest_far * down


@njit(cache=True, nogil=True)
def _share(weights, i, j):  # type: ignore[no-untyped-def]
    """The weight of element ``j`` beside the largest of vector ``i``."""
    largest = 0.0
    for e in range(weights.shape[1]):
        largest = max(largest, weights[i, e])
    return weights[i, j] / largest if largest > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _reassign(  # type: ignore[no-untyped-def]
    columns,
    weights,
    by_element,
    table,
    starts,
    members,
    gaps,
    half_gap,
    own,
    near,
    far,
    labels,
    upper,
    lower,
    exact,
    reach,
):
    """Move the bounds, and find the nearest centre of vectors whose bounds fail.

    Returns the number of distances computed; ``reach`` [k] becomes the largest upper bound of each
    cluster.
    """
    d, m = columns.shape
    k = table.shape[0]
    failed = np.empty(m, np.int32)
    count = _loosen(labels, upper, lower, half_gap, own, near, far, failed)
    evaluations = count
    count = _tighten(
        columns, weights, by_element, table, labels, upper, lower, half_gap, failed, count
    )
    ends, order = _sorted_by_cluster(labels, upper, reach, failed[:count])
    buffer = np.empty((d, STRIP), columns.dtype)
    shares = np.empty((d if by_element else 0, STRIP), columns.dtype)
    trial = np.empty(STRIP, columns.dtype)
    best = np.empty(STRIP, columns.dtype)
    second = np.empty(STRIP, columns.dtype)
    label = np.empty(STRIP, np.int32)
    compared = np.empty(k, np.int16)
    for part in range(ends.size - 1):
        a = part // _TIERS
        for begin in range(ends[part], ends[part + 1], STRIP):
            rows = order[begin : min(begin + STRIP, ends[part + 1])]
            size = rows.size
            filled = (size + _LANES - 1) // _LANES * _LANES
            reached = columns.dtype.type(0)
            for i in range(size):
                reached = max(reached, upper[rows[i]])
            reached = reached + reached + half_gap[a] + half_gap[a]
            beyond = far[a]
            some = 0
            for q in range(starts[a], starts[a + 1]):
                if gaps[q] > reached:
                    beyond = min(beyond, gaps[q])
                else:
                    compared[some] = members[q]
                    some += 1
            for j in range(d):
                for i in range(size):
                    buffer[j, i] = columns[j, rows[i]]
                    if by_element:
                        shares[j, i] = _share(weights, rows[i], j)
                buffer[j, size:filled] = 0
            best[:filled] = np.inf
            second[:filled] = np.inf
            label[:filled] = a
            for q in range(some):
                c = compared[q]
                if by_element:
                    shared_distances(buffer, shares, filled, table[c], trial)
                else:
                    distances(buffer, 0, filled, table[c], trial)
                keep_two(trial, filled, c, best, second, label)
            evaluations += size * some
            if exact:
                _settle_ties(
                    buffer, weights, by_element, rows, table, compared[:some], best, second, label
                )
            _store(rows, best, second, label, beyond, labels, upper, lower)
    reach[:] = 0
    for i in range(m):
        a = labels[i]
        reach[a] = max(reach[a], upper[i])
    return evaluations


@njit(cache=True, nogil=True)
def _sorted_by_cluster(labels, upper, reach, failed):  # type: ignore[no-untyped-def]
    """``failed`` rows of one cluster together, those near its centre before those far from it.

    They are compared with the same centres, the fewer the nearer they are. Part ``p`` of them is
    ``order[ends[p] : ends[p + 1]]``, of cluster ``p // _TIERS``.
    """
    k = reach.size
    counts = np.zeros(k, np.int64)
    for f in range(failed.size):
        a = labels[failed[f]]
        counts[a] += 1
        reach[a] = max(reach[a], upper[failed[f]])
    part = np.empty(failed.size, np.int32)
    ends = np.zeros(k * _TIERS + 1, np.int64)
    for f in range(failed.size):
        a = np.int64(labels[failed[f]])
        u, r = upper[failed[f]], reach[a]
        tier = (0 if u <= 0.5 * r else 1) if u <= 0.7 * r else (2 if u <= 0.85 * r else 3)
        tier = tier if counts[a] >= _WORTH_TIERS else 0
        part[f] = a * _TIERS + tier
        ends[part[f] + 1] += 1
    for p in range(k * _TIERS):
        ends[p + 1] += ends[p]
    order = np.empty(failed.size, np.int32)
    begins = ends.copy()
    for f in range(failed.size):
        order[begins[part[f]]] = failed[f]
        begins[part[f]] += 1
    return ends, order


@njit(cache=True, nogil=True)
def _loosen(labels, upper, lower, half_gap, own, near, far, failed):  # type: ignore[no-untyped-def]
    """Move all bounds; the rows whose bounds overlap into ``failed``, how many is returned."""
    one = upper.dtype.type(1)
    margin = upper.dtype.type(1e-6 if upper.itemsize == 4 else 1e-14)
    up, down = one + margin, one - margin
    count = 0
    for i in range(labels.size):
        a = np.int64(labels[i])
        u = (upper[i] + own[a]) * up
        low = min((lower[i] - near[a]) * down, (far[a] - u) * down)
        upper[i] = u
        lower[i] = low
        if not u < max(low, half_gap[a]):
            failed[count] = i
            count += 1
    return count


@njit(cache=True, nogil=True)
def _tighten(  # type: ignore[no-untyped-def]
    columns, weights, by_element, table, labels, upper, lower, half_gap, failed, count
):
    """Compute the distance to the own centre, and keep the rows whose bounds still overlap."""
    up = columns.dtype.type(1.00001 if columns.itemsize == 4 else 1.0 + 1e-13)
    left = 0
    for f in range(count):
        i = failed[f]
        a = labels[i]
        total = columns.dtype.type(0)
        for j in range(columns.shape[0]):
            e = columns[j, i] - table[a, j]
            if by_element:
                total += columns.dtype.type(_share(weights, i, j)) * e * e
            else:
                total += e * e
        u = np.sqrt(total) * up
        bound = lower[i] if lower[i] > half_gap[a] else half_gap[a]
        if u < upper[i]:
            upper[i] = u
        failed[left] = i
        left += 0 if u < bound else 1
    return left


@njit(cache=True, nogil=True)
def _store(rows, best, second, label, far, labels, upper, lower):  # type: ignore[no-untyped-def]
    """Labels and bounds of vectors just compared with the centres near to theirs."""
    one = best.dtype.type(1)
    margin = best.dtype.type(1e-5 if best.itemsize == 4 else 1e-13)
    for i in range(rows.size):
        row = rows[i]
        u = np.sqrt(best[i])
        low = np.sqrt(second[i]) * (one - margin)
        other = (far - upper[row]) * (one - margin)
        labels[row] = label[i]
        upper[row] = u * (one + margin)
        lower[row] = other if other < low else low


@njit(cache=True, nogil=True)
def _settle_ties(  # type: ignore[no-untyped-def]
    buffer, weights, by_element, rows, table, near_ones, best, second, label
):
    """Where two distances are equal but for roundings: the first of the nearest in float64."""
    d = buffer.shape[0]
    margin = 4.0 * (d + 4) * (1.2e-7 if buffer.itemsize == 4 else 2.3e-16)
    for i in range(rows.size):
        if np.float64(second[i]) > np.float64(best[i]) * (1.0 + margin):
            continue
        least = np.inf
        for c in near_ones:
            total = 0.0
            for j in range(d):
                e = np.float64(buffer[j, i]) - np.float64(table[c, j])
                total += weights[rows[i], j] * e * e if by_element else e * e
            if total < least:
                least = total
                label[i] = c


@njit(cache=True, nogil=True)
def _add_up(columns, weights, labels, sums, masses):  # type: ignore[no-untyped-def]
    """Add vectors to ``sums`` [k, d] and their weights to ``masses`` [k, 1 or d]."""
    d, m = columns.shape
    if weights.shape[1] == 0:
        for i in range(m):
            masses[labels[i], 0] += 1.0
        for j in range(d):
            for i in range(m):
                sums[labels[i], j] += np.float64(columns[j, i])
    else:
        for j in range(d):
            w = min(j, weights.shape[1] - 1)
            count = j < weights.shape[1]
            for i in range(m):
                h = weights[i, w]
                sums[labels[i], j] += h * np.float64(columns[j, i])
                if count:
                    masses[labels[i], w] += h


@njit(cache=True, nogil=True)
def _cost(columns, weights, labels, table):  # type: ignore[no-untyped-def]
    """The weighted squared error, and the largest share of one vector with its row."""
    d, m = columns.shape
    cost, most, row = 0.0, -1.0, 0
    width = weights.shape[1]
    for i in range(m):
        a = labels[i]
        share = 0.0
        for j in range(d):
            e = np.float64(columns[j, i]) - np.float64(table[a, j])
            share += e * e if width == 0 else weights[i, min(j, width - 1)] * e * e
        cost += share
        if share > most:
            most, row = share, i
    return cost, most, row
