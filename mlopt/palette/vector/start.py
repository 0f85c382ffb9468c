"""Starts for Lloyd's iteration: greedy k-means++, and moves of single centres that pay.

Each kernel takes ``columns`` [d, n] (float32 or float64), the vectors' ``weights`` float64[n], and
centres [k, d] of the columns' dtype. Work: :func:`plus_plus` ``k * trials`` passes over the
vectors; :func:`local_search` ``n * k`` distances at first and one pass per draw, and for each draw
that is accepted ``k`` distances for each vector one of whose two nearest centres is moved.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mlopt.palette.vector.distances import distances
from mlopt.palette.vector.strips import LENGTH


@njit(cache=True, nogil=True)
def _draw(cumulative, uniform):  # type: ignore[no-untyped-def]
    """Return the first position whose cumulative weight is above ``uniform`` of the total."""
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
def plus_plus(columns, weights, k, draws):  # type: ignore[no-untyped-def]
    """Choose centres by greedy k-means++: positions int64[k'] of vectors; stop where the cost is 0.

    ``draws`` float64[k, trials]: each step tries ``trials`` vectors and keeps the one that lowers
    the cost most.
    """
    n = columns.shape[1]
    chosen = np.empty(k, np.int64)
    cumulative = np.cumsum(weights)
    chosen[0] = _draw(cumulative, draws[0, 0])
    distance = np.empty(n, columns.dtype)
    trial = np.empty(n, columns.dtype)
    lanes = np.empty(LENGTH)
    distances(columns, 0, n, columns[:, chosen[0]].copy(), distance)
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
            point = columns[:, candidate].copy()
            cost = _cost_with(columns, weights, distance, point, trial, lanes)
            if t == 0 or cost < lowest:
                lowest = cost
                chosen[step] = candidate
        distances(columns, 0, n, columns[:, chosen[step]].copy(), trial)
        for i in range(n):
            distance[i] = min(distance[i], trial[i])
    return chosen


@njit(cache=True, nogil=True)
def _cost_with(columns, weights, distance, point, trial, lanes):  # type: ignore[no-untyped-def]
    """Return the cost with one more centre, ``point``, where ``distance`` is that without it.

    Summed in lanes, one for each place in a block, that do not wait for each other.
    """
    n = columns.shape[1]
    lanes[:] = 0.0
    for start in range(0, n, LENGTH):
        stop = min(start + LENGTH, n)
        distances(columns, start, stop, point, trial)
        before, heavy = distance[start:stop], weights[start:stop]
        for i in range(stop - start):
            t = trial[i] if trial[i] < before[i] else before[i]
            lanes[i] += heavy[i] * np.float64(t)
    cost = 0.0
    for lane in lanes:
        cost += lane
    return cost


@njit(cache=True, nogil=True)
def _two_nearest(columns, i, centers, near, label):  # type: ignore[no-untyped-def]
    """Write distances [n, 2] and labels [n, 2] of the two nearest centres of vector ``i``."""
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
def _all_two_nearest(columns, centers, near, label):  # type: ignore[no-untyped-def]
    """As :func:`_two_nearest`, for all vectors, in the columns' dtype."""
    n = columns.shape[1]
    trial = np.empty(LENGTH, columns.dtype)
    best = np.empty(LENGTH, columns.dtype)
    second = np.empty(LENGTH, columns.dtype)
    a = np.empty(LENGTH, np.int32)
    b = np.empty(LENGTH, np.int32)
    for start in range(0, n, LENGTH):
        m = min(LENGTH, n - start)
        best[:m] = np.inf
        second[:m] = np.inf
        a[:m] = 0
        b[:m] = 0
        for k in range(centers.shape[0]):
            distances(columns, start, start + m, centers[k], trial)
            for i in range(m):
                t, s = trial[i], second[i]
                pushed = a[i] if t < best[i] else np.int32(k)
                b[i] = pushed if t < s else b[i]
                second[i] = np.minimum(s, np.maximum(best[i], t))
            for i in range(m):
                a[i] = np.int32(k) if trial[i] < best[i] else a[i]
                best[i] = np.minimum(best[i], trial[i])
        for i in range(m):
            near[start + i, 0], near[start + i, 1] = best[i], second[i]
            label[start + i, 0], label[start + i, 1] = a[i], b[i]


@njit(cache=True, nogil=True)
def _removal_costs(weights, near, label, cumulative, removal):  # type: ignore[no-untyped-def]
    """Write the cost of losing each centre to ``removal`` [k], and the running cost of vectors."""
    removal[:] = 0.0
    total = 0.0
    for i in range(weights.size):
        total += weights[i] * near[i, 0]
        cumulative[i] = total
        removal[label[i, 0]] += weights[i] * (near[i, 1] - near[i, 0])
    return total


@njit(cache=True, nogil=True)
def _cheapest_swap(weights, near, label, removal, relief, trial):  # type: ignore[no-untyped-def]
    """Return the centre to give up for a vector at the distances ``trial``, and the change in cost.

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
def _start_swapping(columns, weights, centers):  # type: ignore[no-untyped-def]
    """Return distances and labels of the two nearest centres of each vector, and cumulative costs.

    Also the cost of removing each centre, and the total cost.
    """
    n, k = columns.shape[1], centers.shape[0]
    near = np.empty((n, 2), np.float64)
    label = np.empty((n, 2), np.int32)
    _all_two_nearest(columns, centers, near, label)
    cumulative = np.empty(n)
    removal = np.empty(k)
    cost = _removal_costs(weights, near, label, cumulative, removal)
    return near, label, cumulative, removal, cost


@njit(cache=True, nogil=True)
def local_search(columns, weights, centers, draws):  # type: ignore[no-untyped-def]
    """Move centres, in place, to vectors drawn by their cost, where that lowers the cost."""
    n, k = columns.shape[1], centers.shape[0]
    if k < 2:
        return 0
    near, label, cumulative, removal, cost = _start_swapping(columns, weights, centers)
    relief = np.empty(k)
    trial = np.empty(n, columns.dtype)
    taken = 0
    for draw in draws:
        if not cost > 0.0:
            return taken
        point = columns[:, _draw(cumulative, draw)].copy()
        distances(columns, 0, n, point, trial)
        gone, change = _cheapest_swap(weights, near, label, removal, relief, trial)
        if change > -1e-6 * cost:
            continue
        taken += 1
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
    return taken


@njit(cache=True, nogil=True)
def suggested_swaps(columns, weights, centers, draws):  # type: ignore[no-untyped-def]
    """Draw vectors by their cost: their positions, and the centre that each best replaces.

    int64[m] and int64[m], m the number of draws.
    """
    near, label, cumulative, removal, _ = _start_swapping(columns, weights, centers)
    relief = np.empty(centers.shape[0])
    trial = np.empty(columns.shape[1], columns.dtype)
    positions = np.empty(draws.size, np.int64)
    gone = np.empty(draws.size, np.int64)
    for m in range(draws.size):
        positions[m] = _draw(cumulative, draws[m])
        distances(columns, 0, trial.size, columns[:, positions[m]].copy(), trial)
        gone[m], _ = _cheapest_swap(weights, near, label, removal, relief, trial)
    return positions, gone
