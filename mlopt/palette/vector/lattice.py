"""Vector tables whose elements are points of a lattice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.palette.value.quantized import Lattice
from mlopt.palette.vector.nearest import Nearest
from mlopt.palette.vector.points import exponent_of, fine_enough

Floats = npt.NDArray[Any]

MOST_STEPS = 4


def settle_on_lattice(
    vectors: Floats,
    table: Floats,
    lattice: Lattice,
    weights: npt.NDArray[np.float64] | None = None,
    *,
    workers: int = 1,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Round a table to a lattice, and continue Lloyd's iteration while the error falls.

    For given labels, the best centre on a lattice is the one nearest to the mean, element by
    element. So the iteration is the usual one with a rounding, whose first step is to round the
    table and to assign anew.

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
        At most 4 steps; the work and memory of each is that of
        :meth:`mlopt.palette.vector.nearest.Nearest.assign`.
    """
    positions = lattice.nearest(table.astype(np.float64))
    exponent = exponent_of(vectors)
    best, least = None, np.inf
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        fine = fine_enough(vectors, lattice.points)
        nearest = Nearest(fine, exponent, weights, pool if workers > 1 else None)
        for _ in range(MOST_STEPS):
            entries = np.ldexp(lattice.points[positions], -exponent)
            sums, masses = nearest.assign(entries, exact=True)
            cost = nearest.cost()
            if best is not None and not cost < least:
                break
            best, least = (positions, nearest.labels), cost
            means = np.divide(sums, masses, out=entries, where=masses > 0)
            positions = lattice.nearest(np.ldexp(means, exponent))
    assert best is not None
    return best
