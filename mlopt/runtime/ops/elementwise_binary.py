"""Two tensors in, one of their broadcast shape out (MIL, ``defs/*/elementwise_binary.py``).

Both have the same element type. Integers are computed as integers: sums and products wrap around,
and quotients are integers too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlopt.runtime.registry import operation


@operation("add", in_half=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``."""
    return torch.add(x, y)


@operation("equal", in_half=True)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x == y``."""
    return torch.eq(x, y)


@operation("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``, rounded down.

    The exact quotient is rounded down, as coremltools' own inference does, so that
    ``x == y * floor_div(x, y) + mod(x, y)``. Integers divided by 0 give 0.
    """
    return divided(x, y, torch.floor_divide)


@operation("greater", in_half=True)
def greater(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x > y``."""
    return torch.gt(x, y)


@operation("greater_equal", in_half=True)
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x >= y``."""
    return torch.ge(x, y)


@operation("less", in_half=True)
def less(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x < y``."""
    return torch.lt(x, y)


@operation("less_equal", in_half=True)
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x <= y``."""
    return torch.le(x, y)


@operation("logical_and", in_half=True)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Whether both are true."""
    return torch.logical_and(x, y)


@operation("logical_or", in_half=True)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Whether one is true, or both."""
    return torch.logical_or(x, y)


@operation("logical_xor", in_half=True)
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Whether one is true, and the other is not."""
    return torch.logical_xor(x, y)


@operation("maximum", in_half=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The greater of both; NaN if one is."""
    return torch.maximum(x, y)


@operation("minimum", in_half=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The lesser of both; NaN if one is."""
    return torch.minimum(x, y)


@operation("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """The remainder of ``x / y``, with the sign of ``y``; 0 for integers divided by 0."""
    return divided(x, y, torch.remainder)


@operation("mul", in_half=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """``x * y``."""
    return torch.mul(x, y)


@operation("not_equal", in_half=True)
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether ``x != y``."""
    return torch.ne(x, y)


@operation("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """``x ** y``; for integers the fraction is cut off where ``y < 0``."""
    return torch.pow(x, y)


@operation("real_div", in_half=True)
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``; for integers the fraction is cut off.

    The result of integers is declared an integer: the fraction is cut off, as coremltools expects
    of ML programs. Integers divided by 0 give 0.
    """
    return divided(x, y, _quotient)


@operation("sub", in_half=True)
def sub(x: Tensor, y: Tensor) -> Tensor:
    """``x - y``."""
    return torch.sub(x, y)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or y.is_floating_point():
        return torch.div(x, y)
    return torch.div(x, y, rounding_mode="trunc")


def divided(x: Tensor, y: Tensor, divide: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``divide(x, y)``; of integers 0 where ``y`` is 0."""
    if x.is_floating_point() or y.is_floating_point():
        return divide(x, y)
    # torch refuses to divide by 0, and the least integer divided by -1 stops the whole process
    is_zero, is_minus_one = y == 0, y == -1
    quotients = divide(x, y.masked_fill(is_zero | is_minus_one, 1))
    return torch.where(is_minus_one, -quotients, quotients).masked_fill(is_zero, 0)
