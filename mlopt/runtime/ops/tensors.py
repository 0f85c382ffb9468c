"""Making, joining and sorting tensors (MIL, ``defs/*/tensor_operation.py``)."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.call import Call
from mlopt.runtime.ops.reshaping import positive_axis
from mlopt.runtime.registry import Ints, Tensors, operation
from mlopt.runtime.sizes import check_elements


@operation("band_part", in_half=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Matrices with zeros outside a band around the diagonal.

    lower, upper: how many diagonals are kept below it and above it; negative: all.
    """
    if x.dim() < 2:
        raise ValueError(f"x must be of rank 2 at least, got {list(x.shape)}")
    rows = torch.arange(x.shape[-2], device=x.device).reshape(-1, 1)
    below = rows - torch.arange(x.shape[-1], device=x.device)
    is_kept = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        is_kept &= below <= lower
    if upper >= 0:
        is_kept &= -below <= upper
    return torch.where(is_kept, x, torch.zeros_like(x))


@operation("concat", in_half=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Tensors one after another along an axis; scalars make a vector.

    interleave: first the first element of each along the axis, then the second of each, and so on.
    """
    parts = [value.reshape(1) if value.dim() == 0 else value for value in values]
    ranks = {part.dim() for part in parts}
    if len(ranks) != 1:
        raise ValueError(
            f"values must be of one rank, got shapes {[list(part.shape) for part in parts]}"
        )
    axis = positive_axis(axis, ranks.pop())
    if not interleave:
        return torch.cat(parts, axis)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(
            "values must be of one shape to be interleaved, got "
            f"{[list(part.shape) for part in parts]}"
        )
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


@operation("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """The sum of all elements up to each along an axis.

    exclusive: without the element itself; reverse: from each to the last instead.
    """
    axis = positive_axis(axis, x.dim())
    summed = x.flip(axis) if reverse else x
    if exclusive and x.shape[axis] > 0:
        # shifted, as a difference would be inexact
        zeros = torch.zeros_like(summed.narrow(axis, 0, 1))
        summed = torch.cat([zeros, summed.narrow(axis, 0, x.shape[axis] - 1)], axis)
    summed = torch.cumsum(summed, axis)
    return summed.flip(axis) if reverse else summed


# ``shape`` is a tensor for its device
@operation("fill", in_half=True)
def fill(shape: Tensor, call: Call, value: float = 0.0) -> Tensor:
    """A tensor of a shape, all ``value``."""
    lengths: list[int] = shape.reshape(-1).tolist()
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape must hold lengths from 0 on, got {lengths}")
    return _filled(lengths, value, call, shape.device)


@operation("fill_like", since="CoreML6", in_half=True)
def fill_like(ref_tensor: Tensor, call: Call, value: float = 0.0) -> Tensor:
    """A tensor of the shape of another, all ``value``."""
    return _filled(list(ref_tensor.shape), value, call, ref_tensor.device)


@operation("identity", in_half=True)
def identity(x: Any) -> Any:
    """``x`` itself: a tensor, a list, or any other value."""
    return x


@operation("non_zero", in_half=True)
def non_zero(x: Tensor) -> Tensor:
    """Where ``x`` is not zero: [count, rank], a row of indices for each, in row-major order."""
    return torch.nonzero(x)


@operation("one_hot", in_half=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    call: Call,
    axis: int = -1,
    on_value: float = 1.0,
    off_value: float = 0.0,
) -> Tensor:
    """``on_value`` where the place along a new axis is that of the index, ``off_value`` elsewhere.

    Indices that are negative, or not less than the length of the axis, match no place, as in
    TensorFlow; the definition does not say.
    """
    axis = positive_axis(axis, indices.dim() + 1)
    if one_hot_vector_size < 0:
        raise ValueError(f"one_hot_vector_size must be at least 0, got {one_hot_vector_size}")
    check_elements(indices.numel() * one_hot_vector_size)
    places = torch.arange(one_hot_vector_size, device=indices.device)
    places = places.reshape(-1, *[1] * (indices.dim() - axis))
    is_hot = indices.unsqueeze(axis) == places
    off = torch.full(is_hot.shape, off_value, dtype=call.dtype, device=indices.device)
    return off.masked_fill(is_hot, on_value)


@operation("pad", in_half=True)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """``x`` with elements added before and after along its last axes.

    pad: how many before and after, for each of the last ``len(pad) / 2`` axes in their order; mode:
    ``constant`` adds ``constant_val``, ``reflect`` the elements in reverse without the outermost,
    ``replicate`` the outermost.
    """
    axes = _padded_axes(x, pad)
    lengths = [n + sum(axes.get(axis, (0, 0))) for axis, n in enumerate(x.shape)]
    check_elements(math.prod(lengths))
    if mode == "constant":
        # torch takes the last axis first
        pairs = [n for axis in reversed(axes) for n in axes[axis]]
        return torch.nn.functional.pad(x, pairs, value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"mode must be constant, reflect or replicate, got {mode!r}")
    for axis, (before, after) in axes.items():
        if before or after:
            x = x.index_select(axis, _padding_indices(x, axis, before, after, mode))
    return x


@operation("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor, call: Call) -> Tensor:
    """``start``, ``start + step``, ... up to ``end``, which is left out."""
    if not bool(step != 0):
        raise ValueError(f"step must be a number other than 0, got {step.item()}")
    count = max(0, _range_length(end, start, step, call))
    check_elements(count)
    places = torch.arange(count, device=start.device)
    if not start.is_floating_point():
        return start.long() + places * step.long()
    return start.float() + places.float() * step.float()


@operation("shape", in_half=True)
def shape(x: Tensor) -> Tensor:
    """The lengths of the axes."""
    return torch.tensor(x.shape, dtype=torch.int32, device=x.device)


@operation("split", in_half=True)
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> Tensors:
    """Parts of ``x`` along an axis: of equal lengths, or of ``split_sizes``.

    num_splits: how many; only needed where there are no ``split_sizes``.
    """
    axis = positive_axis(axis, x.dim())
    length = x.shape[axis]
    if split_sizes is None:
        if num_splits is None:
            raise ValueError("num_splits or split_sizes must be given")
        if num_splits < 1 or length % num_splits:
            raise ValueError(f"num_splits must divide {length}, got {num_splits}")
        split_sizes = (length // num_splits,) * num_splits
    elif num_splits not in (None, len(split_sizes)):
        raise ValueError(
            f"num_splits must be the number of split_sizes, {len(split_sizes)}; got {num_splits}"
        )
    if sum(split_sizes) != length or any(size < 0 for size in split_sizes):
        raise ValueError(f"split_sizes must sum up to {length}, got {list(split_sizes)}")
    starts = accumulate(split_sizes, initial=0)
    return tuple(x.narrow(axis, *part) for part in zip(starts, split_sizes, strict=False))


@operation("stack", in_half=True)
def stack(values: Tensors, axis: int) -> Tensor:
    """Tensors of one shape along a new axis."""
    if len({value.shape for value in values}) != 1:
        raise ValueError(
            f"values must be of one shape, got {[list(value.shape) for value in values]}"
        )
    return torch.stack(values, positive_axis(axis, values[0].dim() + 1))


@operation("tile", in_half=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """``x`` repeated ``reps[i]`` times along axis i."""
    if len(reps) != x.dim() or any(count < 1 for count in reps):
        raise ValueError(
            f"reps must hold a number from 1 on for each of {x.dim()} axes, got {list(reps)}"
        )
    check_elements(x.numel() * math.prod(reps))
    return x.repeat(reps)


@operation("argsort", in_half=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The indices of the elements along an axis, greatest first, or least first if ``ascending``.

    Equal elements stay in their order.
    """
    return _sorted(x, positive_axis(axis, x.dim()), ascending)[1]


@operation("topk", in_half=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | Tensors:
    """The ``k`` greatest elements along an axis (least if ``ascending``) and their indices, sorted.

    k: -1 for all. Equal elements stay in their order. They are sorted for any ``sort``: False
    promises no order.
    """
    axis = positive_axis(axis, x.dim())
    length = x.shape[axis]
    if not (0 <= k <= length or k == -1):
        raise ValueError(f"k must be from 0 to {length}, or -1 for all, got {k}")
    if output_indices_dtype not in ("int32", "uint16"):
        raise ValueError(
            f"output_indices_dtype must be int32 or uint16, got {output_indices_dtype!r}"
        )
    count = length if k == -1 else k
    values, indices = (part.narrow(axis, 0, count) for part in _sorted(x, axis, ascending))
    return (values, indices) if return_indices else values


def _filled(lengths: list[int], value: float, call: Call, device: torch.device) -> Tensor:
    check_elements(math.prod(lengths))
    return torch.full(lengths, value, dtype=call.dtype, device=device)


def _padded_axes(x: Tensor, pad: Ints) -> dict[int, tuple[int, int]]:
    """Return the numbers of elements added before and after, by axis."""
    count = len(pad) // 2
    if len(pad) % 2 or count > x.dim() or any(n < 0 for n in pad):
        raise ValueError(
            f"pad must hold two numbers from 0 on for each of at most {x.dim()} axes, got "
            f"{list(pad)}"
        )
    first = x.dim() - count
    return {first + i: (pad[2 * i], pad[2 * i + 1]) for i in range(count)}


def _padding_indices(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Return the indices along an axis of the padded tensor's elements."""
    last = x.shape[axis] - 1
    if last < 0 or (mode == "reflect" and max(before, after) > last):
        raise ValueError(
            f"mode {mode!r} cannot pad axis {axis} of length {last + 1} with {before} and {after}"
        )
    places = torch.arange(-before, last + 1 + after, device=x.device)
    if mode == "replicate":
        return places.clamp(0, last)
    return last - (last - places.abs()).abs()


def _range_length(end: Tensor, start: Tensor, step: Tensor, call: Call) -> int:
    if not start.is_floating_point():
        return -((int(start) - int(end)) // int(step))
    count = math.ceil(float((end - start) / step))
    declared = call.outputs[0].shape
    if declared and declared[0] is not None and abs(declared[0] - count) == 1:
        # it was declared with the rounding of a narrower dtype
        return declared[0]
    return count


def _sorted(x: Tensor, axis: int, ascending: bool) -> Tensors:
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    return values, indices
