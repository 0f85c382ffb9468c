"""Plain references for one-dimensional clustering: dense dynamic programs in extended precision.

They share nothing with the library: no prefix sums over the whole input, no property of the costs
is used, every segment is considered.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

FORMATS: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


def nearest_storable(numbers: Floats, dtype: Any) -> Floats:
    """The number of a float format nearest to each number, as longdouble.

    Conversions may round twice (float64 to bfloat16 by way of float32), so the neighbours on either
    side of what a conversion gives are tried as well.
    """
    numbers = np.asarray(numbers, np.longdouble)
    first = numbers.astype(np.float64).astype(dtype)
    candidates = [first]
    for towards in (-np.inf, np.inf):
        candidates.append(np.nextafter(first, np.asarray(towards, dtype)))
    wide = np.array([c.astype(np.float64).astype(np.longdouble) for c in candidates])
    wide[~np.isfinite(wide)] = np.nan
    misses = np.where(np.isnan(wide), np.inf, np.abs(wide - numbers))
    return np.asarray(np.take_along_axis(wide, misses.argmin(axis=0)[None], axis=0)[0])


def segment_costs(values: Floats, masses: Floats, stored_as: Any = None) -> Floats:
    """Squared error of every segment ``[i, j)`` of ascending values, longdouble[n + 1, n + 1].

    About the segment's mean, or with ``stored_as`` about the number of that float format nearest to
    the mean. Infinite for ``j <= i``. Sums start anew, about ``values[i]``, for each ``i``.
    """
    n = len(values)
    x = np.asarray(values, np.longdouble)
    costs = np.full((n + 1, n + 1), np.inf, np.longdouble)
    for i in range(n):
        h = np.asarray(masses[i:], np.longdouble)
        away = x[i:] - x[i]
        mass, moment, square = np.cumsum(h), np.cumsum(h * away), np.cumsum(h * away * away)
        mean = moment / mass
        costs[i, i + 1 :] = np.maximum(square - moment * mean, 0)
        if stored_as is not None:
            miss = mean - (nearest_storable(mean + x[i], stored_as) - x[i])
            costs[i, i + 1 :] += mass * miss * miss
    return costs


def least_costs(costs: Floats, most: int) -> Floats:
    """The cost of the cheapest segmentation into exactly 1, ..., ``most`` segments.

    ``costs`` as from :func:`segment_costs`, of any precision; ``most <= n``.
    """
    path = costs[0]
    least = [path[-1]]
    for _ in range(1, most):
        path = (path[:, None] + costs).min(axis=0)
        least.append(path[-1])
    return np.array(least)


def cost_of_bounds(values: Floats, masses: Floats, bounds: Floats) -> Any:
    """Squared error of the segments between consecutive bounds, each about its mean."""
    x, h = np.asarray(values, np.longdouble), np.asarray(masses, np.longdouble)
    total = np.longdouble(0)
    for left, right in pairwise(bounds):
        away = x[left:right] - x[left]
        mean = (h[left:right] * away).sum() / h[left:right].sum()
        total += (h[left:right] * (away - mean) ** 2).sum()
    return total


def spread(values: Floats, masses: Floats) -> Any:
    """Squared error about the common mean: what an error of rounding has to be small against."""
    return cost_of_bounds(values, masses, np.array([0, len(values)]))


def nearest_cost(values: Floats, table: Floats, masses: Floats | None = None) -> Any:
    """Squared error of each value about the nearest entry of a table, summed."""
    x = np.asarray(values, np.float64).astype(np.longdouble).reshape(-1)
    t = np.sort(np.asarray(table, np.float64).reshape(-1)).astype(np.longdouble)
    upper = np.clip(np.searchsorted(t, x), 1, len(t) - 1) if len(t) > 1 else np.zeros(len(x), int)
    lower = np.maximum(upper - 1, 0)
    squares = np.minimum((x - t[lower]) ** 2, (x - t[upper]) ** 2)
    return (squares if masses is None else squares * np.asarray(masses).reshape(-1)).sum()


def distinct(weight: Floats, importance: Floats | None = None) -> tuple[Floats, Floats]:
    """Ascending distinct values and the mass on each, those of no mass left out; float64."""
    # numpy 2.3 sorts large float16 arrays wrongly with AVX-512, so everything is widened first
    flat = np.asarray(weight).astype(np.float64).reshape(-1)
    mass = np.ones(flat.size) if importance is None else np.asarray(importance, np.float64).ravel()
    values, inverse = np.unique(flat, return_inverse=True)
    masses = np.bincount(inverse, weights=mass, minlength=len(values))
    return values[masses > 0], masses[masses > 0]
