"""Convolutions: the patches that their kernels meet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlopt.calibration.readers.reader import CHUNK, Arguments, Reader, Use
from mlopt.palette.moments import Arrangement
from mlopt.runtime.ops.convolution import padded, padding_amounts, transposed_crops


def conv_reader(use: Use) -> Reader:
    """Return the reader of a conv's weight [O, I/g, *K]: by the patches of each group."""
    outputs, inner, *kernel = use.shape
    rank = len(kernel)
    groups = int(use.constant("groups", 1))
    strides = use.constant("strides", (1,) * rank)
    dilations = use.constant("dilations", (1,) * rank)
    pad_type, pad = use.constant("pad_type", "valid"), use.constant("pad", None)
    lengths = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    arrangement = Arrangement(
        shape=use.shape,
        split=(groups, outputs // groups, inner, *kernel),
        order=tuple(range(rank + 3)),
        blocks=groups,
        rows=outputs // groups,
        columns=inner * math.prod(kernel),
    )

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments["x"]
        amounts = padding_amounts(pad_type, pad, x.shape[2:], lengths, strides)
        windows = _windows(padded(x, amounts, 0.0), kernel, strides, dilations)
        return _patches(windows, groups)

    geometry = ("conv", tuple(kernel), groups, strides, dilations, pad_type, pad)
    return Reader(
        arrangement=arrangement, sources=use.sources("x"), geometry=geometry, inputs=inputs
    )


def conv_transpose_reader(use: Use) -> Reader:
    """Return the reader of a conv_transpose's weight [I, O/g, *K].

    An output is the product of a turned kernel and a patch of the input, between whose elements
    there are zeros for the strides.
    """
    channels, inner, *kernel = use.shape
    rank = len(kernel)
    groups = int(use.constant("groups", 1))
    strides = use.constant("strides", (1,) * rank)
    dilations = use.constant("dilations", (1,) * rank)
    cropping = {
        name: use.constant(name, default)
        for name, default in (("pad", None), ("output_shape", None), ("pad_type", "valid"))
    }
    arrangement = Arrangement(
        shape=use.shape,
        split=(groups, channels // groups, inner, *kernel),
        order=(0, 2, 1, *range(3, rank + 3)),
        blocks=groups,
        rows=inner,
        columns=channels // groups * math.prod(kernel),
    )

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments["x"]
        crops = transposed_crops(
            x.shape, use.shape, strides=strides, dilations=dilations, groups=groups, **cropping
        )
        around = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        # what is cropped of the result is a patch less; zeros that follow it are none
        amounts = [
            (a - max(0, before), a - max(0, after))
            for a, (before, after) in zip(around, crops, strict=True)
        ]
        wide = padded(_spread(x, strides), amounts, 0.0)
        windows = _windows(wide, kernel, (1,) * rank, dilations)
        return _patches(windows, groups, is_turned=True)

    geometry = ("conv_transpose", use.shape, groups, strides, dilations, *cropping.values())
    return Reader(
        arrangement=arrangement, sources=use.sources("x"), geometry=geometry, inputs=inputs
    )


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
    axis = max(range(2, 2 + rank), key=lambda each: windows.shape[each])
    each = math.prod(windows.shape[1:]) // max(windows.shape[axis], 1)
    step = max(1, CHUNK // max(each, 1))
    for sample in torch.split(windows, 1):
        for part in torch.split(sample, step, dim=axis):
            lengths, kernel = part.shape[2 : 2 + rank], part.shape[2 + rank :]
            parted = part.reshape(groups, channels // groups, *lengths, *kernel)
            if is_turned:
                parted = parted.flip(*range(2 + rank, 2 + 2 * rank))
            order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
            yield parted.permute(order).reshape(groups, math.prod(lengths), -1)


def _spread(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Return [N, C, *D] with zeros between the elements, in lengths ``(D - 1) * stride + 1``."""
    lengths = [(d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True)]
    result = torch.zeros(*x.shape[:2], *lengths, dtype=x.dtype, device=x.device)
    places = tuple(slice(None, None, stride) for stride in strides)
    result[(slice(None), slice(None), *places)] = x
    return result
