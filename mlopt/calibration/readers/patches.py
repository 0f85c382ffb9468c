"""Patches: the parts of an input that the kernels of a convolution meet, as columns.

``x`` is [N, C, *D], padded already; results are parts [groups, positions, columns], each of a
bounded size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mlopt.palette.moments import Arrangement
from mlopt.runtime.ops.convolution import padded

CHUNK = 1 << 23
"""Numbers that patches of an input are copied to at once."""


def conv_arrangement(shape: tuple[int, ...], groups: int) -> Arrangement:
    """Return the matrices of a convolution's weight [O, I/g, *K]."""
    outputs, inner, *kernel = shape
    return Arrangement(
        shape=shape,
        split=(groups, outputs // groups, inner, *kernel),
        order=tuple(range(len(kernel) + 3)),
        blocks=groups,
        rows=outputs // groups,
        columns=inner * math.prod(kernel),
    )


def transposed_arrangement(shape: tuple[int, ...], groups: int) -> Arrangement:
    """Return the matrices of a transposed convolution's weight [I, O/g, *K]."""
    channels, inner, *kernel = shape
    return Arrangement(
        shape=shape,
        split=(groups, channels // groups, inner, *kernel),
        order=(0, 2, 1, *range(3, len(kernel) + 3)),
        blocks=groups,
        rows=inner,
        columns=channels // groups * math.prod(kernel),
    )


def conv_patches(
    x: Tensor,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Iterator[Tensor]:
    """Yield what the kernels of a convolution are multiplied by."""
    return _patches(_windows(x, kernel, strides, dilations), groups)


def transposed_patches(
    x: Tensor,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    crops: Sequence[tuple[int, int]],
) -> Iterator[Tensor]:
    """Yield what the kernels of a transposed convolution are multiplied by; ``x``: not padded.

    An output is the product of a turned kernel and a patch of the input, between whose elements
    there are zeros for the strides. crops: what is cut off the whole result, before and after;
    negative where zeros follow it.
    """
    around = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    # what is cropped of the result is a patch less; zeros that follow it are none
    amounts = [
        (a - max(0, before), a - max(0, after))
        for a, (before, after) in zip(around, crops, strict=True)
    ]
    wide = padded(_spread(x, strides), amounts, 0.0)
    return _patches(_windows(wide, kernel, (1,) * len(kernel), dilations), groups, is_turned=True)


def _windows(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    """Return a view of [N, C, *D] as [N, C, *positions, *kernel]."""
    for axis, (length, stride, dilation) in enumerate(
        zip(kernel, strides, dilations, strict=True), start=2
    ):
        x = x.unfold(axis, (length - 1) * dilation + 1, stride)
        x = x[..., ::dilation]
    return x


def _patches(windows: Tensor, groups: int, *, is_turned: bool = False) -> Iterator[Tensor]:
    """Return the parts of windows as [groups, positions, columns], each of a bounded size.

    is_turned: whether the elements of a window are taken in reverse order.
    """
    rank = (windows.dim() - 2) // 2
    channels = windows.shape[1]
    columns = channels * math.prod(windows.shape[2 + rank :])
    for part in _cut(windows, windows.shape[2 : 2 + rank], columns):
        lengths, kernel = part.shape[2 : 2 + rank], part.shape[2 + rank :]
        parted = part.reshape(groups, channels // groups, *lengths, *kernel)
        if is_turned:
            parted = parted.flip(*range(2 + rank, 2 + 2 * rank))
        order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
        yield parted.permute(order).reshape(groups, math.prod(lengths), -1)


def results_at_patches(result: Tensor, columns: int, groups: int) -> Iterator[Tensor]:
    """Yield the parts of a result [N, O, *positions] as [groups, positions, rows].

    columns: the numbers in a patch of all groups. The parts are those of the patches.
    """
    for part in _cut(result, result.shape[2:], columns):
        yield part.reshape(groups, part.shape[1] // groups, -1).transpose(1, 2)


def _cut(x: Tensor, lengths: Sequence[int], columns: int) -> Iterator[Tensor]:
    """Yield parts [1, C, *positions, ...] of [N, C, *positions, ...], in which patches are small.

    lengths: of the positions; columns: the numbers in a patch.
    """
    axis = max(range(len(lengths)), key=lambda each: lengths[each])
    each = columns * math.prod(lengths) // max(lengths[axis], 1)
    for sample in torch.split(x, 1):
        yield from torch.split(sample, max(1, CHUNK // max(each, 1)), dim=2 + axis)


def _spread(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Return [N, C, *D] with zeros between the elements, in lengths ``(D - 1) * stride + 1``."""
    lengths = [(d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True)]
    result = torch.zeros(*x.shape[:2], *lengths, dtype=x.dtype, device=x.device)
    places = tuple(slice(None, None, stride) for stride in strides)
    result[(slice(None), slice(None), *places)] = x
    return result
