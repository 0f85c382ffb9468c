"""Vector tables where the elements of one vector matter differently.

A per-channel scale, or an importance for each weight, weighs the elements of a vector one by one.
:func:`mlopt.palette.vectors.cluster_vectors` knows one importance for a whole vector, which finds
good centres to begin with; Lloyd's iteration with the elements' own weights ends from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[Any]

MOST_STEPS = 12


def settle_centers(
    vectors: Floats, weights: npt.NDArray[np.float64], centers: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Lloyd's iteration on ``sum_ij weights[i, j] * (vectors[i, j] - center[j])**2``.

    Parameters
    ----------
    vectors
        [n, d], finite.
    weights
        float64[n, d], not negative.
    centers
        float64[k, d] to start from.

    Returns
    -------
    float64[k, d]: the cost never rises. An element of a centre to which nothing of weight belongs
    stays what it was. Deterministic: sums run in the order of the vectors.
    """
    centers = centers.copy()
    labels = np.full(len(vectors), -1, np.int64)
    for _ in range(MOST_STEPS):
        if not _assign(vectors, weights, centers, labels):
            break
        _update(vectors, weights, labels, centers)
    return centers


def assign_weighted(
    vectors: Floats, weights: npt.NDArray[np.float64], centers: Floats
) -> npt.NDArray[np.uint8]:
    """The nearest centre of each vector by its own weights, the first of equally near: uint8[n]."""
    labels = np.full(len(vectors), -1, np.int64)
    _assign(vectors, weights, centers.astype(np.float64), labels)
    return labels.astype(np.uint8)


@njit(cache=True, nogil=True)
def _assign(vectors, weights, centers, labels):  # type: ignore[no-untyped-def]
    """Label every vector; returns whether a label changed."""
    changed = False
    for i in range(vectors.shape[0]):
        best = np.inf
        nearest = 0
        for c in range(centers.shape[0]):
            cost = 0.0
            for j in range(vectors.shape[1]):
                miss = np.float64(vectors[i, j]) - centers[c, j]
                cost += weights[i, j] * miss * miss
            if cost < best:
                best = cost
                nearest = c
        if labels[i] != nearest:
            labels[i] = nearest
            changed = True
    return changed


@njit(cache=True, nogil=True)
def _update(vectors, weights, labels, centers):  # type: ignore[no-untyped-def]
    """Move every centre to the weighted means of its vectors' elements."""
    sums = np.zeros(centers.shape)
    masses = np.zeros(centers.shape)
    for i in range(vectors.shape[0]):
        c = labels[i]
        for j in range(vectors.shape[1]):
            sums[c, j] += weights[i, j] * np.float64(vectors[i, j])
            masses[c, j] += weights[i, j]
    for c in range(centers.shape[0]):
        for j in range(centers.shape[1]):
            if masses[c, j] > 0.0:
                centers[c, j] = sums[c, j] / masses[c, j]
