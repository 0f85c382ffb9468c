"""Kernels of passes in float32 on the CPU: attention is made, used and dropped block by block.

A block of points is laid out with the points along the rows of small arrays (``[d, BLOCK]``, and
``[K, BLOCK]`` for attention), so that every inner loop runs along memory and is compiled to vector
instructions. Within a block everything is float32; sums over blocks are float64.

Kernels take points as :class:`Attended`. An optional array without elements stands for None. The
blocks of a group are taken in order: the result depends on how points are split over calls, not on
threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit


class Attended(NamedTuple):
    """Points and what they attend to, all C-contiguous.

    points: float32[G, n, d]; centroids: float32[G, K, d]; rates: float32[G], the reciprocal of the
    temperature.
    """

    points: npt.NDArray[np.float32]
    centroids: npt.NDArray[np.float32]
    rates: npt.NDArray[np.float32]


BLOCK = 256

_POINTS_A_BUCKET = 16

_REORDERED = {"reassoc", "nsz", "contract"}
"""A sum along a block is compiled to vector instructions only if its terms may be reordered."""

_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-125.0)
_NEGLIGIBLE = 40.0
"""Attention of ``exp(-40)``, 4e-18, or less changes no digit of a float32 sum."""

# (2**f - 1) / f for -1 < f <= 0, fitted at Chebyshev points: relative error of 2**f 1.1e-8.
_E0 = np.float32(0.6931471749169125)
_E1 = np.float32(0.2402260974359895)
_E2 = np.float32(0.0554992775465356)
_E3 = np.float32(0.009597169027544806)
_E4 = np.float32(0.0012917894609807328)
_E5 = np.float32(0.00011498086589695489)


@njit(cache=True, nogil=True, error_model="numpy")
def _exponentials(row, least, rate):  # type: ignore[no-untyped-def]
    """Replace each distance by ``exp(-(distance - least) * rate)``; float32[BLOCK] both.

    Below 2**-125 it is zero. The functions of the mathematics library take one number at a time.
    """
    one = np.float32(1.0)
    zero = np.float32(0.0)
    scale = rate * _LOG2_E
    for i in range(BLOCK):
        exponent = (least[i] - row[i]) * scale
        inside = exponent if exponent > _LOWEST else _LOWEST
        whole = np.int32(inside)  # towards zero, so that the rest is in (-1, 0]
        f = inside - np.float32(whole)
        power = one + f * (_E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * _E5)))))
        power *= np.int32((whole + 127) << 23).view(np.float32)
        row[i] = power if exponent > _LOWEST else zero


@njit(cache=True, nogil=True, error_model="numpy")
def _load(points, first, block):  # type: ignore[no-untyped-def]
    """Lay ``points[first:]`` (float32[n, d]) out as float32[d, BLOCK]; returns how many there are.

    The last point is repeated to the end of the block: loops of constant length are the fast ones.
    """
    n, d = points.shape
    count = min(BLOCK, n - first)
    for j in range(d):
        for i in range(count):
            block[j, i] = points[first + i, j]
        for i in range(count, BLOCK):
            block[j, i] = points[n - 1, j]
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _load_mass(mass, first, count, block):  # type: ignore[no-untyped-def]
    """Lay ``mass[first:]`` out as float32[BLOCK], 1 each for none, and zero for what is padding."""
    for i in range(count):
        block[i] = mass[first + i] if mass.size else np.float32(1.0)
    for i in range(count, BLOCK):
        block[i] = np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _extent(row):  # type: ignore[no-untyped-def]
    low = row[0]
    high = row[0]
    for i in range(BLOCK):
        low = min(low, row[i])
        high = max(high, row[i])
    return low, high


@njit(cache=True, nogil=True, error_model="numpy")
def _find_active(block, centroids, rate, extents, active):  # type: ignore[no-untyped-def]
    """List the centroids that any point of a block can attend to; returns their number.

    The difference of a point's squared distances to two centroids is linear in the point: over the
    bounding box of the block it is least at a corner. Where it exceeds ``_NEGLIGIBLE``
    temperatures, the attention is taken for zero. Sorted points leave a few centroids in every
    block.
    """
    k_count, d = centroids.shape
    # 1. the bounding box of the block
    for j in range(d):
        extents[j, 0], extents[j, 1] = _extent(block[j])
    # 2. the centroid that is nearest to its centre
    nearest = 0
    nearest_distance = np.inf
    for k in range(k_count):
        distance = 0.0
        for j in range(d):
            away = 0.5 * (extents[j, 0] + extents[j, 1]) - centroids[k, j]
            distance += away * away
        if distance < nearest_distance:
            nearest_distance = distance
            nearest = k
    # 3. those that are not negligible relative to it at every corner
    count = 0
    for k in range(k_count):
        bound = 0.0
        for j in range(d):
            here = np.float64(centroids[k, j])
            there = np.float64(centroids[nearest, j])
            middle = 0.5 * (here + there)
            slope = 2.0 * (there - here)
            bound += min(slope * (extents[j, 0] - middle), slope * (extents[j, 1] - middle))
        if not bound * rate > _NEGLIGIBLE:
            active[count] = k
            count += 1
    return count


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def _attend(block, centroids, rate, scratch):  # type: ignore[no-untyped-def]
    """Fill ``attention[:count]`` for the centroids ``active[:count]``; returns ``count``.

    scratch: extents float64[d, 2], active int64[K], attention float32[K, BLOCK], least and total
    float32[BLOCK].
    """
    extents, active, attention, least, total = scratch
    # 1. which centroids take part
    count = _find_active(block, centroids, rate, extents, active)
    # 2. squared distances, and the least of each point
    least[:] = np.float32(np.inf)
    total[:] = np.float32(0.0)
    for a in range(count):
        k = active[a]
        row = attention[a]
        centre = centroids[k, 0]
        for i in range(BLOCK):
            away = block[0, i] - centre
            row[i] = away * away
        for j in range(1, block.shape[0]):
            centre = centroids[k, j]
            for i in range(BLOCK):
                away = block[j, i] - centre
                row[i] += away * away
        for i in range(BLOCK):
            least[i] = row[i] if row[i] < least[i] else least[i]
    # 3. exponentials, and their total for each point
    for a in range(count):
        row = attention[a]
        _exponentials(row, least, rate)
        for i in range(BLOCK):
            total[i] += row[i]
    # 4. the softmax
    for i in range(BLOCK):
        total[i] = np.float32(1.0) / total[i]
    for a in range(count):
        row = attention[a]
        for i in range(BLOCK):
            row[i] *= total[i]
    return count


@njit(cache=True, nogil=True)
def _make_scratch(k_count, d):  # type: ignore[no-untyped-def]
    return (
        np.empty((d, 2), np.float64),
        np.empty(k_count, np.int64),
        np.empty((k_count, BLOCK), np.float32),
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def add_sums(attended, mass, sums):  # type: ignore[no-untyped-def]
    """Add ``sum_n h a_nk`` and ``sum_n h a_nk (v_n - c_k)`` to float64[G, K, 1 + d]."""
    points, centroids, rates = attended
    groups, n, d = points.shape
    k_count = centroids.shape[1]
    block = np.empty((d, BLOCK), np.float32)
    weight = np.empty(BLOCK, np.float32)
    scratch = _make_scratch(k_count, d)
    active, attention = scratch[1], scratch[2]
    for g in range(groups):
        for first in range(0, n, BLOCK):
            count = _load(points[g], first, block)
            _load_mass(mass[g] if mass.size else mass[0], first, count, weight)
            count_active = _attend(block, centroids[g], rates[g], scratch)
            for a in range(count_active):
                k = active[a]
                row = attention[a]
                size = np.float32(0.0)
                for i in range(BLOCK):
                    row[i] *= weight[i]
                    size += row[i]
                sums[g, k, 0] += size
                for j in range(d):
                    centre = centroids[g, k, j]
                    moment = np.float32(0.0)
                    for i in range(BLOCK):
                        moment += row[i] * (block[j, i] - centre)
                    sums[g, k, 1 + j] += moment


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def fill_soft(attended, moved, soft):  # type: ignore[no-untyped-def]
    """Write ``sum_k a_nk c'_k`` to float32[G, n, d]; ``moved`` is ``c'``, float32[G, K, d]."""
    points, centroids, rates = attended
    groups, n, d = points.shape
    k_count = centroids.shape[1]
    block = np.empty((d, BLOCK), np.float32)
    out = np.empty((d, BLOCK), np.float32)
    scratch = _make_scratch(k_count, d)
    active, attention = scratch[1], scratch[2]
    for g in range(groups):
        for first in range(0, n, BLOCK):
            count = _load(points[g], first, block)
            out[:] = np.float32(0.0)
            count_active = _attend(block, centroids[g], rates[g], scratch)
            for a in range(count_active):
                row = attention[a]
                for j in range(d):
                    value = moved[g, active[a], j]
                    for i in range(BLOCK):
                        out[j, i] += row[i] * value
            for j in range(d):
                for i in range(count):
                    soft[g, first + i, j] = out[j, i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def pull_soft(attended, moved, pull, mass, sums, gradient):  # type: ignore[no-untyped-def]
    """Take the gradient of :func:`fill_soft` back to ``c'``, to ``c`` and to the points.

    Parameters
    ----------
    pull
        float32[G, n, d], the gradient of each output; none for 1 each.
    mass
        float32[G, n], what multiplies a point's share in the sums; none for 1 each.
    sums
        float64[G, K, 2 d], added to: the gradients with respect to ``c'`` and to ``c``.
    gradient
        float32[G, n, d], written, with respect to the points.
    """
    points, centroids, rates = attended
    groups, n, d = points.shape
    k_count = centroids.shape[1]
    block = np.empty((d, BLOCK), np.float32)
    out = np.empty((d, BLOCK), np.float32)
    pulls = np.ones((d, BLOCK), np.float32)
    weight = np.empty(BLOCK, np.float32)
    scores = np.empty((k_count, BLOCK), np.float32)
    mean = np.empty(BLOCK, np.float32)
    scratch = _make_scratch(k_count, d)
    active, attention = scratch[1], scratch[2]
    for g in range(groups):
        twice = np.float32(2.0) * rates[g]
        for first in range(0, n, BLOCK):
            count = _load(points[g], first, block)
            if pull.size:
                _load(pull[g], first, pulls)
            _load_mass(mass[g] if mass.size else mass[0], first, count, weight)
            out[:] = np.float32(0.0)
            mean[:] = np.float32(0.0)
            # 1. attention
            count_active = _attend(block, centroids[g], rates[g], scratch)
            # 2. x_nk = g_n . c'_k, and its mean over the attention
            for a in range(count_active):
                row = attention[a]
                score = scores[a]
                score[:] = np.float32(0.0)
                for j in range(d):
                    value = moved[g, active[a], j]
                    for i in range(BLOCK):
                        score[i] += pulls[j, i] * value
                for i in range(BLOCK):
                    mean[i] += row[i] * score[i]
            # 3. r_nk = a_nk (x_nk - mean), and what it and g_n give to the point, to c and to c'
            for a in range(count_active):
                k = active[a]
                row = attention[a]
                score = scores[a]
                for i in range(BLOCK):
                    score[i] = row[i] * (score[i] - mean[i])
                for j in range(d):
                    centre = centroids[g, k, j]
                    to_moved = np.float32(0.0)
                    to_start = np.float32(0.0)
                    for i in range(BLOCK):
                        out[j, i] += score[i] * centre
                        to_moved += weight[i] * row[i] * pulls[j, i]
                        to_start += weight[i] * score[i] * (block[j, i] - centre)
                    sums[g, k, j] += to_moved
                    sums[g, k, d + j] += np.float64(twice) * to_start
            # 4. without the padding
            for j in range(d):
                for i in range(count):
                    gradient[g, first + i, j] = twice * out[j, i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def pull_update(attended, moved, share, mass, is_each, sums, gradient):  # type: ignore[no-untyped-def]
    """Take the gradient of an update of the centroids back to ``c`` and to the points.

    Parameters
    ----------
    share
        float32[G, K, d], the gradient with respect to ``c'`` divided by the sizes ``S``.
    mass
        float32[G, n], none for 1 each.
    is_each
        Whether ``gradient`` is for one of the points that a value with a mass stands for.
    sums
        float64[G, K, d], added to: the gradient with respect to ``c``.
    gradient
        float32[G, n, d], added to.
    """
    points, centroids, rates = attended
    groups, n, d = points.shape
    k_count = centroids.shape[1]
    block = np.empty((d, BLOCK), np.float32)
    out = np.empty((d, BLOCK), np.float32)
    weight = np.empty(BLOCK, np.float32)
    scores = np.empty((k_count, BLOCK), np.float32)
    mean = np.empty(BLOCK, np.float32)
    scratch = _make_scratch(k_count, d)
    active, attention = scratch[1], scratch[2]
    for g in range(groups):
        twice = np.float32(2.0) * rates[g]
        for first in range(0, n, BLOCK):
            count = _load(points[g], first, block)
            _load_mass(mass[g] if mass.size else mass[0], first, count, weight)
            out[:] = np.float32(0.0)
            mean[:] = np.float32(0.0)
            # 1. attention
            count_active = _attend(block, centroids[g], rates[g], scratch)
            # 2. x_nk = gam_k . (v_n - c'_k) / S_k, and its mean over the attention
            for a in range(count_active):
                k = active[a]
                row = attention[a]
                score = scores[a]
                score[:] = np.float32(0.0)
                for j in range(d):
                    value = share[g, k, j]
                    centre = moved[g, k, j]
                    for i in range(BLOCK):
                        score[i] += value * (block[j, i] - centre)
                for i in range(BLOCK):
                    mean[i] += row[i] * score[i]
            # 3. r_nk = a_nk (x_nk - mean), and what it gives to the point and to c
            for a in range(count_active):
                k = active[a]
                row = attention[a]
                score = scores[a]
                for i in range(BLOCK):
                    score[i] = twice * row[i] * (score[i] - mean[i])
                for j in range(d):
                    value = share[g, k, j]
                    centre = centroids[g, k, j]
                    to_start = np.float32(0.0)
                    for i in range(BLOCK):
                        out[j, i] += row[i] * value + score[i] * centre
                        to_start += weight[i] * score[i] * (block[j, i] - centre)
                    sums[g, k, j] += to_start
            # 4. without the padding, and with the mass unless a point stands for many
            for j in range(d):
                for i in range(count):
                    factor = np.float32(1.0) if is_each else weight[i]
                    gradient[g, first + i, j] += factor * out[j, i]


@njit(cache=True, nogil=True, error_model="numpy")
def fill_bucket_orders(points, orders):  # type: ignore[no-untyped-def]
    """Write for each group an order in which its points nearly ascend.

    A count over equal steps of their range, one to ``_POINTS_A_BUCKET`` points, which takes a tenth
    of the time of a sort. points: float32[G, n, 1], n > 0; orders: uint16[G, n], n <= 65,536.
    """
    groups, n, _ = points.shape
    buckets = max(1, n // _POINTS_A_BUCKET)
    first = np.empty(buckets + 1, np.int64)
    bucket_of = np.empty(n, np.uint16)
    for g in range(groups):
        # 1. the range of the points
        low = points[g, 0, 0]
        high = points[g, 0, 0]
        for i in range(n):
            low = min(low, points[g, i, 0])
            high = max(high, points[g, i, 0])
        # 2. the bucket of each point, and the count of the bucket before
        width = np.float64(high) - low
        scale = (buckets - 1) / width if width > 0.0 else 0.0
        first[:] = 0
        for i in range(n):
            place = (np.float64(points[g, i, 0]) - low) * scale
            # values that are not finite get a bucket too
            bucket_of[i] = np.uint16(place) if 0.0 <= place < buckets else 0
            first[bucket_of[i] + 1] += 1
        # 3. where each bucket starts
        for b in range(buckets):
            first[b + 1] += first[b]
        # 4. points into their buckets, in their order
        for i in range(n):
            orders[g, first[bucket_of[i]]] = i
            first[bucket_of[i]] += 1


@njit(cache=True, nogil=True)
def take_in_order(values, orders, taken):  # type: ignore[no-untyped-def]
    """Write ``values`` to ``taken``, float32[G, n, 1] both, in the order of uint16[G, n]."""
    groups, n = orders.shape
    for g in range(groups):
        for i in range(n):
            taken[g, i, 0] = values[g, orders[g, i], 0]


@njit(cache=True, nogil=True)
def put_in_order(values, orders, put):  # type: ignore[no-untyped-def]
    """Undo :func:`take_in_order`: write ``values`` to ``put`` at their own places."""
    groups, n = orders.shape
    for g in range(groups):
        for i in range(n):
            put[g, orders[g, i], 0] = values[g, i, 0]
