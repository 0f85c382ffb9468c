"""The optimum among tables that can be *stored*: centroids rounded to the table's float format.

Rounding the optimal means costs a little, and the segmentation that was best before rounding need
not be best after it. With ``r(m)`` the storable number nearest to a segment's mean ``m``, a segment
costs ``cost + mass * (m - r(m))**2``, and the best table of storable numbers is the cheapest
segmentation under that cost. It is not Monge, so no fast programme solves it outright, but it is
never below the plain cost. The plain problem, solved forwards and backwards under a penalty, gives
a lower bound for every solution that has a bound at position ``i``:

    forward(i) + backward(i) - penalty * k

Positions where this exceeds the cost of a stored solution in hand cannot be a bound of a better
one. A few positions around each bound are left, and a programme over those finishes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mlopt.palette.scalar.segments import mirror_sums, penalised_paths, segment_cost, total_cost

# Significant bits, exponent of the smallest normal number, exponent of the smallest step.
_FORMATS = {
    "float16": (11, -14, -24),
    "bfloat16": (8, -126, -133),
    "float32": (24, -126, -149),
}

# Positions that a bound moves by in one round of `settle`, and the most rounds.
REACH = 4
MOST_ROUNDS = 8

# The proof is attempted where the price of rounding, relative to the error and times k, is small:
# then few positions survive. That is so wherever means are rounded finely against the width of
# their clusters (up to 6 bits in float16, as a rule). Beyond, and where the proof considers more
# segments a value, or segments and states in all, than these, the settled solution stands. Its
# excess over the plain optimum is a thousandth or so, most of it the price of rounding that no
# solution avoids, and is what `refine_for_storage` returns. Few values are always searched.
PRICE_WORTH_PROVING = 0.05
FEW_VALUES = 256
VISITS_PER_VALUE = 150
MOST_VISITS = 1 << 25
MOST_STATES = 1 << 24


def rounding_constants(dtype_name: str) -> tuple[float, float, float]:
    """What :func:`round_to_stored` needs to round float64 to a narrower float format.

    (splitter, smallest normal, magic): Dekker's constant ``2**(53 - p) + 1`` for ``p`` significant
    bits, and the number whose addition and subtraction rounds to the subnormal step. float64 gives
    zeros: nothing to round.
    """
    if dtype_name not in _FORMATS:
        return 0.0, 0.0, 0.0
    bits, normal, step = _FORMATS[dtype_name]
    return 2.0 ** (53 - bits) + 1.0, 2.0**normal, 1.5 * 2.0 ** (52 + step)


@njit(cache=True, nogil=True, error_model="numpy")
def round_to_stored(number, splitter, smallest_normal, magic):  # type: ignore[no-untyped-def]
    """The nearest number of a narrower float format (Dekker 1971); see ``rounding_constants``."""
    if splitter == 0.0:
        return number
    if abs(number) < smallest_normal:
        return (number + magic) - magic
    split = number * splitter
    return split - (split - number)


@njit(cache=True, nogil=True, error_model="numpy")
def stored_cost(sums, origin, i, j, splitter, smallest_normal, magic):  # type: ignore[no-untyped-def]
    """Squared error of ``[i, j)`` about the storable number nearest to its mean."""
    mass = sums[0, j] - sums[0, i]
    moment = sums[1, j] - sums[1, i]
    cost = sums[2, j] - sums[2, i] - moment * moment / mass
    centre = origin + moment / mass
    miss = centre - round_to_stored(centre, splitter, smallest_normal, magic)
    return max(cost, 0.0) + mass * miss * miss


@njit(cache=True, nogil=True, error_model="numpy")
def stored_table(sums, origin, bounds, k, splitter, smallest_normal, magic, table):  # type: ignore[no-untyped-def]
    """Write the storable centre of each segment into ``table[:k]`` (float64, ascending)."""
    for j in range(k):
        mass = sums[0, bounds[j + 1]] - sums[0, bounds[j]]
        moment = sums[1, bounds[j + 1]] - sums[1, bounds[j]]
        table[j] = round_to_stored(origin + moment / mass, splitter, smallest_normal, magic)


@njit(cache=True, nogil=True, error_model="numpy")
def settle(sums, origin, k, splitter, smallest_normal, magic, bounds):  # type: ignore[no-untyped-def]
    """Let all bounds move together, each by up to ``REACH`` positions, until no move pays.

    Less far where segments are short: a quarter of their mean length.

    One programme a round over the positions near each bound; returns the stored cost reached.
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
                    candidate = before[t] + stored_cost(
                        sums, origin, start, end, splitter, smallest_normal, magic
                    )
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


@njit(cache=True, nogil=True, error_model="numpy")
def _search(  # type: ignore[no-untyped-def]  # noqa: C901, PLR0912, PLR0913, PLR0915 - the search of a kernel is one loop
    sums, origin, n, k, penalty, limit, forward, backward, splitter, smallest_normal, magic, bounds
):
    """The cheapest stored solution of cost below ``limit``, written to ``bounds``; see the module.

    Returns whether the search was completed: then no stored solution is better than ``bounds``.

    ``forward`` and ``backward`` are the penalised costs of prefixes and of (mirrored) suffixes. A
    solution with the segment ``[a, b)`` costs at least ``forward(a) + penalty + cost(a, b) +
    backward(b)`` less ``k`` penalties, which leaves few segments to consider. Their ``a`` are found
    by walking back from the last that ``forward`` admits, as far as ``forward(a) + cost(a, b) +
    backward(b)`` does: an earlier start costs at least that much (two clusters cost no more than
    their union, and ``forward(a)`` no more than what leads to it).

    States are pairs (position, segments so far); ``base`` and ``pointer`` give a position's states.
    """
    ceiling = limit + penalty * k
    positions = np.empty(n + 1, np.int64)
    positions[0] = 0
    count = 1
    for i in range(1, n):
        if forward[i] + backward[n - i] <= ceiling:
            positions[count] = i
            count += 1
    positions[count] = n
    count += 1

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
        while latest + 1 < p and forward[positions[latest + 1]] + penalty + rest <= ceiling:
            latest += 1
        fewest = k
        most = 0
        earliest = latest + 1
        for q in range(latest, -1, -1):
            a = positions[q]
            visits += 1
            if forward[a] + segment_cost(sums, a, end) + rest > ceiling:
                break
            earliest = q
            if pointer[q + 1] > pointer[q]:
                fewest = min(fewest, base[q] + 1)
                most = max(most, base[q] + pointer[q + 1] - pointer[q])
        if end == n:
            fewest = k
        width = max(0, min(most, k) - fewest + 1)
        base[p] = fewest
        pointer[p + 1] = pointer[p] + width
        if visits > most_visits or pointer[p + 1] > MOST_STATES:
            return False
        if pointer[p + 1] > best.size:
            size = 2 * pointer[p + 1]
            larger = np.empty(size)
            larger_predecessor = np.empty(size, np.int64)
            for state in range(pointer[p]):
                larger[state] = best[state]
                larger_predecessor[state] = predecessor[state]
            best = larger
            predecessor = larger_predecessor
        here = pointer[p] - fewest
        for state in range(pointer[p], pointer[p + 1]):
            best[state] = np.inf
        for q in range(earliest, latest + 1):
            if pointer[q + 1] == pointer[q]:
                continue
            a = positions[q]
            cost = stored_cost(sums, origin, a, end, splitter, smallest_normal, magic)
            if forward[a] + penalty + cost + rest > ceiling:
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
        # a state whose cheapest completion exceeds the limit leads nowhere
        for segments in range(fewest, fewest + width):
            if best[here + segments] + rest - penalty * (k - segments) > limit:
                best[here + segments] = np.inf

    if pointer[count] > pointer[count - 1] and best[pointer[count - 1]] < limit:
        p = count - 1
        for segments in range(k, 0, -1):
            bounds[segments] = positions[p]
            p = predecessor[pointer[p] + segments - base[p]]
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def refine_for_storage(  # type: ignore[no-untyped-def]  # noqa: PLR0913 - a kernel writes to arrays of its caller
    sums,
    origin,
    n,
    k,
    penalty,
    constants,
    bounds,
    cost,
    offset,
    start,
    queue,
    since,
):
    """Turn optimal bounds into bounds that are optimal for storable centres, in place.

    Parameters
    ----------
    sums, origin
        Of the ``n`` values, see :mod:`mlopt.palette.scalar.segments`.
    penalty
        Any positive penalty; the closer to the one that gives ``k`` segments, the less is searched.
        ``cost`` has to hold the prefix costs of that penalty.
    constants
        ``rounding_constants`` of the table's dtype.
    bounds
        int64[>= k + 1]; optimal for the plain cost on entry.
    offset, start, queue, since
        Scratch of ``penalised_paths``.

    Returns
    -------
    gap
        How much the stored cost may be above the least, at most: 0.0 where it is proven the least.
    """
    splitter, smallest_normal, magic = constants
    if splitter == 0.0 or k < 2:
        return 0.0
    plain = total_cost(sums, bounds, k)
    limit = settle(sums, origin, k, splitter, smallest_normal, magic, bounds)
    # Nothing to gain beyond what float64 sums resolve.
    price = limit - plain
    if price <= 1e-11 * plain:
        return 0.0
    if n > FEW_VALUES and not is_worth_proving(price, plain, k):
        return price
    mirrored = np.empty((3, n + 1))
    mirror_sums(sums, n, mirrored)
    backward = np.empty(n + 1)
    penalised_paths(mirrored, n, penalty, backward, offset, start, queue, since)
    proven = _search(
        sums,
        origin,
        n,
        k,
        penalty,
        limit,
        cost,
        backward,
        splitter,
        smallest_normal,
        magic,
        bounds,
    )
    return 0.0 if proven else price


@njit(cache=True, nogil=True)
def is_worth_proving(price, plain, k):  # type: ignore[no-untyped-def]
    """Whether the price of rounding is small enough, beside the least plain error, for a proof."""
    return price * k <= PRICE_WORTH_PROVING * plain
