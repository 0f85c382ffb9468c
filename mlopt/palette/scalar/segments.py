"""Segments of sorted values and their squared error: the kernels under one-dimensional k-means.

In one dimension, clusters are segments of the sorted values. With ``n`` values ``x`` (ascending)
and importances ``h`` (positive), ``sums`` is a float64 array of shape ``[3, n + 1]`` whose rows are
running sums of ``h``, ``h * (x - origin)`` and ``h * (x - origin)**2`` (:class:`Prefix`). The
squared error of the segment ``[i, j)`` about its own mean is then ``S2 - S1**2 / S0``, with ``S``
the difference of two columns. The origin is the median of the values, and sums run from there to
either side (negative to the left): so the difference hardly cancels, and an outlier's square is in
no sum but its own.

Nothing here rounds differently from one machine to the next: plain float64 operations in a fixed
order, no fused or reordered sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

_ONE = np.uint64(1)


class Prefix(NamedTuple):
    """Prefix sums of ``n`` values.

    sums: float64[3, >= n + 1], of importance, moment and second moment about ``origin``; a segment
    ``[i, j)`` has the mean ``origin + (sums[1, j] - sums[1, i]) / (sums[0, j] - sums[0, i])``.
    """

    sums: npt.NDArray[np.float64]
    origin: float
    n: int


class Scratch(NamedTuple):
    """Scratch arrays of at least ``n + 1`` elements for segmentations of ``n`` values.

    bounds: int64, of the segmentation at hand; cost: float64, of the best path to each position;
    start: int32, the last position before each on that path; offset (float64), queue and since
    (uint32): of :func:`penalised_paths` alone.
    """

    bounds: npt.NDArray[np.int64]
    cost: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    start: npt.NDArray[np.int32]
    queue: npt.NDArray[np.uint32]
    since: npt.NDArray[np.uint32]


@njit(cache=True, nogil=True)
def make_scratch(n):  # type: ignore[no-untyped-def]
    """Return an uninitialized :class:`Scratch` for up to ``n`` values."""
    return Scratch(
        np.empty(n + 1, np.int64),
        np.empty(n + 1),
        np.empty(n + 1),
        np.empty(n + 1, np.int32),
        np.empty(n + 1, np.uint32),
        np.empty(n + 1, np.uint32),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def fill_sums(values, importance, sums):  # type: ignore[no-untyped-def]
    """Write the prefix sums of ``n`` values into ``sums[:, : n + 1]``: their :class:`Prefix`.

    values, importance: float64[n]; importance is positive.
    """
    n = values.size
    middle = n // 2
    origin = values[middle]
    sums[0, middle] = 0.0
    sums[1, middle] = 0.0
    sums[2, middle] = 0.0
    s0 = 0.0
    s1 = 0.0
    s2 = 0.0
    for i in range(middle, n):
        distance = values[i] - origin
        s0 += importance[i]
        s1 += importance[i] * distance
        s2 += importance[i] * distance * distance
        sums[0, i + 1] = s0
        sums[1, i + 1] = s1
        sums[2, i + 1] = s2
    s0 = 0.0
    s1 = 0.0
    s2 = 0.0
    for i in range(middle - 1, -1, -1):
        distance = values[i] - origin
        s0 -= importance[i]
        s1 -= importance[i] * distance
        s2 -= importance[i] * distance * distance
        sums[0, i] = s0
        sums[1, i] = s1
        sums[2, i] = s2
    return Prefix(sums, origin, n)


@njit(cache=True, nogil=True, error_model="numpy")
def mirror_sums(sums, n, mirrored):  # type: ignore[no-untyped-def]
    """Write the sums of the values in reverse order (the origin stays)."""
    for row in range(3):
        for i in range(n + 1):
            mirrored[row, i] = -sums[row, n - i]


@njit(cache=True, nogil=True, error_model="numpy")
def segment_cost(sums, i, j):  # type: ignore[no-untyped-def]
    """Return the squared error of ``[i, j)``, ``i < j``, about its own mean; never negative."""
    s1 = sums[1, j] - sums[1, i]
    cost = sums[2, j] - sums[2, i] - s1 * s1 / (sums[0, j] - sums[0, i])
    return cost if cost > 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _later_start_wins(sums, offset, later, earlier, end):  # type: ignore[no-untyped-def]
    """Whether ``[later, end)`` as the last segment makes a cheaper path than ``[earlier, end)``.

    ``offset[i]`` is the cost of the best path to ``i`` less ``sums[2, i]``. Both sides are
    multiplied by the two masses, which are positive: that saves two divisions.
    """
    later_mass = sums[0, end] - sums[0, later]
    earlier_mass = sums[0, end] - sums[0, earlier]
    later_moment = sums[1, end] - sums[1, later]
    earlier_moment = sums[1, end] - sums[1, earlier]
    return (offset[later] - offset[earlier]) * (later_mass * earlier_mass) + (
        earlier_moment * earlier_moment * later_mass
    ) < later_moment * later_moment * earlier_mass


@njit(cache=True, nogil=True, error_model="numpy")
def penalised_paths(prefix, penalty, scratch):  # type: ignore[no-untyped-def]
    """Find the cheapest segmentations of every prefix when each segment costs ``penalty`` more.

    In ``scratch``, ``cost[j] = min over i < j of cost[i] + segment_cost(i, j) + penalty``, and
    ``start[j]`` is the ``i`` that attains it.

    Costs of segments are concave Monge, so a start that has been overtaken by a later one stays
    behind, and the starts that are still to win form a queue: ``queue`` holds them,
    ``since`` the end from which on each wins. A new start enters at the back, after the starts
    that it beats at once have left; where it begins to win is found by galloping from where the
    last one began, usually a step or two away. Amortised time per value is constant in practice.

    Gronlund et al. 2017, arXiv 1701.07204; Galil and Park 1990 for the queue. For each end ``j``:

    1. the start at the front leaves where the next one wins (``since`` ascends, so that no more
       than one leaves), and the one at the front then is the best;
    2. starts at the back that ``j`` beats from where they would begin to win leave;
    3. gallop to an end at which ``j`` beats the last start left, and halve the way back.

    ``bounds`` of the scratch is not touched.

    Positions are unsigned here: numba tests for each signed one whether it counts from the end,
    which takes a fifth of the time.
    """
    sums, n = prefix.sums, np.uint64(prefix.n)
    _, cost, offset, start, queue, since = scratch
    cost[0] = 0.0
    offset[0] = -sums[2, 0]
    head = np.uint64(0)
    tail = _ONE
    queue[0] = 0
    since[0] = 1
    for j in range(_ONE, n + _ONE):
        # 1
        if head + _ONE < tail and since[head + _ONE] <= j:
            head += _ONE
        i = np.uint64(queue[head])
        best = cost[i] + segment_cost(sums, i, j) + penalty
        cost[j] = best
        offset[j] = best - sums[2, j]
        start[j] = i
        if j == n:
            break

        # 2
        begin = j + _ONE
        while tail > head:
            begin = max(np.uint64(since[tail - _ONE]), j + _ONE)
            if not _later_start_wins(sums, offset, j, np.uint64(queue[tail - _ONE]), begin):
                break
            tail -= _ONE
        if tail == head:
            queue[tail] = j
            since[tail] = j + _ONE
            tail += _ONE
            continue

        # 3
        rival = np.uint64(queue[tail - _ONE])
        step = _ONE
        loses = begin
        wins = begin + _ONE
        while wins < n and not _later_start_wins(sums, offset, j, rival, wins):
            loses = wins
            step += step
            wins = loses + step
        if wins >= n:
            if loses >= n or not _later_start_wins(sums, offset, j, rival, n):
                continue
            wins = n
        while wins - loses > _ONE:
            middle = (loses + wins) >> _ONE
            if _later_start_wins(sums, offset, j, rival, middle):
                wins = middle
            else:
                loses = middle
        queue[tail] = j
        since[tail] = wins
        tail += _ONE


@njit(cache=True, nogil=True, error_model="numpy")
def suffix_costs(prefix, penalty, scratch):  # type: ignore[no-untyped-def]
    """Return the costs of the cheapest segmentations of suffixes, by length: float64[n + 1].

    As :func:`penalised_paths`, whose results in ``scratch`` are overwritten.
    """
    mirrored = np.empty((3, prefix.n + 1))
    mirror_sums(prefix.sums, prefix.n, mirrored)
    penalised_paths(Prefix(mirrored, prefix.origin, prefix.n), penalty, scratch)
    return scratch.cost[: prefix.n + 1].copy()


NEAR_VISITS = 8
"""Tests per value after which :func:`near_suffix_costs` gives up being sparing."""


@njit(cache=True, nogil=True, error_model="numpy")
def near_suffix_costs(prefix, penalty, most, scratch):  # type: ignore[no-untyped-def]
    """Return the costs of :func:`suffix_costs` where they matter, infinity or more elsewhere.

    They matter at the positions of segmentations that cost ``most`` or less, penalties included.
    ``scratch.cost`` has the costs of prefixes, as :func:`penalised_paths` leaves them.

    From the last position to the first, each that matters as the end of a segment is followed by
    all its starts: with ``rest`` the cost from ``end`` on, a start matters where
    ``cost[start] + segment_cost(start, end) + penalty + rest <= most``, and then the best end of
    its segment matters too, so that the minimum over ends is the cost of the suffix. Spans of
    starts are skipped at one test: ``cost`` never falls and the segment's cost never rises from
    one start to the next, so none in ``[first, last)`` is below ``cost[first] +
    segment_cost(last - 1, end)``. And none before ``last - 1`` is below ``cost[last - 1] - penalty
    + segment_cost(last - 1, end)``, as two segments cost no more than their union.

    Where more than ``NEAR_VISITS`` tests per value would be needed, all costs are computed, which
    is O(n log n), and what is in ``scratch`` is overwritten.
    """
    sums, n, cost = prefix.sums, prefix.n, scratch.cost
    backward = np.full(n + 1, np.inf)
    backward[0] = 0.0
    visits = 0
    for end in range(n, 0, -1):
        rest = backward[n - end] + penalty
        if cost[end] - penalty + rest > most:
            continue
        last = end
        step = 1
        while last > 0:
            first = max(last - step, 0)
            visits += 1
            segment = segment_cost(sums, last - 1, end)
            whole = cost[first] + segment + rest
            if whole > most:
                if cost[last - 1] - penalty + segment + rest > most:
                    break
                last = first
                step *= 2
            elif step > 1:
                step >>= 1
            else:
                backward[n - first] = min(backward[n - first], segment + rest)
                last = first
        if visits > NEAR_VISITS * n:
            forward = cost[: n + 1].copy()
            backward = suffix_costs(prefix, penalty, scratch)
            for j in range(n + 1):
                cost[j] = forward[j]
            break
    return backward


@njit(cache=True, nogil=True, error_model="numpy")
def trace_path(start, n, bounds):  # type: ignore[no-untyped-def]
    """Write the segment bounds ``0 = b_0 < ... < b_k = n`` of the path to ``n``; returns ``k``."""
    k = 0
    j = n
    while j > 0:
        j = start[j]
        k += 1
    j = n
    for position in range(k, -1, -1):
        bounds[position] = j
        if position > 0:
            j = start[j]
    return k


@njit(cache=True, nogil=True, error_model="numpy")
def total_cost(sums, bounds, k):  # type: ignore[no-untyped-def]
    """Return the squared error of the ``k`` segments between consecutive ``bounds``."""
    total = 0.0
    for j in range(k):
        total += segment_cost(sums, bounds[j], bounds[j + 1])
    return total
