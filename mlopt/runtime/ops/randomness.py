"""Random tensors (MIL, ``defs/*/random.py``).

A ``seed`` makes an operation give the same numbers at each run; a negative one means none. The
numbers are not those that Core ML draws, only distributed in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.registry import Ints, operation
from mlopt.runtime.sizes import check_elements


@operation("random_bernoulli")
def random_bernoulli(shape: Ints, call: Call, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with a probability of ``prob``, else 0."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob must be from 0 to 1, got {prob}")
    return _uniform(shape, call, seed) < prob


@operation("random_categorical")
def random_categorical(
    x: Tensor, call: Call, mode: str = "logits", size: int = 1, seed: int = -1
) -> Tensor:
    """Indices along the last axis, with the probabilities on that axis; drawn with replacement.

    x: [..., K], in mode ``"logits"`` the logarithms of probabilities up to a constant, in mode
    ``"probs"`` the probabilities up to a factor. The result is [..., size].
    """
    if mode not in ("logits", "probs"):
        raise ValueError(f"mode must be logits or probs, got {mode!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if x.dim() < 1:
        raise ValueError("x must have an axis of probabilities, got a scalar")
    rows = x.reshape(-1, x.shape[-1]).float()
    check_elements(rows.shape[0] * size)
    probabilities = torch.softmax(rows, -1) if mode == "logits" else rows
    sums = probabilities.sum(-1)
    # torch would stop the whole process on a GPU
    if not bool(torch.isfinite(sums).all() & (sums > 0).all() & (probabilities >= 0).all()):
        raise ValueError(
            f"x ({mode}) must give probabilities that are finite, not negative, and not all 0"
        )
    drawn = torch.multinomial(probabilities, size, True, generator=call.generator(seed))
    return drawn.reshape(*x.shape[:-1], size)


@operation("random_normal")
def random_normal(
    shape: Ints, call: Call, mean: float = 0.0, stddev: float = 1.0, seed: int = -1
) -> Tensor:
    """Numbers from a normal distribution."""
    if stddev < 0:
        raise ValueError(f"stddev must not be negative, got {stddev}")
    _check_shape(shape)
    generator = call.generator(seed)
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return mean + stddev * drawn


@operation("random_uniform")
def random_uniform(
    shape: Ints, call: Call, low: float = 0.0, high: float = 1.0, seed: int = -1
) -> Tensor:
    """Numbers from a uniform distribution from ``low``, included, to ``high``, excluded.

    All are ``low`` where both are equal.
    """
    if high < low:
        raise ValueError(f"high must be at least low, got low {low} and high {high}")
    drawn = (low + (high - low) * _uniform(shape, call, seed)).to(call.dtype)
    # rounding could give high itself
    limits = torch.tensor([high, low], dtype=call.dtype)
    return torch.clamp(drawn, max=torch.nextafter(*limits).item())


def _uniform(shape: Ints, call: Call, seed: int) -> Tensor:
    """From 0, included, to 1, excluded."""
    _check_shape(shape)
    generator = call.generator(seed)
    return torch.rand(shape, generator=generator, device=generator.device)


def _check_shape(shape: Ints) -> None:
    if any(length < 1 for length in shape):
        raise ValueError(f"shape must hold positive lengths, got {list(shape)}")
    check_elements(math.prod(shape))
