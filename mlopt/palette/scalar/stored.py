"""Optimal tables that can be *stored*: centroids rounded to the table's float format.

Rounding the optimal means costs a little, and the segmentation that was best before rounding need
not be best after it. With ``r(m)`` the storable number nearest to a segment's mean ``m``, a segment
costs ``cost + mass * (m - r(m))**2``, and the best table of storable numbers is the cheapest
segmentation under that cost. It is not Monge, so no fast dynamic program solves it outright, but
it is never below the plain cost. The plain problem, solved forwards and backwards under a penalty,
gives a lower bound for every solution that has a bound at position ``i``:

    forward(i) + backward(i) - penalty * k

Positions where this exceeds the cost of a stored solution in hand cannot be a bound of a better
one. A few positions around each bound are left, and a dynamic program over those finishes.

What that gains (:func:`refine_for_storage`, beyond :func:`settle`) was measured on 14 kinds of
values (bells, heavy tails, offsets, lattices, ties) in float16, bfloat16 and float32 with 2 to 256
centres. Up to 256 distinct values, some 40,000 cases: the error falls by 9e-4 of it on average, by
more than a thousandth in 1.7 % of the cases and by up to 36 %, most where values lie close together
far from zero. Beyond 256, some 1,900 cases: 1e-5 on average, 1e-4 in the 99th percentile, 0.6 % at
most. In 98 % of the cases the result is proven the best.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.segments import near_suffix_costs, segment_cost, total_cost

# Significant bits, exponent of the smallest normal number, exponent of the smallest step.
_FORMATS = {
    "float16": (11, -14, -24),
    "bfloat16": (8, -126, -133),
    "float32": (24, -126, -149),
}

# Positions by which a bound may move in one round of `settle`, and the maximum number of rounds.
REACH = 4
MOST_ROUNDS = 8

# The proof is attempted where the price of rounding, relative to the error and times k, is small:
# then few positions survive. That is so wherever means are rounded finely against the width of
# their clusters (up to 6 bits in float16, as a rule). Beyond, and where the proof considers more
# segments per value, or segments and states in all, than these, the settled solution stands. Its
# excess over the plain optimum, most of it the price of rounding that no solution avoids, is what
# `refine_for_storage` returns. Few values are always searched.
PRICE_WORTH_PROVING = 0.05
FEW_VALUES = 256
VISITS_PER_VALUE = 150
MOST_VISITS = 1 << 25
MOST_STATES = 1 << 24


# There is nothing to gain below this share of the error: sums in float64 do not resolve it.
RESOLVED = 1e-11


class Rounding(NamedTuple):
    """Constants with which :func:`round_to_stored` rounds float64 to a narrower float format.

    splitter: Dekker's constant ``2**(53 - p) + 1`` for ``p`` significant bits, 0.0 where there is
    nothing to round; magic: the number whose addition and subtraction rounds to the subnormal step.
    """

    splitter: float
    smallest_normal: float
    magic: float


def rounding_of(dtype_name: str) -> Rounding:
    """Return the rounding to a float format; that to float64 changes nothing."""
    if dtype_name not in _FORMATS:
        return Rounding(0.0, 0.0, 0.0)
    bits, normal, step = _FORMATS[dtype_name]
    return Rounding(2.0 ** (53 - bits) + 1.0, 2.0**normal, 1.5 * 2.0 ** (52 + step))


@njit(cache=True, nogil=True, error_model="numpy")
def round_to_stored(number, rounding):  # type: ignore[no-untyped-def]
    """Return the nearest number of a narrower float format (Dekker 1971)."""
    splitter, smallest_normal, magic = rounding
    if splitter == 0.0:
        return number
    if abs(number) < smallest_normal:
        return (number + magic) - magic
    split = number * splitter
    return split - (split - number)


@njit(cache=True, nogil=True, error_model="numpy")
def stored_cost(prefix, i, j, rounding):  # type: ignore[no-untyped-def]
    """Return the squared error of ``[i, j)`` about the storable number nearest to its mean."""
    sums = prefix.sums
    mass = sums[0, j] - sums[0, i]
    moment = sums[1, j] - sums[1, i]
    cost = sums[2, j] - sums[2, i] - moment * moment / mass
    centre = prefix.origin + moment / mass
    miss = centre - round_to_stored(centre, rounding)
    return max(cost, 0.0) + mass * miss * miss


@njit(cache=True, nogil=True, error_model="numpy")
def stored_table(prefix, bounds, rounding, table):  # type: ignore[no-untyped-def]
    """Write the storable centre of each segment into ``table`` (float64[k], ascending)."""
    sums = prefix.sums
    for j in range(table.size):
        mass = sums[0, bounds[j + 1]] - sums[0, bounds[j]]
        moment = sums[1, bounds[j + 1]] - sums[1, bounds[j]]
        table[j] = round_to_stored(prefix.origin + moment / mass, rounding)


@njit(cache=True, nogil=True, error_model="numpy")
def settle(prefix, k, rounding, bounds):  # type: ignore[no-untyped-def]
    """Let all bounds move together, each by up to ``REACH`` positions, until no move pays.

    They move less far where segments are short: a quarter of the mean length.

    Each round is a dynamic program over the positions near each bound: ``here[s]`` is the least
    stored cost of the segments up to bound ``j``, at ``s - reach`` positions from where it was, and
    ``predecessor[j, s]`` where the bound before it is then. Returns the stored cost reached.
    """
    reach = min(REACH, max(1, bounds[k] // (4 * k)))
    side = 2 * reach + 1
    before = np.empty(side)
    here = np.empty(side)
    predecessor = np.empty((k + 1, side), np.int8)
    reached = np.inf
    for _ in range(MOST_ROUNDS):
        for t in range(side):
            before[t] = np.inf
        before[reach] = 0.0
        for j in range(1, k + 1):
            for s in range(side):
                here[s] = np.inf
            for s in range(side):
                end = bounds[j] + s - reach
                if (j == k and s != reach) or end <= bounds[0] or end > bounds[k]:
                    continue
                for t in range(side):
                    start = bounds[j - 1] + t - reach
                    if before[t] >= here[s] or start >= end:
                        continue
                    candidate = before[t] + stored_cost(prefix, start, end, rounding)
                    if candidate < here[s]:
                        here[s] = candidate
                        predecessor[j, s] = t
            before, here = here, before
        cost = before[reach]
        if cost >= reached:
            break
        reached = cost
        moved = False
        s = reach
        for j in range(k, 0, -1):
            s = predecessor[j, s]
            if j > 1 and s != reach:
                bounds[j - 1] += s - reach
                moved = True
        if not moved:
            break
    return reached


class _Ceiling(NamedTuple):
    """Lower bounds on the cost of a solution, and the limit that it must stay below.

    limit: the stored cost of a solution in hand; forward, backward: float64[n + 1], costs of the
    cheapest segmentations of prefixes, and of suffixes by their length, with ``penalty`` per
    segment; infinite where a suffix is in no solution below the limit.
    """

    limit: float
    penalty: float
    forward: npt.NDArray[np.float64]
    backward: npt.NDArray[np.float64]


@njit(cache=True, nogil=True, error_model="numpy")
def _possible_bounds(n, k, ceiling):  # type: ignore[no-untyped-def]
    """Return positions that bounds of a better solution can have, ascending, with 0 and ``n``."""
    most = ceiling.limit + ceiling.penalty * k
    positions = np.empty(n + 1, np.int64)
    positions[0] = 0
    count = 1
    for i in range(1, n):
        if ceiling.forward[i] + ceiling.backward[n - i] <= most:
            positions[count] = i
            count += 1
    positions[count] = n
    return positions[: count + 1]


@njit(cache=True, nogil=True, error_model="numpy")
def _search(prefix, k, ceiling, rounding, bounds):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0912, PLR0915 - the search of a kernel is one loop
    """Write the cheapest stored solution of cost below ``ceiling.limit`` to ``bounds``.

    Returns whether the search was completed: then no stored solution is better than ``bounds``.

    A solution with the segment ``[a, b)`` costs at least ``forward(a) + penalty + cost(a, b) +
    backward(b)`` less ``k`` penalties, which leaves few segments to consider. States are pairs
    (position, segments so far): position ``p`` has the states ``pointer[p] .. pointer[p + 1]``, the
    first of them with ``base[p]`` segments. For each position ``b`` as an end:

    1. the last start that ``forward`` admits (it only grows with ``b``);
    2. from there back to the earliest, as far as ``forward(a) + cost(a, b) + backward(b)`` admits:
       an earlier start costs at least that much (two clusters cost no more than their union, and
       ``forward(a)`` no more than what leads to it);
    3. room for as many states as its starts have, one segment more;
    4. the cheapest way to each state, over all starts that their stored cost still admits;
    5. states whose cheapest completion exceeds the limit lead nowhere.

    6. if the end is reached below the limit, the bounds on the way to it.
    """
    sums, n = prefix.sums, prefix.n
    limit, penalty, forward, backward = ceiling
    most_cost = limit + penalty * k
    positions = _possible_bounds(n, k, ceiling)
    count = positions.size

    base = np.zeros(count, np.int64)
    pointer = np.zeros(count + 1, np.int64)
    best = np.empty(4 * count)
    predecessor = np.empty(4 * count, np.int64)
    best[0] = 0.0
    pointer[1] = 1
    latest = 0
    visits = 0
    most_visits = min(VISITS_PER_VALUE * n, MOST_VISITS)
    for p in range(1, count):
        end = positions[p]
        rest = backward[n - end]
        # 1
        while latest + 1 < p and forward[positions[latest + 1]] + penalty + rest <= most_cost:
            latest += 1
        # 2
        fewest = k
        most = 0
        earliest = latest + 1
        for q in range(latest, -1, -1):
            a = positions[q]
            visits += 1
            if forward[a] + segment_cost(sums, a, end) + rest > most_cost:
                break
            earliest = q
            if pointer[q + 1] > pointer[q]:
                fewest = min(fewest, base[q] + 1)
                most = max(most, base[q] + pointer[q + 1] - pointer[q])
        # 3
        if end == n:
            fewest = k
        width = max(0, min(most, k) - fewest + 1)
        base[p] = fewest
        pointer[p + 1] = pointer[p] + width
        if visits > most_visits or pointer[p + 1] > MOST_STATES:
            return False
        if pointer[p + 1] > best.size:
            best = _grown(best, pointer[p], 2 * pointer[p + 1])
            predecessor = _grown(predecessor, pointer[p], 2 * pointer[p + 1])
        here = pointer[p] - fewest
        for state in range(pointer[p], pointer[p + 1]):
            best[state] = np.inf
        # 4
        for q in range(earliest, latest + 1):
            if pointer[q + 1] == pointer[q]:
                continue
            a = positions[q]
            cost = stored_cost(prefix, a, end, rounding)
            if forward[a] + penalty + cost + rest > most_cost:
                continue
            there = pointer[q] - base[q]
            first = max(fewest, base[q] + 1)
            last = min(fewest + width - 1, base[q] + pointer[q + 1] - pointer[q])
            visits += last - first + 1
            for segments in range(first, last + 1):
                candidate = best[there + segments - 1] + cost
                if candidate < best[here + segments]:
                    best[here + segments] = candidate
                    predecessor[here + segments] = q
        # 5
        for segments in range(fewest, fewest + width):
            if best[here + segments] + rest - penalty * (k - segments) > limit:
                best[here + segments] = np.inf

    # 6
    if pointer[count] > pointer[count - 1] and best[pointer[count - 1]] < limit:
        p = count - 1
        for segments in range(k, 0, -1):
            bounds[segments] = positions[p]
            p = predecessor[pointer[p] + segments - base[p]]
    return True


@njit(cache=True, nogil=True)
def _grown(array, used, size):  # type: ignore[no-untyped-def]
    """Return a longer array with the ``used`` elements of this one; the rest is uninitialized."""
    longer = np.empty(size, array.dtype)
    for i in range(used):
        longer[i] = array[i]
    return longer


@njit(cache=True, nogil=True, error_model="numpy")
def refine_for_storage(prefix, k, penalty, rounding, tolerance, scratch):  # type: ignore[no-untyped-def]
    """Turn optimal bounds into bounds that are optimal for storable centres, in place.

    Parameters
    ----------
    prefix
        Of the ``n`` values.
    penalty
        Any positive penalty; the closer to the one that gives ``k`` segments, the less is searched.
    rounding
        To the table's dtype.
    tolerance
        Share of the error that is not worth a search.
    scratch
        As :func:`mlopt.palette.scalar.kmeans1d.solve` leaves it: ``bounds`` optimal for the plain
        cost, ``cost`` the prefix costs of ``penalty``.

    Returns
    -------
    gap
        How much the stored cost may be above the least, at most: 0.0 where it is proven the least.
    """
    if rounding.splitter == 0.0 or k < 2:
        return 0.0
    bounds = scratch.bounds
    plain = total_cost(prefix.sums, bounds, k)
    limit = settle(prefix, k, rounding, bounds)
    price = limit - plain
    if price <= RESOLVED * plain:
        return 0.0
    if price <= tolerance * plain:
        return price
    if prefix.n > FEW_VALUES and not is_worth_proving(price, plain, k):
        return price
    backward = near_suffix_costs(prefix, penalty, limit + penalty * k, scratch)
    ceiling = _Ceiling(limit, penalty, scratch.cost, backward)
    return 0.0 if _search(prefix, k, ceiling, rounding, bounds) else price


@njit(cache=True, nogil=True)
def is_worth_proving(price, plain, k):  # type: ignore[no-untyped-def]
    """Whether the price of rounding is small enough, relative to the plain error, for a proof."""
    return price * k <= PRICE_WORTH_PROVING * plain
