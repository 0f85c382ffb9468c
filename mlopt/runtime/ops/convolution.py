"""Convolutions in one, two and three dimensions (MIL, ``defs/*/conv.py``).

``conv_quantized`` is left out: its definition, called experimental there, has no place for a lookup
table, does not say what shapes the scale and the bias of quantization have, and makes the ``bias``
of the convolution uint8 without saying how it is to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import attrs
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.ops.linear import in_one_dtype
from mlopt.runtime.registry import Ints, operation
from mlopt.runtime.sizes import check_elements

Amounts = list[tuple[int, int]]
"""Numbers of elements added before and after each spatial axis; negative: removed."""

_PAD_TYPES = ("valid", "same", "same_lower", "custom")
_TRANSPOSED_PAD_TYPES = ("valid", "same", "custom")

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operation("conv", keeps_nothing=True)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """The correlation of ``x`` with the kernels of ``weight``, plus ``bias``.

    x: [N, C_in, *D]; weight: [C_out, C_in / groups, *K]; 1 to 3 spatial axes. ``pad_type`` "same"
    pads so that each output length is ``ceil(D / stride)``, with the odd element at the end, and
    "same_lower" with the odd element at the beginning. (The amounts in the text of the definition
    are others for strides and even kernels, and contradict the shapes that it infers.)
    """
    places = _places(x.shape, weight.shape, strides, pad_type, pad, dilations)
    x, weight, bias = in_one_dtype(x, weight, bias)
    if places.amounts is not None:
        x = padded(x, places.amounts, 0.0)
    convolution = _CONVOLUTIONS[len(places.strides)]
    return convolution(x, weight, bias, places.strides, places.padding, places.dilations, groups)


@operation("conv_transpose", keeps_nothing=True)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """The transpose of ``conv``: each element of ``x`` adds its multiple of the kernels.

    x: [N, C_in, *D]; weight: [C_in, C_out / groups, *K]; 1 to 3 spatial axes. The full result has
    the lengths ``(D - 1) * stride + (K - 1) * dilation + 1``. It is cropped by ``pad`` if
    ``pad_type`` is "custom", and to ``D * stride`` if it is "same". ``output_shape``, which is that
    of all axes, overrides these lengths; then "valid" is as "same". If only a length is given, half
    of what is cropped, rounded down, is at the beginning; zeros follow a full result that is
    shorter.
    """
    rank = spatial_rank(x.shape)
    strides = per_axis("strides", strides, rank)
    dilations = per_axis("dilations", dilations, rank)
    _check_rank(weight.shape, rank)
    crops = transposed_crops(
        x.shape,
        weight.shape,
        pad=pad,
        output_shape=output_shape,
        pad_type=pad_type,
        strides=strides,
        dilations=dilations,
        groups=groups,
    )
    x, weight, bias = in_one_dtype(x, weight, bias)
    return _transposed(x, weight, bias, strides, dilations, groups, crops)


def transposed_crops(
    shape: Sequence[int],
    kernel: Sequence[int],
    *,
    pad: Ints | None,
    output_shape: Ints | None,
    pad_type: str,
    strides: Ints,
    dilations: Ints,
    groups: int,
) -> Amounts:
    """Return how much ``conv_transpose`` crops its full result; negative: zeros that follow it.

    shape, kernel: those of x and of the weight.
    """
    rank = len(kernel) - 2
    kernels = _dilated_lengths(kernel, dilations)
    full = [(d - 1) * s + k for d, s, k in zip(shape[2:], strides, kernels, strict=True)]
    outer = (shape[0], kernel[1] * groups)
    check_elements(math.prod(outer) * math.prod(full))
    if pad_type not in _TRANSPOSED_PAD_TYPES:
        allowed = ", ".join(_TRANSPOSED_PAD_TYPES)
        raise ValueError(f"pad_type must be one of {allowed}, got {pad_type!r}")
    wanted = None
    if output_shape is not None:
        wanted = _inner_shape(output_shape, outer, rank)
    elif pad_type == "same":
        wanted = [d * s for d, s in zip(shape[2:], strides, strict=True)]
    return _crops(_custom(pad, rank) if pad_type == "custom" else None, full, wanted)


@attrs.frozen
class _Places:
    """The places of kernels: torch's own padding, or amounts that are padded before."""

    strides: Ints
    dilations: Ints
    padding: Ints
    amounts: Amounts | None


@lru_cache(maxsize=1024)
def _places(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: Ints | None,
    pad_type: str,
    pad: Ints | None,
    dilations: Ints | None,
) -> _Places:
    """Return the places of the kernels of ``conv``; ValueError where arguments do not fit.

    shape, kernel: those of x and of the weight. In small networks finding them takes longer than
    the convolution, and most runs have the shapes of the run before.
    """
    rank = spatial_rank(shape)
    strides = per_axis("strides", strides, rank)
    dilations = per_axis("dilations", dilations, rank)
    kernels = _dilated(kernel, dilations, rank)
    amounts = padding_amounts(pad_type, pad, shape[2:], kernels, strides)
    _check_result(shape, kernel[0], kernels, strides, amounts)
    if all(before == after >= 0 for before, after in amounts):
        return _Places(strides, dilations, tuple(before for before, _ in amounts), None)
    return _Places(strides, dilations, (0,) * rank, amounts)


def spatial_rank(shape: Sequence[int]) -> int:
    """Return the number of spatial axes of [N, C, *D]: 1, 2 or 3, or a ValueError."""
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"x needs 1 to 3 axes after batch and channels, got {list(shape)}")
    return len(shape) - 2


def per_axis(name: str, values: Ints | None, rank: int) -> Ints:
    """Return one positive number per spatial axis; ones if left out."""
    if values is None:
        return (1,) * rank
    if len(values) != rank or min(values) < 1:
        raise ValueError(f"{name} must be {rank} positive numbers, got {list(values)}")
    return values


def padding_amounts(
    pad_type: str, pad: Ints | None, lengths: Sequence[int], kernels: Ints, strides: Ints
) -> Amounts:
    """Return how much ``pad_type`` pads each spatial axis; ``kernels``: lengths with dilation."""
    if pad_type not in _PAD_TYPES:
        raise ValueError(f"pad_type must be one of {', '.join(_PAD_TYPES)}, got {pad_type!r}")
    if pad_type == "valid":
        return [(0, 0)] * len(lengths)
    if pad_type == "custom":
        return _custom(pad, len(lengths))
    amounts = []
    for length, kernel, stride in zip(lengths, kernels, strides, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        halves = (total // 2, total - total // 2)
        amounts.append(halves if pad_type == "same" else halves[::-1])
    return amounts


def padded(x: Tensor, amounts: Amounts, value: float) -> Tensor:
    """Return a copy with ``value`` around the spatial axes; negative amounts remove elements."""
    lengths = [d + sum(both) for d, both in zip(x.shape[2:], amounts, strict=True)]
    if min(lengths) < 0:
        raise ValueError(f"pads {amounts} remove more than there is of {list(x.shape)}")
    check_elements(x.shape[0] * x.shape[1] * math.prod(lengths))
    flat = [amount for both in reversed(amounts) for amount in both]
    return functional.pad(x, flat, value=value)


def _dilated(kernel: Sequence[int], dilations: Ints, rank: int) -> Ints:
    _check_rank(kernel, rank)
    return _dilated_lengths(kernel, dilations)


def _dilated_lengths(kernel: Sequence[int], dilations: Ints) -> Ints:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel[2:], dilations, strict=True))


def _check_rank(kernel: Sequence[int], rank: int) -> None:
    if len(kernel) != rank + 2:
        raise ValueError(f"weight needs {rank + 2} axes as x has, got {list(kernel)}")


def _custom(pad: Ints | None, rank: int) -> Amounts:
    if pad is None:
        return [(0, 0)] * rank
    if len(pad) != 2 * rank:
        raise ValueError(f"pad must be {2 * rank} numbers, two for each axis, got {list(pad)}")
    return list(zip(pad[::2], pad[1::2], strict=True))


def _check_result(
    shape: Sequence[int], channels: int, kernels: Ints, strides: Ints, amounts: Amounts
) -> None:
    lengths = [d + sum(both) for d, both in zip(shape[2:], amounts, strict=True)]
    if any(kernel > length for kernel, length in zip(kernels, lengths, strict=True)):
        raise ValueError(f"kernels of lengths {kernels} do not fit into lengths {lengths}")
    counts = [(d - k) // s + 1 for d, k, s in zip(lengths, kernels, strides, strict=True)]
    check_elements(shape[0] * channels * math.prod(counts))


def _inner_shape(output_shape: Ints, outer: tuple[int, int], rank: int) -> list[int]:
    if len(output_shape) != rank + 2 or output_shape[:2] != outer:
        raise ValueError(
            f"output_shape must be {outer[0]}, {outer[1]} and {rank} lengths, got "
            f"{list(output_shape)}"
        )
    return list(output_shape[2:])


def _crops(own: Amounts | None, full: list[int], wanted: list[int] | None) -> Amounts:
    """Return the amounts cropped per end; own: custom amounts; wanted: lengths unless own's."""
    crops = [(0, 0)] * len(full) if own is None else own
    if wanted is not None:
        totals = [length - want for length, want in zip(full, wanted, strict=True)]
        begins = [max(0, total) // 2 for total in totals] if own is None else [b for b, _ in own]
        crops = [(begin, total - begin) for begin, total in zip(begins, totals, strict=True)]
    fits = all(
        max(crop) < length and length - sum(crop) > 0
        for length, crop in zip(full, crops, strict=True)
    )
    if not fits:
        raise ValueError(f"the lengths {full} cannot be cropped by {crops}")
    return crops


def _transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Ints,
    dilations: Ints,
    groups: int,
    crops: Amounts,
) -> Tensor:
    """Return the full result, cropped at each end; negative crops add zeros."""
    padding, longer, rest = [], [], []
    for (begin, end), stride, dilation in zip(crops, strides, dilations, strict=True):
        # torch crops both ends alike, and less at the end by fewer than a stride or a dilation
        both, less = max(0, min(begin, end)), 0
        if begin >= 0 and 0 <= begin - end < max(stride, dilation):
            both, less = begin, begin - end
        padding.append(both)
        longer.append(less)
        rest.append((both - begin, both - less - end))
    function = _TRANSPOSED[len(crops)]
    if all(before <= 0 and after <= 0 for before, after in rest):
        result = function(x, weight, bias, strides, padding, longer, groups, dilations)
        for axis, (before, after) in enumerate(rest, start=2):
            result = result.narrow(axis, -before, result.shape[axis] + before + after)
        return result
    result = function(x, weight, None, strides, padding, longer, groups, dilations)
    result = padded(result, rest, 0.0)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(crops))
