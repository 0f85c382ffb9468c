"""Exact weighted k-means of sorted values, by a penalty on the number of segments.

The optimum for ``k`` clusters is the cheapest segmentation with exactly ``k`` segments. Charging
every segment a penalty ``lambda`` instead of counting them leaves a problem that one pass solves
(:func:`mlopt.palette.scalar.segments.penalised_paths`); its number of segments falls as ``lambda``
grows, and whenever it comes out as ``k`` the solution is optimal for ``k``. The same search on a
few cells of values, or a few Lloyd steps from good quantiles, predict ``lambda`` so well that one
to three passes do. Where several ``k`` tie on one ``lambda``, a solution with fewer and one with
more segments are spliced.

Sources: Gronlund, Larsen, Mathiasen, Nielsen, Schneider, Song, "Fast exact k-means, k-medians and
Bregman divergence clustering in 1D", 2017, arXiv 1701.07204; Aggarwal, Schieber, Tokuyama,
"Finding a minimum-weight k-link path in graphs with the concave Monge property", 1994, for the
splice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.segments import (
    Prefix,
    fill_sums,
    make_scratch,
    penalised_paths,
    segment_cost,
    total_cost,
    trace_path,
)

LLOYD_STEPS = 24
CELLS = 8
MOST_CELLS = 64
VALUES_OF_CELL = 32
ENOUGH = 48
MANY = 512
"""Cells of a segment (one for so many values, within limits), and values of a segment with which
cells predict the penalty, once and twice."""

# The search for the penalty. So many steps follow the error, as long as it is smooth. Then steps
# without a bracket double in length, and every other one inside a bracket halves its logarithm.
SMOOTH_PASSES = 16
UNBRACKETED_PASSES = 8
# 11 doubled steps cross the range of float64, 64 halvings end at its resolution.
MOST_PASSES = UNBRACKETED_PASSES + SMOOTH_PASSES + 11 + 2 * 64
LEAST_PENALTY = 1e-300
MOST_PENALTY = 1e300


@njit(cache=True, nogil=True, error_model="numpy")
def quantile_bounds(values, sums, k, bounds):  # type: ignore[no-untyped-def]
    """Set segment bounds at the quantiles of (about) the cube root of the density.

    The points of an optimal quantizer have that density (Panter and Dite 1951). The exponent used
    is 5/16 rather than 1/3, because square roots round alike on every machine, cube roots do not.
    Values are taken in short runs, 16 or so per segment: this is only where the search starts.
    """
    n = values.size
    run = max(1, n // (16 * k))
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
def lloyd(values, prefix, k, bounds):  # type: ignore[no-untyped-def]
    """Move each bound to the midpoint of the neighbouring means until nothing moves.

    Works on ``bounds[: k + 1]`` in place; at most ``LLOYD_STEPS`` rounds, no segment is emptied.
    """
    sums, origin, n = prefix
    for _ in range(LLOYD_STEPS):
        moved = False
        left_mean = (sums[1, bounds[1]] - sums[1, 0]) / (sums[0, bounds[1]] - sums[0, 0])
        for j in range(1, k):
            b = bounds[j]
            right_mean = (sums[1, bounds[j + 1]] - sums[1, b]) / (
                sums[0, bounds[j + 1]] - sums[0, b]
            )
            middle = origin + 0.5 * (left_mean + right_mean)
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
def _splice(fewer, k_fewer, more, k, bounds):  # type: ignore[no-untyped-def]
    """Splice bounds of ``k`` segments from two solutions that are optimal under one penalty.

    Where a segment of the solution with more lies within one of the solution with fewer, after
    ``k - k_fewer`` segments more, the first solution up to there and the second from there on have
    ``k`` segments, and by the Monge property they cost no more (Aggarwal et al. 1994, lemma 5).
    """
    surplus = k - k_fewer
    s = 0
    while more[s + surplus + 1] > fewer[s + 1]:
        s += 1
    for j in range(s + surplus + 1):
        bounds[j] = more[j]
    for j in range(s + 1, k_fewer + 1):
        bounds[j + surplus] = fewer[j]


@njit(cache=True, nogil=True, error_model="numpy")
def first_penalty(values, prefix, k, scratch):  # type: ignore[no-untyped-def]
    """Return a first penalty for :func:`solve`.

    values: float64[n], ascending and distinct, ``k < n``; ``scratch`` is for ``n`` values.

    Where values are very many, the first cells serve to find segments, and the second ones, cut
    from these, to find the penalty: quantiles tell little of the few values in a long tail.
    """
    quantile_bounds(values, prefix.sums, k, scratch.bounds)
    if prefix.n >= MANY * k:
        penalty_of_bounds(prefix, k, scratch)
        lloyd(values, prefix, k, scratch.bounds)
    elif prefix.n < ENOUGH * k:
        lloyd(values, prefix, k, scratch.bounds)
    return penalty_of_bounds(prefix, k, scratch)


@njit(cache=True, nogil=True, error_model="numpy")
def penalty_of_bounds(prefix, k, scratch):  # type: ignore[no-untyped-def]
    """Return a first penalty for :func:`solve` from bounds that are anything like the best.

    Where values are many, each segment of ``scratch.bounds`` is cut into cells, the penalty is
    the one that leads to ``k`` segments of cells, and these are the bounds afterwards. Found like
    the final one, in less than a quarter of the time of a pass over the values as a rule, it saves
    most of the second and later passes.
    """
    # d(error)/dk of an error that falls like k**-2
    penalty = 2.0 * total_cost(prefix.sums, scratch.bounds, k) / k
    if prefix.n >= ENOUGH * k:
        cells, positions = _in_cells(prefix, k, scratch.bounds)
        penalty, _ = solve(cells, k, penalty, scratch)
        for j in range(k + 1):
            scratch.bounds[j] = positions[scratch.bounds[j]]
    return penalty


@njit(cache=True, nogil=True, error_model="numpy")
def _in_cells(prefix, k, bounds):  # type: ignore[no-untyped-def]
    """Return the sums at positions that cut each of ``k`` segments into cells, and these."""
    most = max(CELLS, min(MOST_CELLS, prefix.n // (VALUES_OF_CELL * k)))
    positions = np.empty(most * k + 1, np.int64)
    m = 0
    for j in range(k):
        length = bounds[j + 1] - bounds[j]
        cells = min(most, length)
        for c in range(cells):
            positions[m] = bounds[j] + length * c // cells
            m += 1
    positions[m] = bounds[k]
    sums = np.empty((3, m + 1))
    for row in range(3):
        for c in range(m + 1):
            sums[row, c] = prefix.sums[row, positions[c]]
    return Prefix(sums, prefix.origin, m), positions


@njit(cache=True, nogil=True, error_model="numpy")
def solve(prefix, k, penalty, scratch):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0912, PLR0915 - the search of a kernel is one loop
    """Find optimal bounds of ``k`` segments, ``1 <= k < n``, and a penalty that leads to them.

    Penalties are tried one after the other:

    1. if one leads to ``k`` segments, these are the result;
    2. otherwise they are the best known solution with fewer or with more segments;
    3. from these two follows the next penalty: the slope of the error between them, or, where one
       is still missing, a step by the ratio of the numbers of segments;
    4. when no penalty in between leads to other numbers, the two are spliced.

    Parameters
    ----------
    prefix
        Sums of the ``n`` values. The values themselves are not needed.
    penalty
        Where the search begins, such as :func:`first_penalty`: the closer to one that leads to
        ``k`` segments, the fewer are tried. It is added to errors and must not dwarf them. 0.0
        stands for the smallest that counts.
    scratch
        For ``n`` values; the result is ``scratch.bounds[: k + 1]``.

    Returns
    -------
    penalty
        The last penalty tried, whose prefix costs stand in ``scratch.cost``. The result is optimal
        under it, also where several ``k`` tie on it. 0.0 for ``k = 1``.
    passes
        Penalties tried, ``MOST_PASSES`` at most, each O(n log n) and nearly always O(n). One to
        three do where the error falls smoothly with the number of segments. Where it does not
        (geometric values, importance over many decades), steps by its slope may come closer by one
        segment per pass: so every other pass then halves the logarithm of the bracket.
    """
    sums, n = prefix.sums, prefix.n
    bounds, cost = scratch.bounds, scratch.cost
    if k == 1:
        bounds[0] = 0
        bounds[1] = n
        return 0.0, 0
    if not penalty > 0.0:
        penalty = max((sums[2, n] - sums[2, 0]) * 1e-18, LEAST_PENALTY)

    # one segment, and one per value, until better ones are known
    fewer = np.empty(k + 1, np.int64)
    fewer[0] = 0
    fewer[1] = n
    k_fewer = 1
    error_fewer = np.inf
    more = np.empty(n + 1, np.int64)
    for j in range(n + 1):
        more[j] = j
    k_more = n
    error_more = np.inf
    lowest = 0.0
    highest = np.inf
    is_chord = False
    stretch = 1
    passes = 0
    while passes < MOST_PASSES:
        tried = penalty
        penalised_paths(prefix, penalty, scratch)
        passes += 1
        # 1
        segments = trace_path(scratch.start, n, bounds)
        if segments == k:
            return tried, passes
        # Under the slope of the bracket both of its ends are optimal if nothing between them is.
        if is_chord and (segments <= k_fewer or segments >= k_more):
            break
        # 2
        if segments < k:
            highest = min(highest, penalty)
            if segments > k_fewer or error_fewer == np.inf:
                k_fewer = segments
                error_fewer = cost[n] - penalty * segments
                for j in range(segments + 1):
                    fewer[j] = bounds[j]
        else:
            lowest = max(lowest, penalty)
            if segments < k_more or error_more == np.inf:
                k_more = segments
                error_more = cost[n] - penalty * segments
                for j in range(segments + 1):
                    more[j] = bounds[j]
        # 3
        is_chord = error_fewer < np.inf and error_more < np.inf
        if is_chord:
            # The least error is convex in k: this slope lies between those to the left and to the
            # right of some k inside the bracket, of k itself when the bracket is k - 1 and k + 1.
            penalty = (error_fewer - error_more) / (k_more - k_fewer)
            if passes >= SMOOTH_PASSES and passes % 2 == 0:
                middle = np.sqrt(lowest) * np.sqrt(highest)
                if not lowest < middle < highest:
                    break
                penalty = middle
                is_chord = False
        else:
            ratio = segments / k
            factor = ratio * ratio * ratio
            if passes >= UNBRACKETED_PASSES:
                factor = max(factor, 2.0) ** stretch if ratio > 1.0 else min(factor, 0.5) ** stretch
                stretch *= 2
            penalty = min(max(penalty * factor, LEAST_PENALTY), MOST_PENALTY)
            if penalty == tried:
                break

    # 4
    _splice(fewer, k_fewer, more, k, bounds)
    return tried, passes


@njit(cache=True, nogil=True, error_model="numpy")
def _curve(values, importance, most):  # type: ignore[no-untyped-def]
    n = values.size
    prefix = fill_sums(values, importance, np.empty((3, n + 1)))
    errors = np.zeros(most)
    errors[0] = segment_cost(prefix.sums, 0, n)
    scratch = make_scratch(n)
    for k in range(2, min(most, n - 1) + 1):
        solve(prefix, k, first_penalty(values, prefix, k, scratch), scratch)
        errors[k - 1] = total_cost(prefix.sums, scratch.bounds, k)
    return errors


def kmeans1d(
    values: npt.NDArray[np.float64], importance: npt.NDArray[np.float64], k: int
) -> npt.NDArray[np.int64]:
    """Return optimal clusters of distinct ascending values.

    Parameters
    ----------
    values
        float64[n], ascending, no value twice.
    importance
        float64[n], positive.
    k
        Number of clusters; with ``k >= n`` every value is a cluster of its own.

    Returns
    -------
    bounds
        int64[min(k, n) + 1]: cluster ``j`` is ``values[bounds[j]:bounds[j + 1]]``.
    """
    n = values.size
    if k >= n:
        return np.arange(n + 1)
    prefix = fill_sums(values, importance, np.empty((3, n + 1)))
    scratch = make_scratch(n)
    solve(prefix, k, first_penalty(values, prefix, k, scratch), scratch)
    return np.asarray(scratch.bounds[: k + 1].copy())


def kmeans1d_curve(
    values: npt.NDArray[np.float64], importance: npt.NDArray[np.float64], most: int
) -> npt.NDArray[np.float64]:
    """Return the least squared error of every cluster count from 1 to ``most``: float64[most].

    The rate-distortion curve of the values. Parameters as for :func:`kmeans1d`.
    """
    return np.asarray(_curve(values, importance, most))
