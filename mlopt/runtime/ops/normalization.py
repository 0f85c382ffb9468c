"""Normalizations (MIL, ``defs/*/normalization.py``)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.ops.linear import in_one_dtype
from mlopt.runtime.registry import Ints, operation


@operation("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``, for each channel.

    x: [N, C, *D]; the others: [C].
    """
    _check_rank(x)
    x, mean, variance, gamma, beta = in_one_dtype(x, mean, variance, gamma, beta)
    if mean.requires_grad or variance.requires_grad:
        # torch's function has no gradients with respect to them
        scale = torch.rsqrt(variance + epsilon)
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if beta is None else beta - mean * scale
        ones = [1] * (x.dim() - 2)
        return x * scale.reshape(-1, *ones) + shift.reshape(-1, *ones)
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@operation("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """``gamma * (x - E[x]) / sqrt(Var[x] + epsilon) + beta``, for each example and channel.

    x: [N, C, *D], moments over D; gamma, beta: [C].
    """
    _check_rank(x)
    x, gamma, beta = in_one_dtype(x, gamma, beta)
    # faster than torch's instance_norm, and allows a single element for each channel
    return torch.group_norm(x, x.shape[1], gamma, beta, epsilon)


@operation("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``x / sqrt(sum(x ** 2) + epsilon)``, sums over the last three axes."""
    _check_rank(x)
    wide = x.float()  # squares leave the range of float16
    squares = wide.square().sum((-3, -2, -1), keepdim=True)
    return wide * torch.rsqrt(squares + epsilon)


@operation("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``gamma * (x - E[x]) / sqrt(Var[x] + epsilon) + beta``, moments over ``axes``.

    All axes if left out. gamma, beta: the lengths of these axes in the order that x has them.
    """
    count, order, back = _axes_last(axes, x.dim())
    x, gamma, beta = in_one_dtype(x, gamma, beta)
    x = x if back is None else x.permute(order)
    normalized = functional.layer_norm(x, list(x.shape[x.dim() - count :]), gamma, beta, epsilon)
    return normalized if back is None else normalized.permute(back)


@operation("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """``x / (k + alpha / size * sum(x ** 2)) ** beta``, sums over ``size`` channels nearby.

    x: [N, C, *D]. The channels are from ``c - size // 2`` to ``c + (size - 1) // 2``, as far as
    they exist: for even sizes the definition leaves open to which side the odd one belongs.
    """
    _check_rank(x)
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    # squares leave the range of float16
    return functional.local_response_norm(x.float(), size, alpha, beta, k)


def _check_rank(x: Tensor) -> None:
    if x.dim() < 3:
        raise ValueError(f"x needs a rank of 3 at least, got the shape {list(x.shape)}")


@lru_cache(maxsize=1024)
def _axes_last(axes: Ints | None, rank: int) -> tuple[int, Ints, Ints | None]:
    """Return how many axes are meant, the order with these last, and the one that undoes it.

    None for an order that nothing has to be undone of.
    """
    over = _sorted_axes(axes, rank)
    order = (*(axis for axis in range(rank) if axis not in over), *over)
    back = tuple(order.index(axis) for axis in range(rank))
    return len(over), order, None if back == order == tuple(range(rank)) else back


def _sorted_axes(axes: Ints | None, rank: int) -> list[int]:
    if axes is None:
        return list(range(rank))
    if not axes or not all(-rank <= axis < rank for axis in axes):
        raise ValueError(f"axes must be some from {-rank} to {rank - 1}, got {list(axes)}")
    return sorted({axis % rank for axis in axes})
