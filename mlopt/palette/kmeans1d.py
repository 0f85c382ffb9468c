"""Exact weighted k-means of sorted values, by a penalty on the number of segments.

The optimum for ``k`` clusters is the cheapest segmentation with exactly ``k`` segments. Charging
every segment a penalty ``lambda`` instead of counting them leaves a problem that one pass solves
(:func:`mlopt.palette.segments.penalised_paths`); its number of segments falls as ``lambda`` grows,
and whenever it comes out as ``k`` the solution is optimal for ``k``. A few Lloyd steps from good
quantiles predict ``lambda`` so well that one to three passes do. Where no ``lambda`` gives ``k``
(several ``k`` tie on one ``lambda``), the solutions with fewer and with more segments bracket every
bound, and a small programme between them finishes.

Sources: Gronlund, Larsen, Mathiasen, Nielsen, Schneider, Song, "Fast exact k-means, k-medians and
Bregman divergence clustering in 1D", 2017, arXiv 1701.07204; Aggarwal, Schieber, Tokuyama,
"Finding a minimum-weight k-link path in graphs with the concave Monge property", 1994, for the
bracket.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.segments import (
    cheapest_path_through_windows,
    fill_sums,
    penalised_paths,
    segment_cost,
    total_cost,
    trace_path,
)

LLOYD_STEPS = 24
MOST_PASSES = 12


@njit(cache=True, nogil=True, error_model="numpy")
def quantile_bounds(values, sums, k, bounds):  # type: ignore[no-untyped-def]
    """Segment bounds at the quantiles of (about) the cube root of the density.

    That is how the points of an optimal quantizer lie (Panter and Dite 1951). The exponent used is
    5/16 rather than 1/3, because square roots round alike on every machine and cube roots do not.
    Values are taken in short runs, 32 or so to a segment: this is only where the search starts.
    """
    n = values.size
    run = max(1, n // (32 * k))
    runs = (n - 2) // run + 1
    running = np.empty(runs + 1)
    running[0] = 0.0
    for r in range(runs):
        left = r * run
        right = min(left + run, n - 1)
        width = values[right] - values[left]
        density_root = np.sqrt(np.sqrt((sums[0, right] - sums[0, left]) / width))
        running[r + 1] = running[r] + width * density_root * np.sqrt(np.sqrt(density_root))
    bounds[0] = 0
    position = 0
    for j in range(1, k):
        goal = running[runs] * j / k
        while position < runs and running[position] < goal:
            position += 1
        # every segment keeps at least one value
        bounds[j] = min(max(position * run, bounds[j - 1] + 1), n - (k - j))
    bounds[k] = n


@njit(cache=True, nogil=True, error_model="numpy")
def lloyd(values, sums, mean, k, bounds):  # type: ignore[no-untyped-def]
    """Move each bound to the midpoint of the neighbouring means until nothing moves.

    Works on ``bounds[: k + 1]`` in place; at most ``LLOYD_STEPS`` rounds, no segment is emptied.
    """
    n = values.size
    for _ in range(LLOYD_STEPS):
        moved = False
        left_mean = (sums[1, bounds[1]] - sums[1, 0]) / (sums[0, bounds[1]] - sums[0, 0])
        for j in range(1, k):
            b = bounds[j]
            right_mean = (sums[1, bounds[j + 1]] - sums[1, b]) / (
                sums[0, bounds[j + 1]] - sums[0, b]
            )
            middle = mean + 0.5 * (left_mean + right_mean)
            lowest = bounds[j - 1] + 1
            highest = min(bounds[j + 1] - 1, n - (k - j))
            step = 1
            if values[b] < middle:
                while b < highest and values[min(b + step, highest)] < middle:
                    b = min(b + step, highest)
                    step *= 2
                far = min(b + step, highest)
                while far - b > 0:
                    probe = (b + far + 1) >> 1
                    if values[probe - 1] < middle:
                        b = probe
                    else:
                        far = probe - 1
            else:
                while b > lowest and values[max(b - step, lowest)] >= middle:
                    b = max(b - step, lowest)
                    step *= 2
                far = max(b - step, lowest)
                while b - far > 0:
                    probe = (b + far) >> 1
                    if values[probe] >= middle:
                        b = probe
                    else:
                        far = probe + 1
            if b != bounds[j]:
                bounds[j] = b
                moved = True
            left_mean = right_mean
        if not moved:
            break


@njit(cache=True, nogil=True, error_model="numpy")
def _bracket_windows(fewer, k_fewer, more, k_more, k, low, high):  # type: ignore[no-untyped-def]
    """Windows for the bounds of ``k`` segments from optimal solutions with fewer and with more.

    Optimal bounds of consecutive cluster counts interleave, so the ``j``-th bound of ``k`` lies
    between the ``j``-th of ``k_more`` and the ``j``-th of ``k_fewer``, and likewise counted from
    the other end. Returns False where rounding has left a window empty.
    """
    n = fewer[k_fewer]
    low[0] = 0
    high[0] = 0
    for j in range(1, k):
        low[j] = more[j]
        if j - (k - k_fewer) > 0:
            low[j] = max(low[j], fewer[j - (k - k_fewer)])
        high[j] = more[j + (k_more - k)]
        if j < k_fewer:
            high[j] = min(high[j], fewer[j])
    low[k] = n
    high[k] = n
    for j in range(1, k + 1):
        low[j] = max(low[j], low[j - 1] + 1)
    for j in range(k - 1, 0, -1):
        high[j] = min(high[j], high[j + 1] - 1)
    for j in range(1, k + 1):
        if low[j] > high[j]:
            return False
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def solve(values, sums, mean, k, penalty, bounds, cost, offset, start, queue, since):  # type: ignore[no-untyped-def]
    """Optimal bounds of ``k`` segments, ``1 <= k < n``, and a penalty that leads to them.

    Parameters
    ----------
    values
        float64[n], ascending and distinct.
    sums, mean
        As :func:`mlopt.palette.segments.fill_sums` leaves them.
    penalty
        A first guess, or 0.0 for none.
    bounds
        int64, at least ``n + 1`` long; the result is ``bounds[: k + 1]``.
    cost, offset, start, queue, since
        Scratch of ``penalised_paths``.

    Returns
    -------
    penalty
        The last penalty tried, whose prefix costs stand in ``cost``. The result is optimal under
        it, also where several ``k`` tie on it. 0.0 for ``k = 1``.
    """
    n = values.size
    if k == 1:
        bounds[0] = 0
        bounds[1] = n
        return 0.0
    if penalty <= 0.0:
        # d(error)/dk of an error that falls like k**-2
        lloyd(values, sums, mean, k, bounds)
        penalty = 2.0 * total_cost(sums, bounds, k) / k
        if penalty <= 0.0:
            penalty = (sums[2, n] - sums[2, 0]) * 1e-18

    fewer = np.empty(k + 1, np.int64)
    fewer[0] = 0
    fewer[1] = n
    k_fewer = 1
    error_fewer = np.inf
    more = np.empty(0, np.int64)
    k_more = n
    error_more = np.inf
    for _ in range(MOST_PASSES):
        tried = penalty
        penalised_paths(sums, n, penalty, cost, offset, start, queue, since)
        found = trace_path(start, n, bounds)
        if found == k:
            return tried
        if found < k:
            if found <= k_fewer and error_fewer < np.inf:
                break
            k_fewer = found
            error_fewer = cost[n] - penalty * found
            fewer[: found + 1] = bounds[: found + 1]
        else:
            if found >= k_more and error_more < np.inf:
                break
            k_more = found
            error_more = cost[n] - penalty * found
            more = bounds[: found + 1].copy()
        if error_fewer < np.inf and error_more < np.inf:
            # The least error is convex in k: this slope lies between those to the left and to the
            # right of some k inside the bracket, of k itself when the bracket is k - 1 and k + 1.
            penalty = (error_fewer - error_more) / (k_more - k_fewer)
        else:
            ratio = found / k
            penalty *= ratio * ratio * ratio

    low = np.empty(k + 1, np.int64)
    high = np.empty(k + 1, np.int64)
    if more.size == 0:
        more = np.arange(n + 1)
        k_more = n
    if not _bracket_windows(fewer, k_fewer, more, k_more, k, low, high):
        for j in range(k + 1):
            low[j] = j
            high[j] = n - (k - j)
        high[0] = 0
        low[k] = n
    cheapest_path_through_windows(sums, k, low, high, bounds)
    return tried


@njit(cache=True, nogil=True, error_model="numpy")
def _curve(values, importance, most):  # type: ignore[no-untyped-def]
    n = values.size
    sums = np.empty((3, n + 1))
    mean = fill_sums(values, importance, sums)
    errors = np.zeros(most)
    errors[0] = segment_cost(sums, 0, n)
    cost = np.empty(n + 1)
    offset = np.empty(n + 1)
    start = np.empty(n + 1, np.int32)
    queue = np.empty(n + 1, np.int32)
    since = np.empty(n + 1, np.int32)
    bounds = np.empty(n + 1, np.int64)
    for k in range(2, min(most, n - 1) + 1):
        quantile_bounds(values, sums, k, bounds)
        solve(values, sums, mean, k, 0.0, bounds, cost, offset, start, queue, since)
        errors[k - 1] = total_cost(sums, bounds, k)
    return errors


def kmeans1d(
    values: npt.NDArray[np.float64], importance: npt.NDArray[np.float64], k: int
) -> npt.NDArray[np.int64]:
    """Optimal clusters of distinct ascending values.

    Parameters
    ----------
    values
        float64[n], ascending, no value twice.
    importance
        float64[n], positive.
    k
        Clusters wanted; with ``k >= n`` every value is a cluster of its own.

    Returns
    -------
    bounds
        int64[min(k, n) + 1]: cluster ``j`` is ``values[bounds[j]:bounds[j + 1]]``.
    """
    n = values.size
    if k >= n:
        return np.arange(n + 1)
    sums = np.empty((3, n + 1))
    mean = fill_sums(values, importance, sums)
    bounds = np.empty(n + 1, np.int64)
    quantile_bounds(values, sums, k, bounds)
    solve(values, sums, mean, k, 0.0, bounds, *scratch(n))
    return bounds[: k + 1].copy()


def kmeans1d_curve(
    values: npt.NDArray[np.float64], importance: npt.NDArray[np.float64], most: int
) -> npt.NDArray[np.float64]:
    """The least squared error for every cluster count from 1 to ``most``: float64[most].

    The rate-distortion curve of the values. Parameters as for :func:`kmeans1d`.
    """
    return np.asarray(_curve(values, importance, most))


def scratch(n: int) -> tuple[npt.NDArray, ...]:  # type: ignore[type-arg]
    """Working arrays of :func:`mlopt.palette.segments.penalised_paths` for ``n`` values."""
    return (
        np.empty(n + 1),
        np.empty(n + 1),
        np.empty(n + 1, np.int32),
        np.empty(n + 1, np.int32),
        np.empty(n + 1, np.int32),
    )
