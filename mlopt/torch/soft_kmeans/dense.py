"""Passes over the points in torch, on any device, with attention one piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.noise import add_gumbel_noise
from mlopt.torch.soft_kmeans.point_cloud import PointCloud

_FLOATS = 1 << 20
"""Numbers of attention in a piece that caches hold."""

_FLOATS_ON_GPU = 1 << 24
"""Numbers of attention in a piece that keeps a GPU busy: 64 MiB."""

Piece = tuple[slice, slice]


class DensePasses:
    """:class:`mlopt.torch.soft_kmeans.passes.Passes` with attention to all centroids.

    Coordinates are taken one by one instead of by matrix products, which lose digits to global
    settings (TensorFloat-32, bfloat16 products) and would round small distances away.
    """

    def __init__(self, cloud: PointCloud, seeds: tuple[int, ...] = ()) -> None:
        self.cloud = cloud
        self.seeds = seeds

    def sums(self, centroids: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        groups, k_count, d = centroids.shape
        sums = centroids.new_zeros(groups, k_count, 1 + d)
        for (of, _), points, mass, attention in self._attended(centroids, step):
            if mass is not None:
                attention *= mass[..., None]
            sums[of, :, 0] += attention.sum(1)
            for j in range(d):
                sums[of, :, 1 + j] += (attention * _away(points, centroids[of], j)).sum(1)
        return sums

    def soft(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """See ``Passes``."""
        soft = self._like_points()
        for (of, span), _, _, attention in self._attended(centroids, step):
            for j in range(moved.shape[2]):
                soft[of, span, j] = (attention * moved[of, None, :, j]).sum(2)
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
        sums = centroids.new_zeros(groups, k_count, 2 * d)
        gradient = self._like_points()
        for (of, span), points, _, attention in self._attended(centroids, step):
            twice = 2 * self.cloud.rates[of, None, None]
            pulls = torch.ones_like(points) if pull is None else pull[of, span].to(points.dtype)
            factor = 1 if mass is None else mass[of, span, None]
            score = torch.zeros_like(attention)
            for j in range(d):
                score.addcmul_(pulls[..., j, None], moved[of, None, :, j])
                sums[of, :, j] += (attention * (factor * pulls[..., j, None])).sum(1)
            score = _centred(score, attention).mul_(twice)
            for j in range(d):
                gradient[of, span, j] = (score * centroids[of, None, :, j]).sum(2)
            score *= factor
            for j in range(d):
                sums[of, :, d + j] += (score * _away(points, centroids[of], j)).sum(1)
        return sums, gradient

    def pull_update(
        self, share: Tensor, gradient: Tensor, centroids: Tensor, moved: Tensor, *, step: int
    ) -> Tensor:
        """See ``Passes``."""
        sums = torch.zeros_like(centroids)
        d = centroids.shape[2]
        for (of, span), points, mass, attention in self._attended(centroids, step):
            twice = 2 * self.cloud.rates[of, None, None]
            factor = 1 if mass is None else mass[..., None]
            score = torch.zeros_like(attention)
            for j in range(d):
                score.addcmul_(_away(points, moved[of], j), share[of, None, :, j])
            score = _centred(score, attention).mul_(twice)
            for j in range(d):
                update = (attention * share[of, None, :, j]).sum(2)
                update += (score * centroids[of, None, :, j]).sum(2)
                if mass is not None and not self.cloud.stands_for_many:
                    update *= mass
                gradient[of, span, j] += update
            score *= factor
            for j in range(d):
                sums[of, :, j] += (score * _away(points, centroids[of], j)).sum(1)
        return sums

    def jacobian(self, centroids: Tensor, moved: Tensor, *, step: int) -> Tensor:
        """Return the derivatives of the updated centroids times their sizes, in float64.

        Returns
        -------
        [G, K, d, K, d]: element [g, k, i, j, l] is ``S_k dc'_ki / dc_jl``, that is ``(2/tau)
        sum_n h a_nk (delta_kj - a_nj) (v_n - c'_k)_i (v_n - c_j)_l``.
        """
        groups, k_count, d = centroids.shape
        wide = centroids.double()
        across = wide.new_zeros(groups, k_count * d, k_count * d)
        within = wide.new_zeros(groups, k_count, d, d)
        for (of, _), points, mass, attention in self._attended(centroids, step):
            attention = attention.double()[..., None]
            points = points.double()[:, :, None, :]
            from_start = points - wide[of, None]
            from_moved = (points - moved[of, None].double()) * attention
            if mass is not None:
                from_moved *= mass[..., None, None]
            within[of] += torch.einsum("gnki,gnkl->gkil", from_moved, from_start)
            across[of] += from_moved.flatten(2).mT @ (from_start * attention).flatten(2)
        blocks = -across.view(groups, k_count, d, k_count, d)
        # the blocks of a centroid with itself, as a view with the centroids last
        blocks.diagonal(dim1=1, dim2=3).add_(within.permute(0, 2, 3, 1))
        return blocks * (2 * self.cloud.rates.double()[:, None, None, None, None])

    def _like_points(self) -> Tensor:
        cloud = self.cloud
        return torch.zeros(cloud.points.shape, dtype=cloud.dtype, device=cloud.points.device)

    def _attended(
        self, centroids: Tensor, step: int
    ) -> Iterator[tuple[Piece, Tensor, Tensor | None, Tensor]]:
        """Yield every piece: its position, points [g, n, d], mass [g, n], attention [g, n, K]."""
        noise = None
        if self.seeds:
            noise = torch.Generator(centroids.device).manual_seed(self.seeds[step])
        for of, span in self.cloud.pieces(points_at_a_time(centroids)):
            points, mass = self.cloud.piece(of, span)
            distance = squared_distances(points, centroids[of])
            # Subtracted before the rate multiplies: a difference of infinities would be NaN.
            distance -= distance.amin(2, keepdim=True)
            exponent = distance.mul_(-self.cloud.rates[of, None, None])
            if noise is not None:
                add_gumbel_noise(exponent, noise)
            yield (of, span), points, mass, exponent.softmax(2)


def points_at_a_time(centroids: Tensor) -> int:
    """Return the number of points to compare with all centroids [G, K, d] at a time."""
    most = _FLOATS if centroids.device.type == "cpu" else _FLOATS_ON_GPU
    return most // centroids.shape[1]


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return squared distances of points [G, N, d] to centroids [G, K, d]: [G, N, K]."""
    distance = _away(points, centroids, 0).square_()
    for j in range(1, points.shape[2]):
        distance += _away(points, centroids, j).square_()
    return distance


def _away(points: Tensor, centroids: Tensor, j: int) -> Tensor:
    return points[:, :, None, j] - centroids[:, None, :, j]


def _centred(score: Tensor, attention: Tensor) -> Tensor:
    """Return the gradient of exponents whose softmax has the gradient ``score``; consumes it."""
    score -= (attention * score).sum(2, keepdim=True)
    return score.mul_(attention)
