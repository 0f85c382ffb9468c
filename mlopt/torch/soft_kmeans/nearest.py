"""Passes in which each point attends only to its nearest centroid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.dense import points_at_a_time, squared_distances
from mlopt.torch.soft_kmeans.point_cloud import PointCloud


class NearestPasses:
    """:class:`mlopt.torch.soft_kmeans.passes.Passes` with one-hot attention.

    Attention is constant where it is differentiable: gradients go through the means alone.
    """

    def __init__(self, cloud: PointCloud) -> None:
        self.cloud = cloud

    def sums(self, centroids: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        groups, k_count, d = centroids.shape
        sums = centroids.new_zeros(groups, k_count, 1 + d)
        for of, span, labels in self._labelled(centroids):
            points, mass = self.cloud.piece(of, span)
            away = points - _of_label(centroids[of], labels)
            terms = torch.cat([torch.ones_like(away[..., :1]), away], dim=2)
            if mass is not None:
                terms *= mass[..., None]
            sums[of] += _by_label(terms, labels, k_count)
        return sums

    def soft(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        soft = torch.empty(
            self.cloud.points.shape, dtype=moved.dtype, device=self.cloud.points.device
        )
        for of, span, labels in self._labelled(centroids):
            soft[of, span] = _of_label(moved[of], labels)
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
        points = self.cloud.points
        gradient = torch.zeros(points.shape, dtype=centroids.dtype, device=points.device)
        sums = centroids.new_zeros(groups, k_count, 2 * d)
        for of, span, labels in self._labelled(centroids):
            if pull is None:
                pulls = torch.ones_like(gradient[of, span])
            else:
                pulls = pull[of, span].to(centroids.dtype)
            if mass is not None:
                pulls = pulls * mass[of, span, None]
            sums[of, :, :d] += _by_label(pulls, labels, k_count)
        return sums, gradient

    def pull_update(
        self, share: Tensor, gradient: Tensor, centroids: Tensor, moved: Tensor, *, step: int
    ) -> Tensor:
        """See ``Passes``."""
        for of, span, labels in self._labelled(centroids):
            update = _of_label(share[of], labels)
            if self.cloud.mass is not None and not self.cloud.stands_for_many:
                update = update * self.cloud.mass[of, span, None]
            gradient[of, span] += update
        return torch.zeros_like(centroids)

    def _labelled(self, centroids: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield every piece: its groups, its span, the labels of its points (int64[g, n])."""
        for of, span in self.cloud.pieces(points_at_a_time(centroids)):
            points, _ = self.cloud.piece(of, span)
            if centroids.shape[2] == 1:
                yield of, span, scalar_labels(points[..., 0], centroids[of, :, 0])
            else:
                yield of, span, squared_distances(points, centroids[of]).argmin(2)


def scalar_labels(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the labels of the nearest centroids [G, K] to points [G, N]: int64 [G, N].

    Of two that are equally near it is the lower one; computed in the dtype of both.
    """
    ordered, order = centroids.sort(dim=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    return order.gather(1, torch.searchsorted(middles, points.contiguous()))


def _of_label(values: Tensor, labels: Tensor) -> Tensor:
    """Select rows of values [G, K, d] by labels [G, N]: [G, N, d]."""
    return values.gather(1, labels[..., None].expand(-1, -1, values.shape[2]))


def _by_label(terms: Tensor, labels: Tensor, k_count: int) -> Tensor:
    """Sum terms [G, N, c] by label: [G, K, c]."""
    groups, _, width = terms.shape
    sums = terms.new_zeros(groups, k_count, width)
    return sums.scatter_add_(1, labels[..., None].expand(-1, -1, width), terms)
