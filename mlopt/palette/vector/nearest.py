"""Nearest centres of vectors, updated as the centres move.

Each vector keeps an upper bound on the distance to its own centre and a lower bound on the distance
to all others (Hamerly, "Making k-means even faster", 2010). When centres move, the triangle
inequality moves the bounds; while the upper one stays below the lower one, the label stays and no
distance is computed. Here the lower bound falls by the largest move among the centres *near* the
vector's own, those nearer than twice the cluster's radius, as the others cannot matter; one far
centre that jumps does not cost all vectors their bounds. Vectors whose bounds fail are compared
with the near centres only.

Work of one :meth:`Nearest.assign` of ``n`` vectors of ``d`` elements to ``k`` centres: at most
``n * (k + 1)`` distances (as many the first time), ``k**2`` between centres, and one walk over all
vectors: O(n k d + k**2 d) at worst, O(n d + k**2 d) once centres hardly move. Memory: ``4 d + 9``
bytes per vector (float64: ``8 d + 17``).

Everything is summed in a fixed order by blocks of a fixed length, so that the result is the same on
every machine and for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.vector.bounds import (
    Known,
    Moves,
    Points,
    add_up,
    near_centers,
    reassign,
    weighted_cost,
)
from mlopt.palette.vector.points import scaled_columns

Floats = npt.NDArray[Any]

BLOCK = 1 << 16
"""Vectors that are summed together. The result depends on it: sums of blocks are added in order."""

NO_WEIGHTS = np.empty((0, 0))
NO_WEIGHTS.flags.writeable = False


def slices(n: int) -> Iterator[slice]:
    """Consecutive slices of :data:`BLOCK` rows."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


@attrs.frozen(eq=False)
class _Block:
    """Some of the vectors, with their state."""

    points: Points
    known: Known


def _made(points: Points) -> _Block:
    """Return a block whose labels and bounds are not known yet."""
    dtype, m = points.columns.dtype, points.columns.shape[1]
    upper = np.full(m, np.inf, dtype)
    if points.by_element:
        # A vector of weight 0 is always equally near to all centres.
        upper[~points.weights.any(axis=1)] = -np.inf
    return _Block(points, Known(np.zeros(m, np.uint8), upper, np.zeros(m, dtype)))


class Nearest:
    """Vectors, and the nearest of some centres to each.

    Parameters
    ----------
    points
        [n, d]: float16, bfloat16, float32 or float64, finite.
    exponent
        The vectors are divided by ``2**exponent``, see
        :func:`mlopt.palette.vector.points.exponent_of`; centres must be divided by it too.
    weights
        float64[n], the importance of vectors; or float64[n, d], that of their elements, with the
        distance ``sqrt(sum_j weights[i, j] * (points[i, j] - center[j])**2)``; None for 1.
    pool
        Threads that take blocks; None: the calling thread alone.

    Attributes
    ----------
    evaluations: distances of a vector to a centre computed so far.
    """

    def __init__(
        self,
        points: Floats,
        exponent: int,
        weights: npt.NDArray[np.float64] | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self._pool = pool
        self.by_element = weights is not None and weights.ndim == 2
        self.evaluations = 0
        self._table: Floats | None = None
        self._reach: Floats = np.empty(0)

        def block(part: slice) -> _Block:
            heavy = NO_WEIGHTS
            if weights is not None:
                heavy = np.ascontiguousarray(weights[part]).reshape(part.stop - part.start, -1)
                heavy.flags.writeable = False  # kernels are compiled only for these
            return _made(Points(scaled_columns(points[part], exponent), heavy, self.by_element))

        self._blocks = [block(part) for part in slices(len(points))]
        least = 1.0
        if self.by_element:
            least = min(_least_share(block.points.weights) for block in self._blocks)
        self._contraction = float(np.sqrt(least))

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """uint8[n]."""
        return np.concatenate([block.known.labels for block in self._blocks])

    def assign(
        self, centers: npt.NDArray[np.float64], *, exact: bool = False
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Label each vector with the nearest centre, and add up the vectors of each centre.

        Parameters
        ----------
        centers
            float64[k, d], 1 <= k <= 256, the same k in all calls. Rounded to the dtype in which
            distances are computed: float32, or float64 for vectors of float64.
        exact
            Compare nearly equal distances in float64, and of equal ones take the first centre. For
            final labels; iterations in between do not need it.

        Returns
        -------
        sums, masses
            float64[k, d] and float64[k, 1] (with importance of elements [k, d]).
        """
        table = centers.astype(self._blocks[0].points.columns.dtype)
        moves = self._moves(table)
        k, d = table.shape

        def one(block: _Block) -> Any:
            sums = np.zeros((k, d))
            masses = np.zeros((k, d if self.by_element else 1))
            count, reach = reassign(block.points, table, moves, block.known, exact)
            add_up(block.points, block.known.labels, sums, masses)
            return sums, masses, reach, count

        sums, masses = np.zeros((k, d)), np.zeros((k, d if self.by_element else 1))
        reach = np.zeros(k, table.dtype)
        for block_sums, block_masses, block_reach, count in self._each(one):
            sums += block_sums
            masses += block_masses
            np.maximum(reach, block_reach, out=reach)
            self.evaluations += count
        self._table, self._reach = table, reach
        return sums, masses

    def cost(self) -> float:
        """Return ``sum_i weights[i] * |point - center|**2`` with the last labels and centres."""
        assert self._table is not None
        return sum(
            float(weighted_cost(block.points, block.known.labels, self._table)[0])
            for block in self._blocks
        )

    def farthest(self, count: int) -> npt.NDArray[np.float64]:
        """Return up to ``count`` vectors that cost most, at most one per block, none of cost 0.

        float64[m, d], the most expensive first.
        """
        assert self._table is not None
        if count == 0:
            return np.empty((0, self._table.shape[1]))
        expensive = []
        for block in self._blocks:
            _, cost, row = weighted_cost(block.points, block.known.labels, self._table)
            if cost > 0:
                expensive.append((cost, block.points.columns[:, row].astype(np.float64)))
        expensive.sort(key=lambda pair: -pair[0])
        return np.array([point for _, point in expensive[:count]]).reshape(-1, self._table.shape[1])

    def _each(self, function: Callable[[_Block], Any]) -> Iterator[Any]:
        if self._pool is None or len(self._blocks) == 1:
            return map(function, self._blocks)
        return self._pool.map(function, self._blocks)

    def _moves(self, table: Floats) -> Moves:
        """Return the effect of the move from the last centres to ``table`` on the bounds."""
        k = len(table)
        half_gap, own, near, far = np.zeros((4, k), table.dtype)
        moves = Moves(
            starts=np.zeros(k + 1, np.int64),
            members=np.empty(k * k, np.int16),
            gaps=np.zeros(k * k, table.dtype),
            half_gap=half_gap,
            own=own,
            near=near,
            far=far,
        )
        if self._table is None:
            moves.starts[1:] = k
            moves.members[:k] = np.arange(k)
            moves.far[:] = np.inf
        else:
            near_centers(self._table, table, self._reach, self._contraction, moves)
        return moves


def _least_share(weights: npt.NDArray[np.float64]) -> float:
    """Return the least ratio of an element's weight to its vector's largest, unless that is 0."""
    largest = weights.max(axis=1)
    some = largest > 0
    if not some.any():
        return 1.0
    return float((weights[some].min(axis=1) / largest[some]).min())
