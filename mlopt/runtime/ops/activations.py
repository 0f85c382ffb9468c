"""Activation functions (MIL, ``defs/*/activation.py``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlopt.runtime.registry import operation

_GELU_MODES = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


@operation("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``min(beta, x)`` where ``x >= 0``, elsewhere ``min(beta, alpha * x)``.

    Also for ``beta < 0``, where coremltools' own inference differs from its description.
    """
    return torch.clamp(F.leaky_relu(x, alpha), max=beta)


@operation("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where ``x > 0``, elsewhere ``alpha * (e ** x - 1)``."""
    return F.elu(x, alpha)


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """``x`` times the normal distribution function of ``x``, or one of two approximations of it.

    mode: ``"EXACT"``: ``x / 2 * (1 + erf(x / sqrt(2)))``; ``"TANH_APPROXIMATION"``: ``x / 2 * (1 +
    tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``; ``"SIGMOID_APPROXIMATION"``: ``x *
    sigmoid(1.702 * x)``.
    """
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"mode must be one of {', '.join(_GELU_MODES)}, got {mode!r}")


@operation("leaky_relu", in_half=True)
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where ``x >= 0``, elsewhere ``alpha * x``."""
    return F.leaky_relu(x, alpha)


@operation("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha * x + beta``."""
    return x * alpha + beta


@operation("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where ``x > 0``, elsewhere ``alpha * x``, with an ``alpha`` for each channel.

    x: [B, C, ...]; alpha: [C].
    """
    return torch.where(x > 0, x, x * _per_channel(alpha, x, "alpha"))


@operation("relu", in_half=True)
def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return torch.relu(x)


@operation("relu6", in_half=True)
def relu6(x: Tensor) -> Tensor:
    """``min(max(x, 0), 6)``."""
    return torch.clamp(x, 0, 6)


@operation("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha * tanh(beta * x)``."""
    return alpha * torch.tanh(beta * x)


@operation("sigmoid", in_half=True)
def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e ** -x)``."""
    return torch.sigmoid(x)


@operation("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``min(max(alpha * x + beta, 0), 1)``."""
    return torch.clamp(x * alpha + beta, 0, 1)


@operation("silu", in_half=True)
def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


@operation("softplus")
def softplus(x: Tensor) -> Tensor:
    """``ln(1 + e ** x)``."""
    return F.softplus(x)


@operation("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * ln(1 + e ** (beta * x))``, with an ``alpha`` and a ``beta`` for each channel.

    x: [B, C, ...]; alpha, beta: [C].
    """
    return _per_channel(alpha, x, "alpha") * F.softplus(_per_channel(beta, x, "beta") * x)


@operation("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """``e ** x`` divided by its sum along an axis."""
    rank = x.dim()
    if not -rank <= axis < rank:
        raise ValueError(
            f"axis must be from {-rank} to {rank - 1} for a tensor of rank {rank}, got {axis}"
        )
    return torch.softmax(x, axis)


@operation("softsign")
def softsign(x: Tensor) -> Tensor:
    """``x / (1 + |x|)``."""
    return F.softsign(x)


@operation("thresholded_relu", in_half=True)
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where ``x >= alpha``, elsewhere 0."""
    return torch.where(x < alpha, 0, x)  # NaN stays


def _per_channel(parameter: Tensor, x: Tensor, name: str) -> Tensor:
    """[C] in a shape that broadcasts along the second axis of ``x``."""
    if x.dim() < 2 or parameter.shape != x.shape[1:2]:
        raise ValueError(
            f"{name} must have one element for each channel of x, the second axis; got shape "
            f"{list(parameter.shape)} for x of shape {list(x.shape)}"
        )
    return parameter.reshape(-1, *[1] * (x.dim() - 2))
