"""Moments of the points of each group, which every pass in training asks for."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from numba import njit
from torch import Tensor

from mlopt.torch.soft_kmeans.workers import each

_REORDERED = {"reassoc", "nsz", "contract"}
"""Sums are compiled to vector instructions only if their terms may be reordered."""


@attrs.frozen(eq=False)
class Moments:
    """Of the points [G, N, d] of each group, float32[G] each.

    square: mean squared length; mean: of all elements; variance: mean squared distance of the
    points to their mean.
    """

    square: Tensor
    mean: Tensor
    variance: Tensor


def moments_of(points: Tensor) -> Moments:
    """Return the moments of any points [G, N, d]."""
    wide = points.float()
    about_mean = wide - wide.mean(1, keepdim=True)
    return Moments(mean_square(wide), wide.mean((1, 2)), mean_square(about_mean))


def scanned_moments(points: Tensor, threshold: float) -> Moments | None:
    """Return the moments in one pass, with magnitudes up to ``threshold`` as zeros.

    None where that is not possible: it takes contiguous float32 points of one element on the CPU.
    """
    is_suited = points.device.type == "cpu" and points.dtype == torch.float32
    if not is_suited or points.shape[2] != 1 or not points.is_contiguous():
        return None
    sums = np.empty((points.shape[0], 2))
    values = points[..., 0].numpy()
    least = np.float32(threshold)  # as torch compares
    each(lambda g: _fill_sums(values[g], least, sums[g]), len(sums), torch.get_num_threads())
    mean, square = (torch.from_numpy(sums) / points.shape[1]).unbind(1)
    variance = (square - mean.square()).clamp_min(0.0)
    # infinite where float32 does not hold the sum, as it is of any other points
    held = torch.from_numpy(sums[:, 1]).float() / points.shape[1]
    return Moments(held, mean.float(), variance.float())


def mean_square(points: Tensor) -> Tensor:
    """Return the mean squared length of the points [G, N, d] of each group, [G]."""
    return points.float().square().sum((1, 2)) / points.shape[1]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_REORDERED)
def _fill_sums(points, threshold, sums):  # type: ignore[no-untyped-def]
    """Write the sums of values and of their squares: float64[2], of float32[N]."""
    total = 0.0
    squares = 0.0
    for value in points:
        kept = np.float64(value) if not abs(value) <= threshold else 0.0
        total += kept
        squares += kept * kept
    sums[0] = total
    sums[1] = squares
