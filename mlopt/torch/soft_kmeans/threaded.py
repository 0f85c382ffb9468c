"""Passes over the points by the kernels, on torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans import kernels
from mlopt.torch.soft_kmeans.point_cloud import PointCloud
from mlopt.torch.soft_kmeans.workers import each

_POINTS = 1 << 16
"""Coordinates of a piece: what a thread takes at a time."""

_MANY_CENTROIDS = 8
"""Centroids from which on ordering the points costs less than attending to all centroids."""

_ORDERED_FROM = 4 * kernels.BLOCK
_MOST_ORDERED = 1 << 16
"""Maximum number of a group's points in a piece that can be put in order."""

Array = npt.NDArray[Any]


class ThreadedPasses:
    """:class:`mlopt.torch.soft_kmeans.passes.Passes` for the CPU and float32.

    The result does not depend on the number of threads: pieces are added up in their order.
    """

    def __init__(self, cloud: PointCloud) -> None:
        self.cloud = cloud
        self._kept: dict[int, _Piece] = {}

    def sums(self, centroids: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        groups, k_count, d = centroids.shape
        total = np.zeros((groups, k_count, 1 + d))

        def add(piece: _Piece) -> Array:
            sums = np.zeros_like(total[piece.groups])
            kernels.add_sums(piece.attended(centroids), piece.mass(self.cloud.mass), sums)
            return sums

        return self._added(total, centroids, add)

    def soft(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        soft = torch.empty(self.cloud.points.shape, dtype=torch.float32)

        def fill(piece: _Piece) -> None:
            out = np.empty_like(piece.points)
            kernels.fill_soft(piece.attended(centroids), piece.of(moved), out)
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
        gradient = torch.empty(self.cloud.points.shape, dtype=torch.float32)

        def take(piece: _Piece) -> Array:
            out = np.empty_like(piece.points)
            sums = np.zeros_like(total[piece.groups])
            pulls = np.empty((1, 0, d), np.float32) if pull is None else piece.take(pull)
            kernels.pull_soft(
                piece.attended(centroids),
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
                piece.attended(centroids),
                piece.of(moved),
                piece.of(share),
                piece.mass(self.cloud.mass),
                self.cloud.stands_for_many,
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
        places = list(self.cloud.pieces(max(1, _POINTS // d)))

        def work_at(number: int) -> Any:
            piece = self._kept.get(number)
            if piece is None:
                piece = _Piece(self.cloud, *places[number])
                is_ordered = k_count >= _MANY_CENTROIDS and piece.can_be_ordered()
                if is_ordered:
                    piece.put_in_order()
                if is_ordered or piece.is_view:
                    self._kept[number] = piece
            return work(piece)

        return each(work_at, len(places), torch.get_num_threads())


class _Piece:
    """Some of the points as the contiguous float32 arrays that kernels take, and back.

    Scalar points can be put in order: a block of the kernels then attends to few of the centroids.
    Such pieces are kept from pass to pass, 6 bytes per point; so are views of the points.
    """

    def __init__(self, cloud: PointCloud, groups: slice, span: slice) -> None:
        self.groups = groups
        self._cloud = cloud
        self._span = span
        self._orders: Array | None = None
        self._rates = _array(cloud.rates[groups])
        self.points = self.take(cloud.points)

    @property
    def is_view(self) -> bool:
        """Whether the points are not a copy."""
        of_cloud = self._cloud.points[self.groups, self._span]
        return of_cloud.data_ptr() == self.points.ctypes.data

    def can_be_ordered(self) -> bool:
        """Whether ordering is possible, useful, and does not take too much memory."""
        cloud, (_, n, d) = self._cloud, self.points.shape
        ascends = cloud.stands_for_many
        return (
            d == 1 and _ORDERED_FROM <= n <= _MOST_ORDERED and not ascends and cloud.chunk is None
        )

    def put_in_order(self) -> None:
        """Order the points of each group so that they nearly ascend from now on."""
        orders = np.empty(self.points.shape[:2], np.uint16)
        kernels.fill_bucket_orders(self.points, orders)
        self._orders = orders
        self.points = self.take(self._cloud.points)

    def take(self, tensor: Tensor) -> Array:
        """Copy, or view, this piece of [G, N, d]."""
        array = _array(tensor[self.groups, self._span])
        if self._orders is None:
            return array
        taken = np.empty_like(array)
        kernels.take_in_order(array, self._orders, taken)
        return taken

    def mass(self, mass: Tensor | None) -> Array:
        """Copy, or view, this piece of a mass [G, N]; no elements for None."""
        if mass is None:
            return np.empty((1, 0), np.float32)
        return self.take(mass[..., None])[..., 0]

    def put(self, tensor: Tensor, values: Array) -> None:
        """Write this piece of [G, N, d], float32."""
        into = tensor[self.groups, self._span].numpy()
        if self._orders is None:
            into[...] = values
        else:
            kernels.put_in_order(values, self._orders, into)

    def of(self, table: Tensor) -> Array:
        """Return the part of a [G, K, d] for the groups of the piece."""
        return _array(table[self.groups])

    def attended(self, centroids: Tensor) -> kernels.Attended:
        """Return the points of the piece and the centroids that they attend to."""
        return kernels.Attended(self.points, self.of(centroids), self._rates)


def _array(tensor: Tensor) -> Array:
    return tensor.to(torch.float32).contiguous().numpy()
