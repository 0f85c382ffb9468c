"""Vector tables whose elements are points of a lattice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.quantized import Lattice
from mlopt.palette.vector_importance import assign_weighted
from mlopt.palette.vectors import assign_vectors

Floats = npt.NDArray[Any]

MOST_STEPS = 4

_BLOCK = 1 << 15
"""Vectors that are added up at a time."""


def settle_on_lattice(
    vectors: Floats,
    table: Floats,
    lattice: Lattice,
    weights: npt.NDArray[np.float64] | None = None,
    *,
    workers: int = 1,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Round a table to a lattice, and go on with Lloyd's iteration while the error falls.

    For given labels, the best centre on a lattice is the one nearest to the mean, element by
    element. So the iteration is the usual one with a rounding, and rounding the table and assigning
    anew is its first step.

    Parameters
    ----------
    vectors
        [n, d], float16, bfloat16, float32 or float64.
    table
        [k, d], the centres to start from.
    weights
        float64[n, d], not negative: importance of the elements; None for 1.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    positions, labels
        int64[k, d] into the lattice's points, and the nearest entry of each vector, uint8[n].
    """
    positions = lattice.nearest(table.astype(np.float64))
    best, least = None, np.inf
    for _ in range(MOST_STEPS):
        entries = lattice.points[positions]
        if weights is None:
            labels = assign_vectors(vectors, entries, workers=workers)
        else:
            wide = vectors.astype(np.float64, copy=False)
            labels = assign_weighted(wide, weights, entries)
        cost, means = _judged(vectors, weights, labels, entries)
        if best is not None and not cost < least:
            break
        best, least = (positions, labels), cost
        positions = lattice.nearest(means)
    assert best is not None
    return best


def _judged(
    vectors: Floats,
    weights: npt.NDArray[np.float64] | None,
    labels: npt.NDArray[np.uint8],
    entries: npt.NDArray[np.float64],
) -> tuple[float, npt.NDArray[np.float64]]:
    """The squared error, and the means [k, d]; an element without importance stays what it was."""
    sums, masses = np.zeros(entries.shape), np.zeros(entries.shape)
    cost = 0.0
    for start in range(0, len(vectors), _BLOCK):
        part = slice(start, start + _BLOCK)
        wide = vectors[part].astype(np.float64)
        heavy = np.ones(wide.shape) if weights is None else weights[part]
        cost += _accumulate(wide, heavy, labels[part], entries, sums, masses)
    return cost, np.divide(sums, masses, out=entries.copy(), where=masses > 0.0)


@njit(cache=True, nogil=True)
def _accumulate(vectors, weights, labels, entries, sums, masses):  # type: ignore[no-untyped-def]
    """Add up elements and their importance by label; returns the squared error of these vectors."""
    cost = 0.0
    for i in range(vectors.shape[0]):
        c = labels[i]
        for j in range(vectors.shape[1]):
            h = weights[i, j]
            miss = vectors[i, j] - entries[c, j]
            cost += h * miss * miss
            sums[c, j] += h * vectors[i, j]
            masses[c, j] += h
    return cost
