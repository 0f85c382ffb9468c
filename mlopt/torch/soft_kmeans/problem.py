"""What is clustered, and the pieces that it is taken in."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Problem:
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
        Whether a point is a value that ``mass`` many points have. The gradient with respect to it
        is then that of one of them.
    chunk
        Points taken at a time; None for what suits the implementation.
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
        """Spans of groups and of points: several whole groups, or part of one.

        In order they go through the points group by group. A piece has at most ``most`` points,
        unless ``chunk`` says otherwise.
        """
        groups, n, _ = self.points.shape
        most = max(1, most if self.chunk is None else self.chunk)
        height = max(1, most // max(n, 1))
        for g in range(0, groups, height):
            for first in range(0, n, most):
                yield slice(g, min(g + height, groups)), slice(first, min(first + most, n))

    def piece(self, groups: slice, span: slice) -> tuple[Tensor, Tensor | None]:
        """Points and mass of a piece, in the dtype of the computation."""
        mass = None if self.mass is None else self.mass[groups, span]
        return self.points[groups, span].to(self.dtype), mass


def computation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that points of a dtype are computed with: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
