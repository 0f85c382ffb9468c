"""Parts of tensors, read and replaced (MIL, ``defs/*/tensor_transformation.py``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlopt.runtime.registry import Bools, Ints, operation


@operation("slice_by_index", in_half=True)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """``x[begin[0]:end[0]:stride[0], ...]``, indices as in numpy.

    stride: left out, 1; begin_mask, end_mask: where the slice begins at its first element, or ends
    after its last one, whatever ``begin`` or ``end`` is; squeeze_mask: where the one element at
    ``begin`` is taken, and its axis dropped.
    """
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return _turned(x[_slices(ranges)], ranges).reshape(_shape(ranges, squeeze_mask))


@operation("slice_by_size", declared_loosely=True, in_half=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``x[begin[0]:begin[0] + size[0], ...]``.

    begin: negative ones count from the end; size: -1 for all that follows.
    """
    _check_lengths(x, begin=begin, size=size)
    ranges = []
    for axis, (length, first, count) in enumerate(zip(x.shape, begin, size, strict=True)):
        first = first + length if first < 0 else first
        last = length if count == -1 else first + count
        if not 0 <= first <= last <= length:
            raise ValueError(
                f"axis {axis} has {length} elements, of which {count} (-1: all) from {begin[axis]} "
                "on cannot be taken"
            )
        ranges.append(range(first, last))
    return x[_slices(ranges)]


@operation("slice_update", since="CoreML8", in_half=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """``x`` with ``update`` instead of a part; the part is described as for ``slice_by_index``."""
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    wanted = _shape(ranges, squeeze_mask)
    if list(update.shape) != wanted:
        raise ValueError(f"update must be of shape {wanted}, got {list(update.shape)}")
    updated = x.clone(memory_format=torch.contiguous_format)
    part = update.reshape([len(part) for part in ranges])
    updated[_slices(ranges)] = _turned(part, ranges)
    return updated


def _ranges(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> list[range]:
    """Which elements are taken along each axis, in their order."""
    unmasked = (False,) * x.dim()
    strides = (1,) * x.dim() if stride is None else stride
    is_first = begin_mask or unmasked
    is_last = end_mask or unmasked
    is_index = squeeze_mask or unmasked
    _check_lengths(
        x,
        begin=begin,
        end=end,
        stride=strides,
        begin_mask=is_first,
        end_mask=is_last,
        squeeze_mask=is_index,
    )
    if 0 in strides:
        raise ValueError(f"stride must hold no zeros, got {list(strides)}")
    ranges = []
    for axis, length in enumerate(x.shape):
        first = None if is_first[axis] else begin[axis]
        if is_index[axis]:
            ranges.append(_index(0 if first is None else first, length, axis))
            continue
        last = None if is_last[axis] else end[axis]
        ranges.append(range(*slice(first, last, strides[axis]).indices(length)))
    return ranges


def _index(index: int, length: int, axis: int) -> range:
    if not -length <= index < length:
        raise ValueError(
            f"axis {axis} has {length} elements: the index that squeeze_mask asks for must be "
            f"from {-length} to {length - 1}, got {index}"
        )
    return range(index % length, index % length + 1)


def _check_lengths(x: Tensor, **given: Sequence[int]) -> None:
    for name, values in given.items():
        if len(values) != x.dim():
            raise ValueError(
                f"{name} must hold a value for each of {x.dim()} axes, got {list(values)}"
            )


def _slices(ranges: Sequence[range]) -> tuple[slice, ...]:
    """The same elements in ascending order, as torch has no negative steps."""
    return tuple(
        slice(min(part), max(part) + 1, abs(part.step)) if part else slice(0, 0) for part in ranges
    )


def _turned(part: Tensor, ranges: Sequence[range]) -> Tensor:
    """A part from ascending order to that of the ranges, or back."""
    axes = [axis for axis, taken in enumerate(ranges) if taken.step < 0]
    return part.flip(axes) if axes else part


def _shape(ranges: Sequence[range], squeeze_mask: Bools | None) -> list[int]:
    dropped = squeeze_mask or (False,) * len(ranges)
    return [len(part) for part, is_index in zip(ranges, dropped, strict=True) if not is_index]
