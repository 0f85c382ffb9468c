"""Weights as points to be clustered, with their importance."""

from __future__ import annotations

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.palettization.scale import scale_of_channels


@attrs.frozen(eq=False)
class WeightPoints:
    """The points of a weight, or of some of its groups.

    Attributes
    ----------
    points
        [G, N, d], differentiable, in units of the scale where there is one.
    kept
        The same as constants, with exact zeros where points count as zero.
    is_zero
        bool[G, N, 1]: points that count as zero, since all their elements are within the threshold.
    importance
        [G, N]: weight of a point in the centroids; None for all alike, or not asked for.
    scale
        Scale of the channels, [1, ..., C, ..., 1], or None.
    """

    points: Tensor
    kept: Tensor
    is_zero: Tensor
    importance: Tensor | None
    scale: Tensor | None

    def of_groups(self, groups: slice) -> WeightPoints:
        """Return the points of some of the groups."""
        return WeightPoints(
            self.points[groups],
            self.kept[groups],
            self.is_zero[groups],
            None if self.importance is None else self.importance[groups],
            self.scale,
        )


def points_of(
    weight: Tensor, options: FakePalettizeOptions, *, has_importance: bool
) -> WeightPoints:
    """Return the points of a weight; importance is computed only with ``has_importance``."""
    scale = None
    if options.scale_axis is None:
        points = options.layout.points(weight)
    else:
        scale = scale_of_channels(weight.detach(), options.scale_axis, scheme=options.scale_scheme)
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        points = options.layout.points(wide / scale.masked_fill(scale == 0, 1.0))
    magnitudes = options.layout.points(weight.detach()).abs()
    is_zero = (magnitudes <= options.prune_threshold).all(-1, keepdim=True)
    kept = zeroed(points.detach(), is_zero)
    importance = _importance(kept, is_zero, scale, options) if has_importance else None
    return WeightPoints(points, kept, is_zero, importance, scale)


def _importance(
    kept: Tensor, is_zero: Tensor, scale: Tensor | None, options: FakePalettizeOptions
) -> Tensor | None:
    importance: Tensor | None = None
    if scale is not None:
        # errors of scaled weights stand for errors of the weights
        largest = scale.max().clamp_min(torch.finfo(scale.dtype).tiny)
        squares = (scale / largest).square().float().expand(options.layout.shape)
        importance = options.layout.points(squares).mean(-1)
    if options.outlier_weight > 0:
        squares = kept.float().square()
        mean = squares.mean((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        less = 1 / (1 + options.outlier_weight * (squares / mean).mean(-1))
        importance = less if importance is None else importance * less
    if options.enforce_zero:
        counted = (~is_zero[..., 0]).float()
        importance = counted if importance is None else importance * counted
    return importance


def mean_square(points: Tensor) -> Tensor:
    """Return the mean squared length of the points [G, N, d] of each group, [G]."""
    return points.float().square().sum((1, 2)) / points.shape[1]


def variance(points: Tensor) -> Tensor:
    """Return the mean squared distance of the points [G, N, d] of each group to their mean, [G]."""
    wide = points.float()
    return mean_square(wide - wide.mean(1, keepdim=True))


def zeroed(points: Tensor, is_zero: Tensor) -> Tensor:
    """Return points with exact zeros where they count as zero.

    Where none does, the points themselves: a copy would have to be kept for the backward pass.
    """
    return points.masked_fill(is_zero, 0.0) if may_be_freed() or is_zero.any() else points


def may_be_freed() -> bool:
    """Whether weights may be views of memory that FSDP frees and allocates again.

    FSDP cannot do that once an array shares the memory, and kernels make arrays of their arguments.
    """
    return dist.is_available() and dist.is_initialized()
