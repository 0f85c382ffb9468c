"""Vector tables where the elements of one vector differ in importance.

A per-channel scale, or an importance per element, weighs the elements of a vector one by one.
``cluster_vectors`` has one importance per vector, which finds good centres to begin with; Lloyd's
iteration with the elements' own weights continues from there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.palette.vector.clustering import assign_vectors
from mlopt.palette.vector.nearest import Nearest
from mlopt.palette.vector.points import exponent_of

Floats = npt.NDArray[Any]

MOST_STEPS = 24

_SETTLED = 1e-4
"""Share of the cost that a step must gain."""


def settle_centers(
    vectors: Floats,
    weights: npt.NDArray[np.float64],
    centers: npt.NDArray[np.float64],
    *,
    workers: int = 1,
) -> npt.NDArray[np.float64]:
    """Lloyd's iteration on ``sum_ij weights[i, j] * (vectors[i, j] - center[j])**2``.

    Parameters
    ----------
    vectors
        [n, d], finite.
    weights
        float64[n, d], not negative.
    centers
        float64[k, d] to start from, 1 <= k <= 256.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    float64[k, d]: the cost never rises, except by rounding to the dtype of the vectors. An element
    of a centre to which nothing of weight belongs stays what it was. At most 24 steps, each at most
    ``n (k + 1)`` distances and far fewer once centres hardly move; memory as for
    :class:`mlopt.palette.vector.nearest.Nearest`.
    """
    exponent = exponent_of(vectors)
    centers = np.ldexp(centers, -exponent)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        nearest = Nearest(vectors, exponent, weights, pool if workers > 1 else None)
        for _ in range(MOST_STEPS):
            sums, masses = nearest.assign(centers)
            cost = nearest.cost()
            means = np.divide(sums, masses, out=centers.copy(), where=masses > 0)
            gain = float((masses * (means - centers) ** 2).sum())
            centers = means
            if gain <= _SETTLED * cost:
                break
    return np.ldexp(centers, exponent)


def assign_weighted(
    vectors: Floats, weights: npt.NDArray[np.float64], centers: Floats, *, workers: int = 1
) -> npt.NDArray[np.uint8]:
    """Return the nearest centre of each vector by its own weights, ties to the first: uint8[n]."""
    return assign_vectors(vectors, centers, weights, workers=workers)
