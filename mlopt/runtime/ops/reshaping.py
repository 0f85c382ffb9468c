"""The same elements in another shape or order (MIL, ``defs/*/tensor_transformation.py``)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from mlopt.runtime.registry import Bools, Ints, Tensors, operation


def positive_axis(axis: int, rank: int) -> int:
    """Return an axis counted from the front; ValueError if a tensor of that rank lacks it."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis must be from {-rank} to {rank - 1} for rank {rank}, got {axis}")
    return axis % rank


@operation("depth_to_space", in_half=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Square blocks made of channels; channels are read in the order row, column, channel.

    x: [n, C, H, W]; with block size b, [n, C / b**2, H * b, W * b] comes back. Input channel
    ``(i * b + j) * C / b**2 + c`` becomes row i and column j of the blocks of channel c, as in
    TensorFlow. ``pixel_shuffle`` reads channels in another order.
    """
    n, channels, height, width = _image_shape(x)
    _check_block(block_size, "block_size", block_size**2, channels)
    inner = channels // block_size**2
    blocks = x.reshape(n, block_size, block_size, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, inner, height * block_size, width * block_size)


@operation("space_to_depth", in_half=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Channels made of square blocks, in the order row, column, channel.

    x: [n, C, H, W]; with block size b, [n, C * b**2, H / b, W / b] comes back. The inverse of
    ``depth_to_space``.
    """
    n, channels, height, width = _image_shape(x)
    _check_block(block_size, "block_size", block_size, height, width)
    rows, columns = height // block_size, width // block_size
    blocks = x.reshape(n, channels, rows, block_size, columns, block_size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, channels * block_size**2, rows, columns)


@operation("pixel_shuffle", in_half=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Square blocks made of channels; channels are read in the order channel, row, column.

    x: [n, C, H, W]; with factor f, [n, C / f**2, H * f, W * f] comes back. Input channel
    ``c * f**2 + i * f + j`` becomes row i and column j of the blocks of channel c, as in PyTorch.
    """
    n, channels, height, width = _image_shape(x)
    factor = upscale_factor
    _check_block(factor, "upscale_factor", factor**2, channels)
    inner = channels // factor**2
    blocks = x.reshape(n, inner, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, inner, height * factor, width * factor)


@operation("pixel_unshuffle", in_half=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Channels made of square blocks, in the order channel, row, column.

    x: [n, C, H, W]; with factor f, [n, C * f**2, H / f, W / f] comes back. The inverse of
    ``pixel_shuffle``.
    """
    n, channels, height, width = _image_shape(x)
    factor = downscale_factor
    _check_block(factor, "downscale_factor", factor, height, width)
    rows, columns = height // factor, width // factor
    blocks = x.reshape(n, channels, rows, factor, columns, factor).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(n, channels * factor**2, rows, columns)


@operation("space_to_batch", in_half=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Tensor) -> Tensor:
    """Batches made of blocks of the last two axes, padded with zeros before.

    x: [n, C, H, W]; paddings: [[top, bottom], [left, right]]; with blocks of p x q, [p * q * n, C,
    padded H / p, padded W / q] comes back. Batch ``(i * q + j) * n + b`` is row i and column j of
    the blocks of batch b.
    """
    n, channels, height, width = _image_shape(x)
    (top, bottom), (left, right) = _pairs(paddings, "paddings")
    tall, wide = _block_shape(block_shape)
    height, width = height + top + bottom, width + left + right
    _check_block(tall, "block_shape[0]", tall, height)
    _check_block(wide, "block_shape[1]", wide, width)
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    rows, columns = height // tall, width // wide
    blocks = padded.reshape(n, channels, rows, tall, columns, wide).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(tall * wide * n, channels, rows, columns)


@operation("batch_to_space", in_half=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Tensor) -> Tensor:
    """Blocks of the last two axes made of batches, and cropped after.

    x: [p * q * n, C, H, W] for blocks of p x q; crops: [[top, bottom], [left, right]]; [n, C, H * p
    - top - bottom, W * q - left - right] comes back. The inverse of ``space_to_batch``.
    """
    batches, channels, height, width = _image_shape(x)
    (top, bottom), (left, right) = _pairs(crops, "crops")
    tall, wide = _block_shape(block_shape)
    _check_block(tall * wide, "the product of block_shape", tall * wide, batches)
    n = batches // (tall * wide)
    blocks = x.reshape(tall, wide, n, channels, height, width).permute(2, 3, 4, 0, 5, 1)
    height, width = height * tall, width * wide
    if top + bottom > height or left + right > width:
        raise ValueError(f"crops must leave something of {height} x {width}, got {crops.tolist()}")
    whole = blocks.reshape(n, channels, height, width)
    return whole[:, :, top : height - bottom, left : width - right]


@operation("expand_dims", in_half=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """New axes of length 1; ``axes`` count in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(positive_axis(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze", in_half=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """``x`` without axes of length 1; those of another length stay, given or not.

    axes: left out, all.
    """
    chosen = range(x.dim()) if axes is None else {positive_axis(axis, x.dim()) for axis in axes}
    kept = [n for axis, n in enumerate(x.shape) if n != 1 or axis not in chosen]
    return x.reshape(kept)


@operation("reshape", in_half=True)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """The elements in another shape.

    shape: may hold one -1, for what is left over, and zeros, for the length of the same axis of
    ``x``, if it has as many axes.
    """
    if 0 in shape and len(shape) != x.dim():
        raise ValueError(
            f"shape {list(shape)} has zeros, and must be of the rank of x, whose shape is "
            f"{list(x.shape)}"
        )
    return _reshaped(x, tuple(n or x.shape[axis] for axis, n in enumerate(shape)))


@operation("reshape", since="CoreML7", in_half=True)
def reshape_right_aligned(x: Tensor, shape: Ints) -> Tensor:
    """The elements in another shape.

    shape: may hold one -1, for what is left over, and zeros, for the length of the axis of ``x``
    with the same distance from the last one; 1 where there is none.
    """
    if 0 in shape:
        shift = x.dim() - len(shape)
        own = [x.shape[axis + shift] if axis + shift >= 0 else 1 for axis in range(len(shape))]
        shape = tuple(n or length for n, length in zip(shape, own, strict=True))
    return _reshaped(x, shape)


@operation("reshape_like", in_half=True)
def reshape_like(
    x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools
) -> Tensor:
    """The elements in a shape put together from parts of the shapes of other tensors.

    Each tensor adds its lengths from ``begins`` to ``ends``, or to its last one where ``end_masks``
    says so.
    """
    counts = {len(ref_tensors), len(begins), len(ends), len(end_masks)}
    if len(counts) > 1:
        raise ValueError(
            "ref_tensors, begins, ends and end_masks must have equal lengths, got "
            f"{len(ref_tensors)}, {len(begins)}, {len(ends)} and {len(end_masks)}"
        )
    lengths: list[int] = []
    for tensor, begin, end, is_open in zip(ref_tensors, begins, ends, end_masks, strict=True):
        lengths += tensor.shape[begin:] if is_open else tensor.shape[begin:end]
    return _reshaped(x, tuple(lengths))


@operation("transpose", in_half=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """The axes in another order: axis i of the result is axis ``perm[i]`` of ``x``."""
    return x.permute(_order(perm, x.dim()))


@operation("flatten2d", in_half=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis`` are made one, and those from it on."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operation("reverse", in_half=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """The elements in reverse order along axes; ``axes`` left out: along all."""
    chosen = range(x.dim()) if axes is None else [positive_axis(axis, x.dim()) for axis in axes]
    # an axis that is named twice is reversed twice
    return torch.flip(x, [axis for axis in range(x.dim()) if list(chosen).count(axis) % 2])


@operation("reverse_sequence", in_half=True)
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` elements along one axis in reverse order, i along another axis.

    The axes must differ, so at least one of them must be given.
    """
    along, across = positive_axis(seq_axis, x.dim()), positive_axis(batch_axis, x.dim())
    if along == across:
        raise ValueError(f"seq_axis and batch_axis must differ, both are {along}")
    count, batches = x.shape[along], x.shape[across]
    ends = lengths.reshape(-1, 1).long()
    if len(ends) != batches or bool(((ends < 0) | (ends > count)).any()):
        raise ValueError(
            f"lengths must hold {batches} numbers from 0 to {count}, got {lengths.tolist()}"
        )
    steps = torch.arange(count, device=x.device)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    shape = [1] * x.dim()
    shape[along], shape[across] = count, batches
    order = order if across < along else order.T
    return torch.gather(x, along, order.reshape(shape).expand(x.shape))


@operation("sliding_windows", in_half=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows of ``size`` elements along an axis, ``stride`` apart.

    The axis becomes two: which window, and the place in it. Elements that fill no window are left
    out.
    """
    axis = positive_axis(axis, x.dim())
    if not 0 < size <= x.shape[axis] or stride < 1:
        raise ValueError(
            f"size must be from 1 to {x.shape[axis]}, the length of the axis, and stride at least"
            f" 1; got {size} and {stride}"
        )
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def _image_shape(x: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise ValueError(f"x must be of shape [n, C, H, W], got {list(x.shape)}")
    n, channels, height, width = x.shape
    return n, channels, height, width


def _check_block(size: int, name: str, divisor: int, *lengths: int) -> None:
    if size < 1 or any(length % divisor for length in lengths):
        raise ValueError(
            f"{name} must be positive, and {divisor} must divide "
            f"{' and '.join(map(str, lengths))}; got {size}"
        )


def _block_shape(block_shape: Ints) -> tuple[int, int]:
    if len(block_shape) != 2:
        raise ValueError(f"block_shape must hold two numbers, got {list(block_shape)}")
    return block_shape[0], block_shape[1]


def _pairs(pairs: Tensor, name: str) -> list[list[int]]:
    if tuple(pairs.shape) != (2, 2) or bool((pairs < 0).any()):
        raise ValueError(f"{name} must be 2 x 2 numbers from 0 on, got {pairs.tolist()}")
    numbers: list[list[int]] = pairs.tolist()
    return numbers


def _reshaped(x: Tensor, lengths: Ints) -> Tensor:
    """``x`` in a shape that may hold one -1."""
    return x.reshape(_complete(x.shape, lengths))


@lru_cache(maxsize=1024)
def _complete(own: tuple[int, ...], lengths: Ints) -> Ints:
    """Return a shape whose -1 is replaced; ValueError if the elements of ``own`` do not fit."""
    known, count = math.prod(n for n in lengths if n != -1), math.prod(own)
    is_open = -1 in lengths
    fits = known > 0 and count % known == 0 if is_open else known == count
    if not fits or lengths.count(-1) > 1 or any(n < -1 for n in lengths):
        raise ValueError(f"{count} elements of shape {list(own)} cannot have shape {list(lengths)}")
    return tuple(count // known if n == -1 else n for n in lengths)


@lru_cache(maxsize=1024)
def _order(perm: Ints, rank: int) -> Ints:
    order = tuple(positive_axis(axis, rank) for axis in perm)
    if sorted(order) != list(range(rank)):
        raise ValueError(f"perm must name each of {rank} axes once, got {list(perm)}")
    return order
