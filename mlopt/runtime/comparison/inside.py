"""What operations compute on the way to their result, where that is larger than the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SQUARES = ("l2_norm", "reduce_l2_norm")
_VARIANCES = ("instance_norm", "layer_norm")


def largest_inside(
    op_type: str, arguments: Mapping[str, Any], result: Tensor, limit: float
) -> float | None:
    """The largest number on the way to a result, where it is beyond a limit; else None.

    Of norms the sum of squares; of normalizations the square of the distance from the mean, which
    is no more than their own sum and no less than the least that any order of computing has.
    """
    x = arguments.get("x")
    if op_type not in _SQUARES + _VARIANCES or not isinstance(x, Tensor) or not x.numel():
        return None
    if op_type == "reduce_l2_norm":
        found = result.square().max()
    elif op_type == "l2_norm":
        found = x.float().square().sum((-3, -2, -1)).max()
    else:
        axes = list(range(2, x.dim())) if op_type == "instance_norm" else arguments.get("axes")
        mean = x.mean(list(axes) if axes else list(range(x.dim())), keepdim=True)
        found = (x - mean).square().max()
    largest = float(found)
    return largest if limit < largest < torch.inf else None
