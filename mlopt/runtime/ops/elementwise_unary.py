"""One tensor in, one of the same shape out (MIL, ``defs/*/elementwise_unary.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.registry import operation

_HELD_WIDER = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}
"""All bits of the element types that torch's narrow ones cannot hold."""


@operation("abs", in_half=True)
def absolute(x: Tensor) -> Tensor:
    """``|x|``."""
    return torch.abs(x)


@operation("acos")
def acos(x: Tensor) -> Tensor:
    """The inverse cosine, in radians."""
    return torch.acos(x)


@operation("asin")
def asin(x: Tensor) -> Tensor:
    """The inverse sine, in radians."""
    return torch.asin(x)


@operation("atan")
def atan(x: Tensor) -> Tensor:
    """The inverse tangent, in radians."""
    return torch.atan(x)


@operation("atanh")
def atanh(x: Tensor) -> Tensor:
    """The inverse hyperbolic tangent."""
    return torch.atanh(x)


@operation("cast", in_half=True)
def cast(x: Tensor, dtype: str, call: Call) -> Tensor:
    """``x`` in another element type; fractions are cut off, and ``bool`` is ``x != 0``.

    Integers that do not fit keep their low bits.
    """
    wanted = call.dtype
    if wanted == torch.bool:
        return x != 0
    if x.is_floating_point() and not wanted.is_floating_point:
        x = torch.trunc(x)
    bits = _HELD_WIDER.get(call.outputs[0].dtype)
    return x.to(wanted) if bits is None else x.to(torch.int64).bitwise_and(bits).to(wanted)


@operation("ceil", in_half=True)
def ceil(x: Tensor) -> Tensor:
    """The least integer that is not less."""
    return torch.ceil(x)


@operation("clip", in_half=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``min(max(x, alpha), beta)``."""
    return torch.clamp(x, alpha, beta)


@operation("cos", in_half=True)
def cos(x: Tensor) -> Tensor:
    """The cosine of radians."""
    return torch.cos(x)


@operation("cosh")
def cosh(x: Tensor) -> Tensor:
    """The hyperbolic cosine."""
    return torch.cosh(x)


@operation("erf", in_half=True)
def erf(x: Tensor) -> Tensor:
    """The error function."""
    return torch.erf(x)


@operation("exp", in_half=True)
def exp(x: Tensor) -> Tensor:
    """``e ** x``."""
    return torch.exp(x)


@operation("exp2")
def exp2(x: Tensor) -> Tensor:
    """``2 ** x``."""
    return torch.pow(2, x)


@operation("floor", in_half=True)
def floor(x: Tensor) -> Tensor:
    """The greatest integer that is not greater."""
    return torch.floor(x)


@operation("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """``1 / (x + epsilon)``."""
    return torch.reciprocal(x + epsilon)


@operation("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """``ln(x + epsilon)``."""
    return torch.log(x + epsilon)


@operation("logical_not", in_half=True)
def logical_not(x: Tensor) -> Tensor:
    """Whether ``x`` is zero."""
    return torch.logical_not(x)


@operation("round", in_half=True)
def round_(x: Tensor) -> Tensor:
    """The nearest integer; halves round to even."""
    return torch.round(x)


@operation("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """``1 / sqrt(x + epsilon)``."""
    return torch.rsqrt(x + epsilon)


@operation("sign", in_half=True)
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN for NaN."""
    return torch.where(x.isnan(), x, torch.sign(x))


@operation("sin", in_half=True)
def sin(x: Tensor) -> Tensor:
    """The sine of radians."""
    return torch.sin(x)


@operation("sinh")
def sinh(x: Tensor) -> Tensor:
    """The hyperbolic sine."""
    return torch.sinh(x)


@operation("sqrt", in_half=True)
def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return torch.sqrt(x)


@operation("square")
def square(x: Tensor) -> Tensor:
    """``x ** 2``."""
    return torch.square(x)


@operation("tan")
def tan(x: Tensor) -> Tensor:
    """The tangent of radians."""
    return torch.tan(x)


@operation("tanh", in_half=True)
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(x)


@operation("threshold", in_half=True)
def threshold(x: Tensor, alpha: float) -> Tensor:
    """``max(x, alpha)``."""
    # torch compares integers with a float in float32, in which large ones are not exact
    return torch.clamp(x, min=alpha if x.is_floating_point() else int(alpha))
