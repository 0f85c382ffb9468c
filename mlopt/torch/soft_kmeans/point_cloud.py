"""Points to be clustered, and the pieces in which they are processed."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from mlopt.torch.soft_kmeans.options import Reduce


@attrs.frozen(eq=False)
class PointCloud:
    """Points of ``G`` groups, each to be clustered by itself.

    Attributes
    ----------
    points
        [G, N, d], any floating dtype, any layout.
    mass
        [G, N] in the dtype of the computation: how much a point counts in the sums; None for 1.
    rates
        [G] in the dtype of the computation, on the points' device: one over the temperature.
    stands_for_many
        Whether a point stands for ``mass`` points of the same value. Then the gradient with respect
        to it is that of one of them.
    chunk
        Points taken at a time; None: the implementation chooses.
    """

    points: Tensor
    mass: Tensor | None
    rates: Tensor
    stands_for_many: bool = False
    chunk: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return self.rates.dtype

    def pieces(self, most: int) -> Iterator[tuple[slice, slice]]:
        """Yield spans of groups and of points: several whole groups, or part of one.

        In order they cover the points group by group. A piece has at most ``most`` points,
        unless ``chunk`` says otherwise.
        """
        groups, n, _ = self.points.shape
        most = max(1, most if self.chunk is None else self.chunk)
        height = max(1, most // max(n, 1))
        for g in range(0, groups, height):
            for first in range(0, n, most):
                yield slice(g, min(g + height, groups)), slice(first, min(first + most, n))

    def piece(self, groups: slice, span: slice) -> tuple[Tensor, Tensor | None]:
        """Return points and mass of a piece, in the dtype of the computation."""
        mass = None if self.mass is None else self.mass[groups, span]
        return self.points[groups, span].to(self.dtype), mass

    def mean(self, reduce: Reduce) -> Tensor:
        """Return the mean of each group's points, weighted by mass, over all ranks: [G, d]."""
        groups, _, d = self.points.shape
        sums = torch.zeros(groups, d, dtype=torch.float64, device=self.points.device)
        for of, span in self.pieces(_POINTS):
            points, mass = self.piece(of, span)
            weighted = points if mass is None else points * mass[..., None]
            sums[of] += weighted.sum(1, dtype=torch.float64)
        both = reduce(torch.cat([sums, self._total_mass()[:, None]], 1))
        return (both[:, :d] / both[:, d:].clamp_min(1e-300)).to(self.dtype)

    def pull_mean(self, to_mean: Tensor, gradient: Tensor, reduce: Reduce) -> None:
        """Add a gradient with respect to the mean, [G, d], to that of the points, [G, N, d]."""
        total = reduce(self._total_mass()).clamp_min(1e-300)
        share = (to_mean.double() / total[:, None]).to(self.dtype)[:, None]
        if self.mass is None or self.stands_for_many:
            gradient += share
        else:
            gradient.addcmul_(self.mass[..., None], share)

    def _total_mass(self) -> Tensor:
        """Return the total mass of each group on this rank: float64[G]."""
        groups, n, _ = self.points.shape
        if self.mass is None:
            return torch.full((groups,), n, dtype=torch.float64, device=self.points.device)
        return self.mass.sum(1, dtype=torch.float64)


_POINTS = 1 << 20
"""Points that are widened at a time."""


def computation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the computation for points of a dtype: float64 or float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
