"""A weight as groups of points that are clustered, and back."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Grouping:
    """How a weight of ``shape`` is cut into groups of vectors.

    With C channels on ``axis`` and R weights in each, there are G groups of C / G channels and N
    points of ``d`` consecutive channels in each: G * N * d == C * R. Points are in C order of
    (channels / d, other axes).

    shape: of the weight; axis: of groups and vectors; groups: G, divides C; d: divides C / G.
    """

    shape: tuple[int, ...]
    axis: int = 0
    groups: int = 1
    d: int = 1

    def points(self, weight: Tensor) -> Tensor:
        """The points [G, N, d] of a weight, differentiable; a view where its memory allows."""
        channels_first = weight.movedim(self.axis, 0)
        channels = self.shape[self.axis] // self.groups // self.d
        cut = channels_first.reshape(self.groups, channels, self.d, -1)
        return cut.movedim(2, 3).reshape(self.groups, -1, self.d)

    def weight(self, points: Tensor) -> Tensor:
        """The weight that has these points: the inverse of :meth:`points`."""
        channels = self.shape[self.axis] // self.groups // self.d
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        cut = points.reshape(self.groups, channels, -1, self.d).movedim(3, 2)
        return cut.reshape(self.shape[self.axis], *rest).movedim(0, self.axis)


def channel_scale(weight: Tensor, axis: int, *, scheme: str) -> Tensor:
    """The scale [1, ..., C, ..., 1] of the channels of an axis: 0 for a channel of zeros.

    ``scheme``: ``"abs"`` for the largest magnitude of a channel, ``"min_max"`` for half the
    distance between its smallest and largest weight, the magnitude where all are equal.
    """
    others = [i for i in range(weight.dim()) if i != axis]
    scale = weight.abs().amax(others, keepdim=True)
    if scheme == "min_max":
        half = 0.5 * (weight.amax(others, keepdim=True) - weight.amin(others, keepdim=True))
        scale = torch.where(half > 0, half, scale)
    return scale
