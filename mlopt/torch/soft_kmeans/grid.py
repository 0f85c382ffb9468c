"""Many scalar points in float32, by the nodes of a grid that is fine against the temperature.

Attention is a smooth function of the point. Where points are many, it is computed at the nodes of a
grid alone, and interpolated between them by cubics (Lagrange, four nodes): sums over points become
sums over nodes, where what a point adds is divided over its four nodes by the same cubics, as in
the particle-mesh methods of Hockney and Eastwood, "Computer Simulation Using Particles", 1988. An
iteration then costs as much as there are nodes; the points themselves are visited a few times in
the call and in the backward pass.

With ``tau`` the temperature, attention between two neighbouring centroids at a distance ``L``
changes e-fold over ``tau / (2 L)``, and that to others, where it is above ``exp(-10)``, at least
over ``tau / (2 sqrt(10 tau))``. Between these centroids nodes are at most :data:`_STEP` times that
apart. Cubics are then wrong by ``3 / 128 step**4 |f''''|``, at most 7e-7 of the largest attention:
as little as float32. Distances of nodes are powers of two, so that nodes, and the places of points
between them, are exact in float32. Only nodes next to points are kept.

Two things can spoil that, and :meth:`Grid.stands` finds both when the centroids are known:
centroids that move far apart in the iterations, and clusters without points of their own, whose
attention is all below what is interpolated well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from mlopt.torch.soft_kmeans.grid_kernels import (
    LEVELS,
    Cells,
    add_moments,
    divide_moments,
    fill_cubics,
    find_nodes,
    interpolate,
    interpolate_line,
    mark_used,
)
from mlopt.torch.soft_kmeans.iterations import Trajectory
from mlopt.torch.soft_kmeans.workers import each

T = TypeVar("T")
Array = npt.NDArray[Any]

_STEP = 0.125
"""Distance of nodes over that in which attention changes e-fold."""

_REACH = math.sqrt(10.0)
"""Distance of centroids, in roots of the temperature, where attention falls to ``exp(-10)``."""

_MOST_MOVE = 0.125
"""Move of a centroid, over the distances that its nodes were made for, that leaves them fine."""

_LEAST_OWN = 0.25
"""Share of a cluster's attention that comes from the points nearest to it."""

_LEAST_STEP = 2.0**-100
"""What is finer is too near to the end of float32."""

_POINTS_A_NODE = 4
"""Points per node from which on a grid pays."""

_CELLS_A_POINT = 2
"""Cells per point beyond which no nodes are looked for: most cells would be empty."""

_KEPT_A_POINT = 1
"""Bytes per point up to which a whole grid is kept for the gradient."""

_FEWEST = 1 << 13
"""Points of a group below which all of them cost little."""

_PIECE = 1 << 16
"""Points that a thread takes at a time, at least. Sums are added up in the order of pieces."""


@attrs.frozen(eq=False)
class Grid:
    """The nodes of ``G`` groups, ``U`` each, and the mass at each.

    Attributes
    ----------
    points
        float32[G, U, 1], the nodes. The four of a point follow one another; where the distance of
        nodes changes, or no points are, the next ones may begin before those end. The last one is
        repeated where a group has fewer.
    mass
        float32[G, U], number of points, or their importance. Not all are positive.
    cells
        Of each group.
    is_small
        Whether all of it is kept for the gradient. Otherwise only the mass is, and the rest is
        found again.
    """

    points: Tensor
    mass: Tensor
    cells: tuple[Cells, ...]
    is_small: bool

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """See ``StandIns``."""
        if not self.is_small:
            return (self.mass,)
        places = [(each.per_step, each.first, each.level.size) for each in self.cells]
        node_of = np.concatenate([each.node_of for each in self.cells])
        level = np.concatenate([each.level for each in self.cells])
        arrays = (np.array(places, np.float64), node_of, level)  # which holds them exactly
        return self.mass, self.points, *map(torch.from_numpy, arrays)

    @classmethod
    def of_parts(cls, parts: Sequence[Tensor]) -> Grid:
        """Return a small grid again, from its ``parts``."""
        mass, points, *rest = parts
        places, node_of, level = (tensor.numpy() for tensor in rest)
        ends = np.cumsum(places[:, 2]).astype(np.int64)
        cells = [
            Cells(np.float32(per_step), int(first), node_of[start:end], level[start:end])
            for (per_step, first, _), start, end in zip(places, [0, *ends], ends, strict=False)
        ]
        return cls(points, mass, tuple(cells), is_small=True)

    def stands(self, trajectory: Trajectory, rates: Tensor) -> bool:
        """Whether the nodes were fine enough in all iterations; see ``StandIns``."""
        centroids = trajectory.centroids[:-1, ..., 0].double()
        ascending, order = torch.sort(centroids[0], dim=1)
        made_for = _distances(ascending, 1.0 / rates.double()[:, None])
        if ascending.shape[1] > 1:
            before, after = (pad(made_for, ends, value=math.inf) for ends in ((1, 0), (0, 1)))
            moves = (centroids.gather(2, order.expand_as(centroids)) - ascending).abs()
            if not bool((moves <= _MOST_MOVE * torch.minimum(before, after)).all()):
                return False
        # the mass of the points that are nearest to each centroid, in order; nodes nearly ascend
        running = pad(self.mass.double().cumsum(1), (1, 0))
        nodes = self.points[..., 0].double()
        for here, size in zip(centroids, trajectory.sizes.double(), strict=True):
            inner = here.gather(1, order)
            middles = ((inner[:, 1:] + inner[:, :-1]) / 2).contiguous()
            ends = pad(torch.searchsorted(nodes, middles), (0, 1), value=nodes.shape[1])
            own = running.gather(1, ends).diff(dim=1, prepend=running[:, :1])
            size = size.gather(1, order)
            is_fine = (own >= _LEAST_OWN * size) & (size > 0.0)
            if trajectory.pinned is not None:
                is_fine |= trajectory.pinned.gather(1, order)
            if not bool(is_fine.all()):
                return False
        return True

    def sums(self, points: Tensor, terms: Tensor) -> Tensor:
        """Divide the terms of points over nodes; see ``StandIns``."""
        groups, count = self.mass.shape

        def add(g: int, span: slice) -> tuple[int, Array]:
            moments = np.zeros((count, 4))
            terms_here = terms[g, span].float().contiguous().numpy()
            add_moments(_values(points, g, span), self.cells[g], terms_here, moments)
            sums = np.empty(count)
            divide_moments(moments, sums)
            return g, sums

        total = np.zeros((groups, count))
        # what is cleared and held for a piece stays small beside it
        for g, sums in _each_piece(add, points, most=max(_PIECE, 8 * count)):
            total[g] += sums
        return torch.from_numpy(total).float()

    def spread(self, points: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Interpolate numbers at nodes; see ``StandIns``."""
        out = torch.empty(points.shape)
        cubics = _cubics([numbers])

        def fill(g: int, span: slice) -> None:
            into = out[g, span, 0].numpy()
            interpolate(_values(points, g, span), self.cells[g], cubics[g], into)

        _each_piece(fill, points)
        return out.to(dtype)

    def line(
        self,
        points: Tensor,
        *,
        slopes: Tensor,
        pull: Tensor,
        shares: Tensor,
        importance: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """See ``StandIns``."""
        out = torch.empty(points.shape)
        cubics = _cubics([slopes, shares])
        none = np.empty(0, np.float32)

        def fill(g: int, span: slice) -> None:
            pulls = pull[g, span, 0].float().contiguous().numpy()
            masses = none if importance is None else importance[g, span].contiguous().numpy()
            into = out[g, span, 0].numpy()
            values = _values(points, g, span)
            interpolate_line(values, self.cells[g], cubics[g], pulls, masses, into)

        _each_piece(fill, points)
        return out.to(dtype)


def grid_of(
    points: Tensor,
    importance: Tensor | None,
    centroids: Tensor,
    rates: Tensor,
    *,
    mass: Tensor | None = None,
) -> Grid | None:
    """Return a grid for points, or None where there are too few of them, or too far apart.

    Time: four passes over the points, one operation per cell, of which there are at most
    ``_CELLS_A_POINT`` per point. Memory: 6 bytes per cell, and some 50 per node and thread.

    Parameters
    ----------
    points
        float32[G, N, 1], on the CPU.
    importance
        float32[G, N], or None for 1 each.
    centroids
        [G, K, 1], of the first iteration.
    rates
        [G], one over the temperatures.
    mass
        The mass at the nodes, where it is known; it is not computed then.
    """
    groups, n, _ = points.shape
    if groups == 0 or n < _FEWEST:
        return None
    threads = torch.get_num_threads()
    # not in threads of our own: each of these would start, and keep, all threads of torch
    ends = [torch.aminmax(points[g]) for g in range(groups)]
    lowest, highest = (torch.stack(of_all).double() for of_all in zip(*ends, strict=True))
    # 1. the step between neighbouring centroids, and the finest one of each group
    temperature = 1.0 / rates.double()[:, None]
    ascending = torch.sort(centroids[..., 0].double(), dim=1).values
    widest = _STEP * temperature / (2.0 * _distances(ascending, temperature))
    steps = torch.exp2(torch.floor(torch.log2(widest)))
    finest = steps.amin(1)
    # false also where any number is not finite
    largest = torch.maximum(lowest.abs(), highest.abs())
    fits = ((highest - lowest) / finest < _CELLS_A_POINT * n) & (largest / finest < 1 << 22)
    if not bool((fits & (finest > _LEAST_STEP) & (finest < math.inf)).all()):
        return None
    # 2. the cells that have points
    per_step = [np.float32(1.0 / step) for step in finest.tolist()]
    # in float32 as the kernels do, where tiny numbers may become zero
    first, last = (
        [int(np.floor(np.float32(end) * per_step[g])) for g, end in enumerate(of_all.tolist())]
        for of_all in (lowest, highest)
    )
    used = [np.zeros(last[g] - first[g] + 1, np.uint8) for g in range(groups)]

    def mark(g: int, span: slice) -> None:
        mark_used(_values(points, g, span), per_step[g], first[g], used[g])

    _each_piece(mark, points)
    # 3. the nodes that those need
    levels = torch.log2(steps / finest[:, None]).clamp(max=LEVELS - 1).byte().numpy()
    # beyond the first and the last centroid it is as next to them
    borders = torch.floor(ascending[:, 1:-1] / finest[:, None]).long().numpy()
    cells = [
        Cells(per_step[g], first[g], np.empty(of_group.size, np.int32), np.empty_like(of_group))
        for g, of_group in enumerate(used)
    ]

    def find(g: int) -> Array:
        most = n // _POINTS_A_NODE
        nodes: Array = find_nodes(used[g], borders[g], levels[g], cells[g], most)
        return nodes

    numbers = each(find, groups, threads)
    count = max(map(len, numbers))
    if count * _POINTS_A_NODE > n:
        return None
    nodes = np.empty((groups, count))
    for g, of_nodes in enumerate(numbers):
        nodes[g, : len(of_nodes)] = of_nodes
        nodes[g, len(of_nodes) :] = of_nodes[-1]
    nodes *= finest[:, None].numpy()
    grid = Grid(
        torch.from_numpy(nodes).float()[..., None],
        torch.empty(groups, count) if mass is None else mass,
        tuple(cells),
        is_small=8 * groups * count + 5 * sum(map(len, used)) <= _KEPT_A_POINT * groups * n,
    )
    if mass is None:
        each_one = torch.ones(1, 1).expand(groups, n) if importance is None else importance
        grid.mass.copy_(grid.sums(points, each_one))
    return grid


def _distances(ascending: Tensor, temperature: Tensor) -> Tensor:
    """Return the distances of centroids that nodes between neighbours are made for.

    ascending: float64[G, K]; temperature: float64[G, 1]. float64[G, K - 1], or [G, 1] for K = 1.
    """
    reach = _REACH * temperature.sqrt()
    return torch.maximum(ascending.diff(dim=1), reach) if ascending.shape[1] > 1 else reach


def _cubics(numbers: Sequence[Tensor]) -> Array:
    """Return the cubics of several numbers at nodes, each [G, U], side by side: [G, U - 3, 4 m]."""
    groups, count = numbers[0].shape
    cubics = np.empty((groups, count - 3, 4 * len(numbers)), np.float32)

    def fill(g: int) -> None:
        for i, of_all in enumerate(numbers):
            at_nodes = of_all[g].float().contiguous().numpy()
            fill_cubics(at_nodes, cubics[g, :, 4 * i : 4 * i + 4])

    each(fill, groups, torch.get_num_threads())
    return cubics


def _each_piece(work: Callable[[int, slice], T], points: Tensor, *, most: int = _PIECE) -> list[T]:
    """Return ``work(group, span)`` for spans of at most so many points, group by group."""
    groups, n, _ = points.shape
    places = [
        (g, slice(start, min(start + most, n)))
        for g in range(groups)
        for start in range(0, n, most)
    ]
    return each(lambda number: work(*places[number]), len(places), torch.get_num_threads())


def _values(points: Tensor, g: int, span: slice) -> Array:
    """Return points of a group as float32[n], detached, as threads would record a graph."""
    return points[g, span, 0].detach().contiguous().numpy()
