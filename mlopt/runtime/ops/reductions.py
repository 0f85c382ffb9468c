"""Reductions over axes (MIL, ``defs/*/reduction.py``).

``axes`` may be negative; all axes are reduced where they are left out, none where they are empty.
Reduced axes have length 1 in the result with ``keep_dims``, and are absent without. For integers,
fractions of results are cut off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlopt.runtime.registry import Ints, operation

_Reduction = Callable[[Tensor, Ints, bool], Tensor]
"""Reduction of a tensor over one or more nonnegative axes; the flag keeps them."""


@operation("reduce_argmax", in_half=True)
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """The index of the maximum along an axis; the first of equal ones."""
    _check_index_dtype(output_dtype)
    (dim,) = _dims(x, (axis,))
    return torch.argmax(x, dim, keep_dims)


@operation("reduce_argmin", in_half=True)
def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """The index of the minimum along an axis; the first of equal ones."""
    _check_index_dtype(output_dtype)
    (dim,) = _dims(x, (axis,))
    return torch.argmin(x, dim, keep_dims)


@operation("reduce_l1_norm")
def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The sum of absolute values."""
    return _reduced(torch.abs(x), axes, keep_dims, torch.sum)


@operation("reduce_l2_norm")
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The square root of the sum of squares."""
    return torch.sqrt(_reduced(torch.square(_wide(x)), axes, keep_dims, torch.sum))


@operation("reduce_log_sum")
def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The natural logarithm of the sum."""
    return torch.log(_reduced(_wide(x), axes, keep_dims, torch.sum))


@operation("reduce_log_sum_exp")
def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The natural logarithm of the sum of ``e ** x``, without overflow."""
    return _reduced(_wide(x), axes, keep_dims, torch.logsumexp)


@operation("reduce_max", in_half=True)
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The maximum; NaN if one element is."""
    return _reduced(x, axes, keep_dims, torch.amax)


@operation("reduce_mean")
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The mean."""
    return _reduced(_wide(x), axes, keep_dims, torch.mean)


@operation("reduce_min", in_half=True)
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The minimum; NaN if one element is."""
    return _reduced(x, axes, keep_dims, torch.amin)


@operation("reduce_prod")
def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The product."""
    return _reduced(x if _is_integer(x) else _wide(x), axes, keep_dims, _product)


@operation("reduce_sum")
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The sum."""
    return _reduced(x, axes, keep_dims, torch.sum)


@operation("reduce_sum_square")
def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The sum of squares."""
    return _reduced(torch.square(x if _is_integer(x) else _wide(x)), axes, keep_dims, torch.sum)


def _reduced(x: Tensor, axes: Ints | None, keep_dims: bool, reduction: _Reduction) -> Tensor:
    dims = _dims(x, axes)
    if not dims:
        # to torch, no axes are all of them
        return reduction(x.unsqueeze(-1), (x.dim(),), False)
    return reduction(x, dims, keep_dims)


def _dims(x: Tensor, axes: Ints | None) -> Ints:
    """Axes without negative ones; all for None."""
    rank = x.dim()
    if axes is None:
        return tuple(range(rank))
    if not all(-rank <= axis < rank for axis in axes):
        raise ValueError(
            f"an axis must be from {-rank} to {rank - 1} for a tensor of rank {rank}, got "
            f"{list(axes)}"
        )
    dims = tuple(axis % rank for axis in axes)
    if len(set(dims)) < len(dims):
        raise ValueError(f"axes must differ, got {list(axes)} for a tensor of rank {rank}")
    return dims


def _product(x: Tensor, dims: Ints, keep_dims: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keep_dims)
    return x


def _is_integer(x: Tensor) -> bool:
    return not x.is_floating_point()


def _wide(x: Tensor) -> Tensor:
    """``x`` in a dtype in which intermediate results neither overflow nor lose much."""
    if _is_integer(x):
        return x.double()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_index_dtype(name: str) -> None:
    if name.lower() not in ("int32", "uint16"):
        raise ValueError(f"output_dtype must be int32 or uint16, got {name!r}")
