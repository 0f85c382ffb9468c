"""Elements read from and written to indices (MIL, ``defs/*/scatter_gather.py``).

Negative indices count from the end. From iOS17 on Core ML does not define what they do, and refuses
them with ``validate_indices``; here they count from the end as before, unless it is set. Indices
that are still out of range are always an error here, as no value could be right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mlopt.runtime.ops.elementwise_binary import divided
from mlopt.runtime.ops.reshaping import positive_axis
from mlopt.runtime.registry import operation
from mlopt.runtime.weights.row_selection import Rows, Table

_LARGEST_SHARE = 0.5
"""The most rows of a compressed weight that are computed alone, not the whole weight."""
_REDUCTIONS = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


@operation("gather", moves_only=True, in_half=True)
def gather(
    x: Table,
    indices: Tensor,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of ``x`` at indices of one axis.

    The axis is replaced by the axes of ``indices``, without the first ``batch_dims``, which the two
    have in common.
    """
    axis = positive_axis(axis, x.dim())
    batch = _batch_shape(x.shape, indices.shape, batch_dims, min(x.dim() - 1, indices.dim()))
    if axis < batch_dims:
        raise ValueError(f"axis must be at least batch_dims, {batch_dims}; got {axis}")
    length, before, after = x.shape[axis], x.shape[:axis], x.shape[axis + 1 :]
    positions = _positions(indices, length, is_checked=validate_indices)
    if isinstance(x, Rows):
        if axis == 0 and batch_dims == 0 and positions.numel() <= length * _LARGEST_SHARE:
            return x.select(positions.reshape(-1)).reshape([*indices.shape, *after])
        x = x.whole()
    if batch_dims == 0:
        picked = x.index_select(axis, positions.reshape(-1))
    else:
        batches, inner, outer = math.prod(batch), math.prod(before[batch_dims:]), math.prod(after)
        count = math.prod(indices.shape[batch_dims:])
        places = positions.reshape(batches, 1, count, 1).expand(-1, inner, -1, outer)
        picked = torch.gather(x.reshape(batches, inner, length, outer), 2, places)
    return picked.reshape([*before, *indices.shape[batch_dims:], *after])


@operation("gather_along_axis", moves_only=True, in_half=True)
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """Elements at indices of one axis, and at the same place on all others."""
    axis = positive_axis(axis, x.dim())
    _check_alongside(x, indices, axis, "x")
    return torch.gather(x, axis, _positions(indices, x.shape[axis], is_checked=validate_indices))


@operation("gather_nd", moves_only=True, in_half=True)
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of ``x`` at the indices that the last axis of ``indices`` holds.

    The first ``batch_dims`` axes are common to both. The next axes of ``x``, as many as the last
    axis of ``indices`` is long, are replaced by the other axes of ``indices``.
    """
    most = min(x.dim(), indices.dim() - 1)
    batches = math.prod(_batch_shape(x.shape, indices.shape, batch_dims, most))
    end = batch_dims + indices.shape[-1]
    lengths, rest = x.shape[batch_dims:end], x.shape[end:]
    positions = _flat_positions(indices, lengths, is_checked=validate_indices)
    row = math.prod(lengths)
    starts = torch.arange(batches, device=positions.device).reshape(-1, 1) * row
    places = positions.reshape(batches, positions.numel() // max(batches, 1)) + starts
    picked = x.reshape(batches * row, *rest).index_select(0, places.reshape(-1))
    return picked.reshape([*indices.shape[:-1], *rest])


@operation("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """``data`` with slices at indices of one axis combined with ``updates``.

    updates: of the shape of ``data``, with the axes of ``indices`` instead of ``axis``. mode:
    ``add``, ``sub``, ``mul``, ``div`` (integers without the fraction), ``max``, ``min``, or
    ``update`` to replace. Where an index occurs several times, all updates are combined, and the
    last one replaces.
    """
    axis = positive_axis(axis, data.dim())
    before, after = data.shape[:axis], data.shape[axis + 1 :]
    _check_updates(updates, [*before, *indices.shape, *after])
    positions = _positions(indices, data.shape[axis], is_checked=validate_indices).reshape(-1)
    wanted = updates.reshape(*before, positions.numel(), *after).movedim(axis, 0)
    front = data.movedim(axis, 0)
    return _combined(front, positions, wanted, mode).movedim(0, axis)


@operation("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """``data`` with elements at indices of one axis combined with ``updates``.

    The other places are those of ``updates``. mode, repeated indices: see ``scatter``.
    """
    axis = positive_axis(axis, data.dim())
    _check_alongside(data, indices, axis, "data")
    _check_updates(updates, indices.shape)
    positions = _positions(indices, data.shape[axis], is_checked=validate_indices).movedim(axis, 0)
    front = data.movedim(axis, 0)
    row = math.prod(front.shape[1:])
    places = torch.arange(row, device=positions.device).reshape(front.shape[1:])
    elements = (positions * row + places).reshape(-1)
    combined = _combined(front.reshape(-1), elements, updates.movedim(axis, 0).reshape(-1), mode)
    return combined.reshape(front.shape).movedim(0, axis)


@operation("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """``data`` with slices at the indices that the last axis of ``indices`` holds combined.

    updates: a slice for each. mode, repeated indices: see ``scatter``.
    """
    depth = indices.shape[-1]
    lengths, rest = data.shape[:depth], data.shape[depth:]
    _check_updates(updates, [*indices.shape[:-1], *rest])
    positions = _flat_positions(indices, lengths, is_checked=validate_indices).reshape(-1)
    flat = data.reshape(math.prod(lengths), *rest)
    wanted = updates.reshape(positions.numel(), *rest)
    return _combined(flat, positions, wanted, mode).reshape(data.shape)


def _positions(indices: Tensor, length: int, *, is_checked: bool) -> Tensor:
    """Return indices from 0 on, as torch takes them."""
    positions = indices.long()
    least = 0 if is_checked else -length
    if bool(((positions < least) | (positions >= length)).any()):
        raise ValueError(
            f"indices must be from {least} to {length - 1}, got some from "
            f"{int(positions.min())} to {int(positions.max())}"
        )
    return torch.where(positions < 0, positions + length, positions)


def _flat_positions(indices: Tensor, lengths: Sequence[int], *, is_checked: bool) -> Tensor:
    """Return positions in the axes of these lengths made one; the last axis of ``indices`` goes."""
    depth = indices.shape[-1]
    if depth > len(lengths):
        raise ValueError(
            f"the last axis of indices has {depth} numbers, which index no more than "
            f"{len(lengths)} axes here"
        )
    flat = torch.zeros(indices.shape[:-1], dtype=torch.long, device=indices.device)
    for index, length in zip(indices.unbind(-1), lengths, strict=True):
        flat = flat * length + _positions(index, length, is_checked=is_checked)
    return flat


def _batch_shape(
    x: Sequence[int], indices: Sequence[int], batch_dims: int, most: int
) -> Sequence[int]:
    if not 0 <= batch_dims <= most:
        raise ValueError(f"batch_dims must be from 0 to {most}, got {batch_dims}")
    batch = x[:batch_dims]
    if indices[:batch_dims] != batch:
        raise ValueError(
            f"x and indices must have their first {batch_dims} axes in common, got shapes "
            f"{list(x)} and {list(indices)}"
        )
    return batch


def _check_alongside(x: Tensor, indices: Tensor, axis: int, name: str) -> None:
    lengths, own = list(x.shape), list(indices.shape)
    if [*own[:axis], *own[axis + 1 :]] != [*lengths[:axis], *lengths[axis + 1 :]]:
        raise ValueError(
            f"indices must be of the shape of {name}, {lengths}, but for axis {axis}; got {own}"
        )


def _check_updates(updates: Tensor, shape: Sequence[int]) -> None:
    if list(updates.shape) != list(shape):
        raise ValueError(f"updates must be of shape {list(shape)}, got {list(updates.shape)}")


def _combined(rows: Tensor, index: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Rows combined with updates: rows [n, ...], index [m] of them, updates [m, ...]."""
    if mode == "update":
        return _replaced(rows, index, updates)
    if mode in ("add", "sub"):
        return rows.index_add(0, index, updates, alpha=1 if mode == "add" else -1)
    if mode not in _REDUCTIONS:
        raise ValueError(f"mode must be add, sub, {', '.join(_REDUCTIONS)} or update, got {mode!r}")
    wide = index.reshape(-1, *[1] * (rows.dim() - 1)).expand(updates.shape)
    if mode != "div":
        return rows.scatter_reduce(0, wide, updates, _REDUCTIONS[mode])
    is_float = rows.is_floating_point()
    # products of several divisors may leave the range of narrower dtypes
    wider = torch.promote_types(updates.dtype, torch.float32 if is_float else torch.int64)
    divisors = updates.to(wider)
    product = divisors.new_ones(rows.shape).scatter_reduce(0, wide, divisors, "prod")
    return divided(rows, product, partial(torch.div, rounding_mode=None if is_float else "trunc"))


def _replaced(rows: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Replace rows by the last update that has their index, on every device."""
    order = torch.arange(len(index), device=index.device)
    last = torch.full((len(rows),), -1, device=index.device)
    last = last.scatter_reduce(0, index, order, "amax")
    is_last = last[index] == order
    return rows.index_copy(0, index[is_last], updates[is_last])
