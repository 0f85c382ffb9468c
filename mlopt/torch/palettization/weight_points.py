"""Weights as points to be clustered, with their importance."""

from __future__ import annotations

from functools import cached_property

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.palettization.moments import Moments, moments_of, scanned_moments
from mlopt.torch.palettization.scale import scale_of_channels


@attrs.frozen(eq=False, slots=False)
class WeightPoints:
    """The points of a weight, or of some of its groups.

    What most passes do not need is computed when it is asked for.

    Attributes
    ----------
    points
        [G, N, d], differentiable, in units of the scale where there is one.
    unscaled
        The same as constants, in units of the weight.
    prune_threshold
        Points count as zero if all their elements are within it, in units of the weight.
    importance
        [G, N]: weight of a point in the centroids; None for all alike, or not asked for.
    scale
        Scale of the channels, [1, ..., C, ..., 1], or None.
    """

    points: Tensor
    unscaled: Tensor
    prune_threshold: float
    importance: Tensor | None
    scale: Tensor | None

    @cached_property
    def is_zero(self) -> Tensor:
        """bool[G, N, 1]: points that count as zero."""
        return (self.unscaled.abs() <= self.prune_threshold).all(-1, keepdim=True)

    @cached_property
    def kept(self) -> Tensor:
        """The points as constants, with exact zeros where they count as zero."""
        return zeroed(self.points.detach(), self.is_zero)

    @cached_property
    def moments(self) -> Moments:
        """Moments of ``kept``."""
        scanned = None
        if self.scale is None and not may_be_freed():
            scanned = scanned_moments(self.unscaled, self.prune_threshold)
        return moments_of(self.kept) if scanned is None else scanned

    def of_groups(self, groups: slice) -> WeightPoints:
        """Return the points of some groups; of all, itself with what is known of them."""
        if groups.indices(len(self.points)) == (0, len(self.points), 1):
            return self
        return WeightPoints(
            self.points[groups],
            self.unscaled[groups],
            self.prune_threshold,
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
        unscaled = points.detach()
    else:
        scale = scale_of_channels(weight.detach(), options.scale_axis, scheme=options.scale_scheme)
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        points = options.layout.points(wide / scale.masked_fill(scale == 0, 1.0))
        unscaled = options.layout.points(weight.detach())
    alike = WeightPoints(points, unscaled, options.prune_threshold, None, scale)
    if not has_importance:
        return alike
    return attrs.evolve(alike, importance=_importance(alike, options))


def _importance(points: WeightPoints, options: FakePalettizeOptions) -> Tensor | None:
    importance: Tensor | None = None
    scale = points.scale
    if scale is not None:
        # errors of scaled weights stand for errors of the weights
        largest = scale.max().clamp_min(torch.finfo(scale.dtype).tiny)
        squares = (scale / largest).square().float().expand(options.layout.shape)
        importance = options.layout.points(squares).mean(-1)
    if options.outlier_weight > 0:
        squares = points.kept.float().square()
        mean = squares.mean((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        less = 1 / (1 + options.outlier_weight * (squares / mean).mean(-1))
        importance = less if importance is None else importance * less
    if options.enforce_zero:
        counted = (~points.is_zero[..., 0]).float()
        importance = counted if importance is None else importance * counted
    return importance


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
