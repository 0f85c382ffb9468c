"""Parts of tensors, read and replaced (MIL, ``defs/*/tensor_transformation.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import attrs
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
    part = _part(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return part.turned(x[part.slices]).reshape(part.shape)


@operation("slice_by_size", declared_loosely=True, in_half=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``x[begin[0]:begin[0] + size[0], ...]``.

    begin: negative ones count from the end; size: -1 for all that follows.
    """
    _check_lengths(x.shape, begin=begin, size=size)
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
    part = _part(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if update.shape != part.shape:
        raise ValueError(f"update must be of shape {list(part.shape)}, got {list(update.shape)}")
    updated = x.clone(memory_format=torch.contiguous_format)
    updated[part.slices] = part.turned(update.reshape(part.lengths))
    return updated


@attrs.frozen
class _Part:
    """A part of a tensor.

    slices: its elements in ascending order; reversed_axes: those along which it is in descending
    order; lengths: of all axes; shape: without the axes that are dropped.
    """

    slices: tuple[slice, ...]
    reversed_axes: tuple[int, ...]
    lengths: tuple[int, ...]
    shape: tuple[int, ...]

    def turned(self, values: Tensor) -> Tensor:
        """From ascending order to that of the part, or back."""
        return values.flip(self.reversed_axes) if self.reversed_axes else values


@lru_cache(maxsize=1024)
def _part(
    shape: tuple[int, ...],
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> _Part:
    """Return what is taken of a shape: most runs take what the run before took."""
    ranges = _ranges(shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    dropped = squeeze_mask or (False,) * len(ranges)
    lengths = tuple(map(len, ranges))
    return _Part(
        _slices(ranges),
        tuple(axis for axis, taken in enumerate(ranges) if taken.step < 0),
        lengths,
        tuple(n for n, is_index in zip(lengths, dropped, strict=True) if not is_index),
    )


def _ranges(
    shape: tuple[int, ...],
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> list[range]:
    """Which elements are taken along each axis, in their order."""
    unmasked = (False,) * len(shape)
    strides = (1,) * len(shape) if stride is None else stride
    is_first = begin_mask or unmasked
    is_last = end_mask or unmasked
    is_index = squeeze_mask or unmasked
    _check_lengths(
        shape,
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
    for axis, length in enumerate(shape):
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


def _check_lengths(shape: Sequence[int], **given: Sequence[int]) -> None:
    for name, values in given.items():
        if len(values) != len(shape):
            raise ValueError(
                f"{name} must hold a value for each of {len(shape)} axes, got {list(values)}"
            )


def _slices(ranges: Sequence[range]) -> tuple[slice, ...]:
    """The same elements in ascending order, as torch has no negative steps."""
    return tuple(
        slice(min(part), max(part) + 1, abs(part.step)) if part else slice(0, 0) for part in ranges
    )
