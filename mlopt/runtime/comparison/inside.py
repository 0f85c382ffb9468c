"""Intermediate numbers of operations that are larger than the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_Inside = Callable[[Tensor, Mapping[str, Any], Tensor], Tensor]
"""Function of the argument ``x``, all arguments and the result to the largest number inside."""


def largest_inside(
    op_type: str, arguments: Mapping[str, Any], result: Tensor, limit: float
) -> float | None:
    """Return the largest number on the way to a result if it is beyond a limit, else None.

    Of norms the sum of squares; of normalizations the square of a distance from the mean, which
    every way to compute them has; of softplus and of logarithms of sums the exponential, which the
    Neural Engine computes as it is (apple/coremltools #2687 and #2690).
    """
    x = arguments.get("x")
    if op_type not in _INSIDE or not isinstance(x, Tensor) or not x.numel():
        return None
    largest = float(_INSIDE[op_type](x.float(), arguments, result))
    return largest if largest > limit else None


def _largest_deviation(x: Tensor, axes: list[int]) -> Tensor:
    mean = x.mean(axes or list(range(x.dim())), keepdim=True)
    return (x - mean).square().max()


_INSIDE: dict[str, _Inside] = {
    "l2_norm": lambda x, given, result: x.square().sum((-3, -2, -1)).max(),
    "reduce_l2_norm": lambda x, given, result: result.square().max(),
    "instance_norm": lambda x, given, result: _largest_deviation(x, list(range(2, x.dim()))),
    "layer_norm": lambda x, given, result: _largest_deviation(x, list(given.get("axes") or ())),
    "softplus": lambda x, given, result: x.double().max().exp(),
    "reduce_log_sum_exp": lambda x, given, result: result.double().max().exp(),
}
