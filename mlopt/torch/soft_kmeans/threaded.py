"""Passes over the points by the kernels, on the threads that torch may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import kernels
from mlopt.torch.soft_kmeans.problem import Problem

_POINTS = 1 << 16
"""Coordinates of a piece: what a thread takes at a time."""

_MANY_CENTROIDS = 24
"""From so many on, ordering the points costs less than attending to all centroids."""

_ORDERED_FROM = 4096

Array = npt.NDArray[Any]


class ThreadedPasses:
    """:class:`mlopt.torch.soft_kmeans.passes.Passes` for the CPU and float32.

    The result does not depend on the number of threads: pieces are added up in their order.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def sums(self, centroids: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        groups, k_count, d = centroids.shape
        total = np.zeros((groups, k_count, 1 + d))

        def add(piece: _Piece) -> Array:
            sums = np.zeros_like(total[piece.groups])
            kernels.add_sums(*piece.attended(centroids), piece.mass(self.problem.mass), sums)
            return sums

        return self._added(total, centroids, add)

    def soft(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        soft = torch.empty(self.problem.points.shape, dtype=torch.float32)

        def fill(piece: _Piece) -> None:
            out = np.empty_like(piece.points)
            kernels.fill_soft(*piece.attended(centroids), piece.of(moved), out)
            piece.put(soft, out)

        self._each(centroids, fill)
        return soft

    def pull_soft(
        self,
        pull: Tensor | None,
        mass: Tensor | None,
        centroids: Tensor,
        moved: Tensor,
        *,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """See ``Passes``."""
        groups, k_count, d = centroids.shape
        total = np.zeros((groups, k_count, 2 * d))
        gradient = torch.empty(self.problem.points.shape, dtype=torch.float32)

        def take(piece: _Piece) -> Array:
            out = np.empty_like(piece.points)
            sums = np.zeros_like(total[piece.groups])
            pulls = np.empty((1, 0, d), np.float32) if pull is None else piece.take(pull)
            kernels.pull_soft(
                *piece.attended(centroids),
                piece.of(moved),
                pulls,
                piece.mass(mass),
                sums,
                out,
            )
            piece.put(gradient, out)
            return sums

        return self._added(total, centroids, take), gradient

    def pull_update(
        self, share: Tensor, gradient: Tensor, centroids: Tensor, moved: Tensor, *, step: int
    ) -> Tensor:
        """See ``Passes``."""
        total = np.zeros(centroids.shape)

        def take(piece: _Piece) -> Array:
            out = piece.take(gradient)
            sums = np.zeros_like(total[piece.groups])
            kernels.pull_update(
                *piece.attended(centroids),
                piece.of(moved),
                piece.of(share),
                piece.mass(self.problem.mass),
                self.problem.stands_for_many,
                sums,
                out,
            )
            piece.put(gradient, out)
            return sums

        return self._added(total, centroids, take)

    def _added(self, total: Array, centroids: Tensor, work: Callable[[_Piece], Array]) -> Tensor:
        for groups, sums in self._each(centroids, lambda piece: (piece.groups, work(piece))):
            total[groups] += sums
        return torch.from_numpy(total).float()

    def _each(self, centroids: Tensor, work: Callable[[_Piece], Any]) -> list[Any]:
        k_count, d = centroids.shape[1:]
        places = list(self.problem.pieces(max(1, _POINTS // d)))

        def work_at(place: tuple[slice, slice]) -> Any:
            return work(_Piece(self.problem, *place, k_count))

        workers = min(torch.get_num_threads(), len(places))
        if workers <= 1:
            return [work_at(place) for place in places]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(work_at, places))


class _Piece:
    """Some of the points as the contiguous float32 arrays that kernels take, and back.

    Where there are many centroids for scalar points, the points are put in order: a block of the
    kernels then attends to few of them.
    """

    def __init__(self, problem: Problem, groups: slice, span: slice, k_count: int) -> None:
        self.groups = groups
        self._span = span
        self._rates = problem.rates
        self._order: Array | None = None
        points = self.take(problem.points)
        if (
            points.shape[0] == points.shape[2] == 1
            and points.shape[1] >= _ORDERED_FROM
            and k_count >= _MANY_CENTROIDS
            and not problem.stands_for_many  # these ascend already
        ):
            self._order = kernels.bucket_order(points.reshape(-1))
            points = points[:, self._order]
        self.points = points

    def take(self, tensor: Tensor) -> Array:
        """Copy, or view, this piece of [G, N, d]."""
        array = _array(tensor[self.groups, self._span])
        return array if self._order is None else array[:, self._order]

    def mass(self, mass: Tensor | None) -> Array:
        """Copy, or view, this piece of a mass [G, N]; no elements for None."""
        return np.empty((1, 0), np.float32) if mass is None else self.take(mass)

    def put(self, tensor: Tensor, values: Array) -> None:
        """Write this piece of [G, N, d], float32."""
        into = tensor[self.groups, self._span].numpy()
        if self._order is None:
            into[...] = values
        else:
            into[:, self._order] = values

    def of(self, table: Tensor) -> Array:
        """What a [G, K, d] has for the groups of the piece."""
        return _array(table[self.groups])

    def attended(self, centroids: Tensor) -> tuple[Array, Array, Array]:
        """The arguments of a kernel that say how points attend: themselves, centroids, rates."""
        return self.points, self.of(centroids), _array(self._rates[self.groups])


def _array(tensor: Tensor) -> Array:
    return tensor.to(torch.float32).contiguous().numpy()
