"""Averages, maxima and norms of windows (MIL, ``defs/*/pool.py``).

Paddings are those of :mod:`mlopt.runtime.ops.convolution`. With ``ceil_mode`` lengths are rounded
up, less one if the last window would begin behind ``x`` and there is padding. Windows may then go
past the padding; what is there belongs to no window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.ops.convolution import padded, padding_amounts, per_axis, spatial_rank
from mlopt.runtime.registry import Ints, operation

_AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_MAXIMA: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}


@operation("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The averages of windows.

    x: [N, C, *D], 1 to 3 spatial axes. Padding counts as zeros, or not at all if
    ``exclude_padding_from_average``; a window of nothing but padding is 0.
    """
    axes = _axes(x.shape, kernel_sizes, pad_type, strides, pad, ceil_mode)
    average = _AVERAGES[len(axes)]
    if all(axis.is_native for axis in axes):
        function = partial(average, count_include_pad=not exclude_padding_from_average)
        return _pooled_natively(function, x, axes, ceil_mode=ceil_mode)
    means = _pooled(average, x, axes, 0.0)
    for number, axis in enumerate(reversed(axes)):
        counts = axis.counts(exclude_padding=exclude_padding_from_average)
        if (counts != axis.kernel).any():
            factors = (axis.kernel / counts).to(means)
            means = means * factors.reshape(-1, *[1] * number)
    return means


@operation("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """``sqrt(sum(x ** 2))`` of windows; x: [N, C, *D]."""
    axes = _axes(x.shape, kernel_sizes, pad_type, strides, pad, ceil_mode)
    squares = x.float().square()  # they leave the range of float16
    average = _AVERAGES[len(axes)]
    if all(axis.is_native and axis.covering <= axis.after for axis in axes):
        averages = _pooled_natively(average, squares, axes, ceil_mode=ceil_mode)
    else:
        averages = _pooled(average, squares, axes, 0.0)
    return torch.sqrt(averages * math.prod(kernel_sizes))


@operation("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The maxima of windows; x: [N, C, *D], 1 to 3 spatial axes. Padding is minus infinity."""
    axes = _axes(x.shape, kernel_sizes, pad_type, strides, pad, ceil_mode)
    maximum = _MAXIMA[len(axes)]
    if all(axis.is_native for axis in axes):
        return _pooled_natively(maximum, x, axes, ceil_mode=ceil_mode)
    return _pooled(maximum, x, axes, -math.inf)


@attrs.frozen
class _Axis:
    """The places of windows along one spatial axis; ``count``: how many."""

    length: int
    kernel: int
    stride: int
    before: int
    after: int
    count: int

    @property
    def covering(self) -> int:
        """The padding at the end with which the last window ends; negative if x goes on."""
        return (self.count - 1) * self.stride + self.kernel - self.before - self.length

    @property
    def is_native(self) -> bool:
        """Whether torch's functions pad like this, and have the same number of windows."""
        is_allowed = self.before == self.after and 0 <= self.before <= self.kernel // 2
        return is_allowed and (self.count - 1) * self.stride < self.length + self.before

    def counts(self, *, exclude_padding: bool) -> Tensor:
        """Return the divisor of each window's sum: int64[count], at least 1."""
        low = self.before if exclude_padding else 0
        high = self.before + self.length + (0 if exclude_padding else self.after)
        starts = torch.arange(self.count) * self.stride
        ends = (starts + self.kernel).clamp(max=high)
        return (ends - starts.clamp(min=low)).clamp(min=1)


@lru_cache(maxsize=1024)
def _axes(
    shape: tuple[int, ...],
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None,
    pad: Ints | None,
    ceil_mode: bool,
) -> tuple[_Axis, ...]:
    rank = spatial_rank(shape)
    kernels = per_axis("kernel_sizes", kernel_sizes, rank)
    strides = per_axis("strides", strides, rank)
    amounts = padding_amounts(pad_type.lower(), pad, shape[2:], kernels, strides)
    axes = []
    for length, kernel, stride, (before, after) in zip(
        shape[2:], kernels, strides, amounts, strict=True
    ):
        more = length + before + after - kernel
        count = (-(-more // stride) if ceil_mode else more // stride) + 1
        if ceil_mode and before + after > 0 and (count - 1) * stride >= length + before:
            count -= 1
        if count < 1:
            raise ValueError(
                f"a window of {kernel} elements does not fit into {length} with {before} and "
                f"{after} of padding"
            )
        axes.append(_Axis(length, kernel, stride, before, after, count))
    return tuple(axes)


def _pooled_natively(
    function: Callable[..., Tensor], x: Tensor, axes: tuple[_Axis, ...], *, ceil_mode: bool
) -> Tensor:
    """Pool with torch's own padding."""
    before = [axis.before for axis in axes]
    return function(x, *_windows(axes), before, ceil_mode=ceil_mode)


def _pooled(
    function: Callable[..., Tensor], x: Tensor, axes: tuple[_Axis, ...], value: float
) -> Tensor:
    """Pool with ``value`` around ``x``, so that the windows end where it ends."""
    covered = padded(x, [(axis.before, axis.covering) for axis in axes], value)
    return function(covered, *_windows(axes))


def _windows(axes: tuple[_Axis, ...]) -> tuple[list[int], list[int]]:
    """The lengths of windows and their strides."""
    return [axis.kernel for axis in axes], [axis.stride for axis in axes]
