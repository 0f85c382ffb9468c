"""Products of matrices (MIL, ``defs/*/linear.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.registry import Tensors, operation


@operation("linear", keeps_nothing=True)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; x: [*D, D_in], weight: [D_out, D_in], bias: [D_out]."""
    x, weight, bias = in_one_dtype(x, weight, bias)
    if _has_kernels(x):
        return functional.linear(x, weight, bias)
    product = _product(x, weight.t())
    return product if bias is None else product + bias


@operation("matmul", declared_loosely=True, keeps_nothing=True)
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Products of the matrices in the last two axes, the axes before them broadcast.

    An operand of rank 1 is a row on the left, a column on the right, and its axis is dropped from
    the result; transposing it does nothing.
    """
    x, y = in_one_dtype(x, y)
    return _product(_transposed(x) if transpose_x else x, _transposed(y) if transpose_y else y)


@operation("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """The products of matrices in the axes -3 and -1: ``nchw,nwhu->nchu`` or ``chw,whu->chu``.

    values: two tensors of rank 4, or of rank 3; their other axes are broadcast. The letters of the
    equation may be any.
    """
    if len(values) != 2:
        raise ValueError(f"einsum takes two tensors, got {len(values)}")
    x, y = in_one_dtype(*values)
    if not x.dim() == y.dim() == _rank_of(equation):
        raise ValueError(f"the ranks {x.dim()} and {y.dim()} do not fit the equation {equation!r}")
    product = _product(x.transpose(-3, -2), y.transpose(-3, -2))
    return product.transpose(-3, -2)


def in_one_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return tensors in the narrowest dtype that holds them all, as they are if they have it.

    None stays None. Since iOS17 weights may have other element types than what they work on.
    """
    first = tensors[0].dtype if tensors[0] is not None else None
    for tensor in tensors:
        if tensor is not None and tensor.dtype != first:
            break
    else:
        return tensors  # as most are
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) < 2:
        return tensors
    wide = dtypes.pop()
    for dtype in dtypes:
        wide = torch.promote_types(wide, dtype)
    return tuple(None if tensor is None else tensor.to(wide) for tensor in tensors)


def _has_kernels(x: Tensor) -> bool:
    """Return whether torch multiplies matrices of a dtype on a device: integers on the CPU only."""
    return x.is_floating_point() or x.device.type == "cpu"


def _product(x: Tensor, y: Tensor) -> Tensor:
    if _has_kernels(x):
        return torch.matmul(x, y)
    return torch.matmul(x.cpu(), y.cpu()).to(x.device)


def _transposed(x: Tensor) -> Tensor:
    return x if x.dim() < 2 else x.transpose(-1, -2)


def _rank_of(equation: str) -> int:
    """Return the rank of the tensors that an equation takes; ValueError for another equation."""
    numbers: dict[str, int] = {}
    for letter in equation.replace("->", ",").replace(",", ""):
        numbers.setdefault(letter, len(numbers))
    plain = "".join(str(numbers.get(letter, letter)) for letter in equation)
    ranks = {"0123,0324->0124": 4, "012,213->013": 3}
    if plain not in ranks:
        raise ValueError(
            "equation must be 'nchw,nwhu->nchu' or 'chw,whu->chu' with any letters, got "
            f"{equation!r}"
        )
    return ranks[plain]
