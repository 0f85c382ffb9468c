"""Per-channel scale of a weight in training."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_of_channels(weight: Tensor, axis: int, *, scheme: str) -> Tensor:
    """Return the scale [1, ..., C, ..., 1] of the channels of an axis: 0 for a channel of zeros.

    ``scheme``: ``"abs"`` for the largest magnitude of a channel, ``"min_max"`` for half the
    distance between its smallest and largest weight, the magnitude where all are equal.
    """
    others = [i for i in range(weight.dim()) if i != axis]
    scale = weight.abs().amax(others, keepdim=True)
    if scheme == "min_max":
        half = 0.5 * (weight.amax(others, keepdim=True) - weight.amin(others, keepdim=True))
        scale = torch.where(half > 0, half, scale)
    return scale
