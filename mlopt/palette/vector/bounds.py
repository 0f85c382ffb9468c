"""Kernels of :class:`mlopt.palette.vector.nearest.Nearest`: updates of bounds and labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.vector.distances import distances
from mlopt.palette.vector.strips import FOUR, LANES, LENGTH, least_of, meet, row_of, strip_for

_TIERS = 4
"""Number of parts of a cluster, by distance from its centre."""

_WORTH_TIERS = 512
"""Clusters of fewer vectors are not divided: each part has a fixed cost."""


class Points(NamedTuple):
    """The vectors to assign.

    columns: [d, m], float32 or float64; weights: float64 [m, 1], or [m, d] where ``by_element``, or
    [0, 0] for 1.
    """

    columns: npt.NDArray[Any]
    weights: npt.NDArray[np.float64]
    by_element: bool


class Known(NamedTuple):
    """The state of each vector: its label uint8[m], and bounds on distances [m].

    upper: on the distance to the centre of its label; lower: on those to all others.
    """

    labels: npt.NDArray[np.uint8]
    upper: npt.NDArray[Any]
    lower: npt.NDArray[Any]


class Moves(NamedTuple):
    """The effect of a move of all centres on the bounds of each cluster's vectors.

    own: how far its centre moved; half_gap: half the distance to the nearest other one; near: the
    largest move among the centres near to it; far: the least distance to one of the others. Near
    are ``members[starts[a] : starts[a + 1]]``, at the distances ``gaps``.
    """

    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.int16]
    gaps: npt.NDArray[Any]
    half_gap: npt.NDArray[Any]
    own: npt.NDArray[Any]
    near: npt.NDArray[Any]
    far: npt.NDArray[Any]


@njit(cache=True, nogil=True)
def near_centers(before, after, reach, contraction, moves):  # type: ignore[no-untyped-def]
    """Fill ``moves``: for each centre, the others that may be nearest to a vector of its cluster.

    For a vector of cluster a at distance u <= r of its centre, with a centre c at distance g of
    that: d(x, c) >= g - u, which is more than u where g > 2 r. ``far`` is the least g of such c,
    ``near`` the largest move among the others, ``gaps`` their g. (With weights of elements, lengths
    shrink by up to ``contraction``.) Margins of 1e-5 cover all roundings of float32; those of
    1e-13, float64.
    """
    starts, members, gaps, half_gap, own, near, far = moves
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
    """Return the weight of element ``j`` relative to the largest of vector ``i``."""
    largest = 0.0
    for e in range(weights.shape[1]):
        largest = max(largest, weights[i, e])
    return weights[i, j] / largest if largest > 0.0 else 0.0


@njit(cache=True, nogil=True)
def reassign(points, table, moves, known, exact):  # type: ignore[no-untyped-def]
    """Move the bounds, and find the nearest centre of vectors whose bounds fail.

    1. Bounds move; those that fail are tightened by the distance to the own centre.
    2. Vectors whose bounds still fail, strip by strip of one cluster: only the centres near to it
       that are not too far from all of the strip are compared.
    3. The strip is copied, and the centres, with infinite ones up to a multiple of four.
    4. The two smallest distances, the label of the first; with ``exact`` ties are settled.
    5. New labels and bounds.

    Returns the number of distances computed, and the largest upper bound of each cluster, [k].
    """
    columns, weights, by_element = points
    d, m = columns.shape
    reach = np.zeros(table.shape[0], columns.dtype)
    failed = np.empty(m, np.int32)
    # 1
    evaluations = _loosen(known, moves, failed)
    count = _tighten(points, table, known, moves.half_gap, failed[:evaluations])
    ends, order = _sorted_by_cluster(known.labels, known.upper, reach, failed[:count])
    strip = strip_for(columns, by_element)
    best, second = least_of(strip)
    compared = np.empty(table.shape[0] + FOUR, np.int16)
    centers = np.zeros((table.shape[0] + FOUR, strip.width), columns.dtype)
    for part in range(ends.size - 1):
        a = part // _TIERS
        for begin in range(ends[part], ends[part + 1], LENGTH):
            rows = order[begin : min(begin + LENGTH, ends[part + 1])]
            size = rows.size
            filled = (size + LANES - 1) // LANES * LANES
            # 2
            reached = columns.dtype.type(0)
            for i in range(size):
                reached = max(reached, known.upper[rows[i]])
            reached = reached + reached + moves.half_gap[a] + moves.half_gap[a]
            beyond = moves.far[a]
            some = 0
            for q in range(moves.starts[a], moves.starts[a + 1]):
                if moves.gaps[q] > reached:
                    beyond = min(beyond, moves.gaps[q])
                else:
                    compared[some] = moves.members[q]
                    some += 1
            # 3
            for q in range(some):
                for j in range(d):
                    centers[q, j] = table[compared[q], j]
            fours = (some + FOUR - 1) // FOUR * FOUR
            centers[some:fours, :d] = np.inf
            compared[some:fours] = a
            for j in range(d):
                vectors = row_of(strip, j)
                for i in range(size):
                    vectors[i] = columns[j, rows[i]]
                if by_element:
                    shares = row_of(strip, strip.width + j)
                    for i in range(size):
                        shares[i] = _share(weights, rows[i], j)
            best[:filled] = np.inf
            second[:filled] = np.inf
            strip.label[:filled] = a
            # 4
            meet(strip, filled, centers[:fours], compared, by_element)
            evaluations += size * some
            if exact:
                _settle_ties(strip, points, rows, table, compared[:some])
            # 5
            _store(strip, rows, beyond, known)
    reach[:] = 0
    for i in range(m):
        a = known.labels[i]
        reach[a] = max(reach[a], known.upper[i])
    return evaluations, reach


@njit(cache=True, nogil=True)
def _sorted_by_cluster(labels, upper, reach, failed):  # type: ignore[no-untyped-def]
    """Order ``failed`` rows by cluster, those near the centre before those far from it.

    Rows of a part are compared with the same centres: the nearer they are, the fewer. Part ``p`` is
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
def _loosen(known, moves, failed):  # type: ignore[no-untyped-def]
    """Move all bounds; write the rows whose bounds overlap to ``failed``, and return the number."""
    labels, upper, lower = known
    _, _, _, half_gap, own, near, far = moves
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
def _tighten(points, table, known, half_gap, failed):  # type: ignore[no-untyped-def]
    """Compute the distance to the own centre, and keep the rows whose bounds still overlap.

    They become the first of ``failed``; returns their number.
    """
    columns, weights, by_element = points
    labels, upper, lower = known
    up = columns.dtype.type(1.00001 if columns.itemsize == 4 else 1.0 + 1e-13)
    left = 0
    for f in range(failed.size):
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
def _store(strip, rows, far, known):  # type: ignore[no-untyped-def]
    """Write labels and bounds of vectors just compared with the centres near to theirs."""
    labels, upper, lower = known
    best, second = least_of(strip)
    one = best.dtype.type(1)
    margin = best.dtype.type(1e-5 if best.itemsize == 4 else 1e-13)
    for i in range(rows.size):
        row = rows[i]
        u = np.sqrt(best[i])
        low = np.sqrt(second[i]) * (one - margin)
        other = (far - upper[row]) * (one - margin)
        labels[row] = strip.label[i]
        upper[row] = u * (one + margin)
        lower[row] = other if other < low else low


@njit(cache=True, nogil=True)
def _settle_ties(strip, points, rows, table, compared):  # type: ignore[no-untyped-def]
    """Settle distances that are equal except for rounding: the first of the nearest in float64."""
    best, second = least_of(strip)
    columns, weights, by_element = points
    d = columns.shape[0]
    margin = 4.0 * (d + 4) * (1.2e-7 if columns.itemsize == 4 else 2.3e-16)
    for i in range(rows.size):
        if np.float64(second[i]) > np.float64(best[i]) * (1.0 + margin):
            continue
        least = np.inf
        for c in compared:
            total = 0.0
            for j in range(d):
                e = np.float64(columns[j, rows[i]]) - np.float64(table[c, j])
                total += weights[rows[i], j] * e * e if by_element else e * e
            if total < least:
                least = total
                strip.label[i] = c


@njit(cache=True, nogil=True)
def add_up(points, labels, sums, masses):  # type: ignore[no-untyped-def]
    """Add vectors to ``sums`` [k, d] and their weights to ``masses`` [k, 1 or d]."""
    columns, weights, _ = points
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
def weighted_cost(points, labels, table):  # type: ignore[no-untyped-def]
    """Return the weighted squared error, and the largest share of one vector with its row."""
    columns, weights, _ = points
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
