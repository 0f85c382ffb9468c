"""Compressed weights (MIL, ``defs/*/constexpr_ops.py``, ``compression.py``).

What comes out is exactly what coremltools decompresses: in the declared type, even if the program
is computed in a wider one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mlopt.mil.constexpr_forms import OLD_INDEX_BITS
from mlopt.runtime.call import Call
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.ops.quantization import dequantized
from mlopt.runtime.registry import Ints, operation
from mlopt.runtime.sizes import check_elements
from mlopt.runtime.weights.lookup import entries_at, fill, looked_up
from mlopt.runtime.weights.packed import Indices, Packed, unpacked
from mlopt.runtime.weights.row_selection import Arguments, RowsOf, blocks_of, rows_of

_STORED = ElementTypes("as_declared")


def _rows_of_stream(arguments: Arguments, index: Tensor, count: int) -> Arguments | None:
    """Rows of one table and a stream of indices."""
    bits, shape = _bits(arguments["lut"]), arguments["shape"]
    elements = _check_stream(arguments["indices"], bits, shape, "indices")
    if not elements or shape[0] != count:
        return None
    rows = rows_of(Packed(arguments["indices"], bits, shape), index)
    return None if rows is None else arguments | {"indices": rows.data, "shape": rows.shape}


def _rows_of_indices(arguments: Arguments, index: Tensor, count: int) -> Arguments | None:
    """Rows of tables for blocks, whose entries do not lie on the first axis."""
    indices, lut = arguments["indices"], arguments["lut"]
    rank = len(indices.shape)
    if indices.shape[0] != count or lut.dim() != rank + 2:
        return None
    if lut.shape[-1] > 1 and _vector_axis(arguments.get("vector_axis"), rank) == 0:
        return None
    parts = {"indices": rows_of(indices, index), "lut": blocks_of(lut, count, index)}
    return _replaced(arguments, parts)


def _rows_of_steps(arguments: Arguments, index: Tensor, count: int) -> Arguments | None:
    """Rows of quantized data with one scale, or a vector of them on an axis."""
    data, axis = arguments["quantized_data"], arguments["axis"]
    if data.shape[0] != count:
        return None
    parts = {"quantized_data": rows_of(data, index)}
    if axis in (0, -len(data.shape)):
        for name in ("scale", "zero_point"):
            each = arguments[name]
            if each.numel() > 1:
                parts[name] = each.index_select(0, index) if each.shape == (count,) else None
    return _replaced(arguments, parts)


def _rows_of_blocks(arguments: Arguments, index: Tensor, count: int) -> Arguments | None:
    """Rows of data with a scale, and perhaps an offset, per block."""
    data, scale, offset = arguments["data"], arguments["scale"], arguments.get("offset")
    if data.shape[0] != count or scale.dim() != len(data.shape):
        return None
    parts = {"data": rows_of(data, index), "scale": blocks_of(scale, count, index)}
    if offset is not None:
        parts["offset"] = blocks_of(offset, count, index) if offset.shape == scale.shape else None
    return _replaced(arguments, parts)


def _replaced(arguments: Arguments, parts: Arguments) -> Arguments | None:
    """Return arguments with some replaced by parts; None if one of the parts is None."""
    return None if any(part is None for part in parts.values()) else arguments | parts


def _fill_from_stream(memory: Tensor, dtype: torch.dtype, arguments: Arguments) -> bool:
    """Fill memory with the entries of one table at a stream of indices."""
    indices, lut = arguments["indices"], arguments["lut"]
    bits, shape = _bits(lut), arguments["shape"]
    _check_stream(indices, bits, shape, "indices")
    fits = shape == memory.shape and lut.dtype == dtype
    return fits and fill(memory, Packed(indices, bits, shape), lut[None])


def _fill_from_indices(memory: Tensor, dtype: torch.dtype, arguments: Arguments) -> bool:
    """Fill memory with the entries of tables that each serve a run of indices."""
    indices, lut = arguments["indices"], arguments["lut"]
    if isinstance(indices, Tensor) and indices.dtype == torch.uint8:
        indices = Packed(indices.reshape(-1), 8, tuple(indices.shape))
    if not isinstance(indices, Packed) or indices.shape != memory.shape or lut.dtype != dtype:
        return False
    tables = _tables_of_runs(indices, lut)
    return tables is not None and fill(memory, indices, tables)


@operation("constexpr_cast", since="CoreML6")
def constexpr_cast(source_val: Tensor, output_dtype: str, call: Call) -> Tensor:
    """A weight in another element type."""
    return _rounded(source_val, _declared(call))


@operation(
    "constexpr_affine_dequantize", since="CoreML6", rows=RowsOf("quantized_data", _rows_of_steps)
)
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int, call: Call
) -> Tensor:
    """``(quantized_data - zero_point) * scale``; a vector of either belongs to an axis."""
    weights = dequantized(quantized_data, scale.float(), zero_point, axis)
    return _rounded(weights, _declared(call))


@operation(
    "constexpr_lut_to_dense",
    since="CoreML6",
    rows=RowsOf("indices", _rows_of_stream),
    fill=_fill_from_stream,
)
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Ints) -> Tensor:
    """The entries of one table at indices: a stream of bits, the low ones of a byte first."""
    bits = _bits(lut)
    count = _check_stream(indices, bits, shape, "indices")
    return looked_up(Packed(indices, bits, (count,)), lut[None]).reshape(shape)


@operation(
    "constexpr_lut_to_dense",
    since="CoreML8",
    rows=RowsOf("indices", _rows_of_indices),
    fill=_fill_from_indices,
)
def constexpr_lut_to_dense_of_tables(
    indices: Indices, lut: Tensor, vector_axis: int | None = None
) -> Tensor:
    """The entries of tables at indices.

    lut: [tables on each axis of ``indices``, entries, length of an entry]; a table belongs to a
    block of indices. Entries that are vectors lie on ``vector_axis``.
    """
    if isinstance(indices, Packed):
        runs = _tables_of_runs(indices, lut)
        if runs is not None:
            return looked_up(indices, runs).reshape(indices.shape)
        indices = indices.unpacked()
    rows = _places_in_tables(indices, lut)
    entries = entries_at(lut.reshape(-1, lut.shape[-1]), rows.reshape(-1))
    length = lut.shape[-1]
    if length == 1:
        return entries.reshape(indices.shape)
    axis = _vector_axis(vector_axis, indices.dim())
    shape = list(indices.shape)
    shape[axis] *= length
    return entries.reshape(*indices.shape, length).movedim(-1, axis + 1).reshape(shape)


@operation("constexpr_blockwise_shift_scale", since="CoreML8", rows=RowsOf("data", _rows_of_blocks))
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, call: Call, offset: Tensor | None = None
) -> Tensor:
    """``(data - offset) * scale``, with one scale and offset per block of the data."""
    return _shifted_and_scaled(data, scale, offset, _declared(call))


@operation("constexpr_sparse_to_dense", since="CoreML6")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints) -> Tensor:
    """Values where a mask has ones, zeros elsewhere: the mask is a stream of bits."""
    _check_stream(mask, 1, shape, "mask")
    return _spread(nonzero_data, unpacked(mask, 1, shape, is_signed=False))


@operation("constexpr_sparse_to_dense", since="CoreML8")
def constexpr_sparse_to_dense_of_shape(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """Values where a mask has ones, zeros elsewhere."""
    return _spread(nonzero_data, mask)


@operation("constexpr_lut_to_sparse", since="CoreML8")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask, and the entries of tables at indices, of a weight with zeros.

    Entries that are vectors make the mask longer on ``vector_axis``.
    """
    indices = _spread(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense_of_tables(indices, lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        axis = _vector_axis(vector_axis, mask.dim())
        mask = mask.repeat_interleave(lut.shape[-1], dim=axis)
    return mask, dense[mask != 0]


@operation("constexpr_sparse_blockwise_shift_scale", since="CoreML8")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor,
    nonzero_data: Tensor,
    scale: Tensor,
    call: Call,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The mask, and ``(data - offset) * scale``, of a weight with zeros."""
    data = _spread(nonzero_data, data_mask)
    dense = _shifted_and_scaled(data, scale, offset, _declared(call, 1))
    return data_mask, dense[data_mask != 0]


def _declared(call: Call, number: int = 0) -> torch.dtype:
    return _STORED.dtype(call.outputs[number].dtype)


def _bits(lut: Tensor) -> int:
    """Return the bits of an index into a table that is a vector."""
    bits = int(math.log2(max(1, len(lut)))) if lut.dim() == 1 else 0
    if bits not in OLD_INDEX_BITS or len(lut) != 1 << bits:
        raise ValueError(
            f"lut must be a vector of 2, 4, 16, 64 or 256 entries, got shape {list(lut.shape)}"
        )
    return bits


def _check_stream(data: Tensor, bits: int, shape: Ints, name: str) -> int:
    """Return the elements of a shape, after checking that a stream has the bytes for them."""
    count = math.prod(shape)
    check_elements(count)
    if data.dim() != 1 or data.shape[0] != -(-count * bits // 8):
        raise ValueError(
            f"{name} must be a vector of {-(-count * bits // 8)} bytes for {count} elements of "
            f"{bits} bits, got shape {list(data.shape)}"
        )
    return count


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    chosen = mask != 0
    count = int(chosen.sum())
    if values.dim() != 1 or values.shape[0] != count:
        raise ValueError(
            f"the mask has {count} ones, for which there are values of shape {list(values.shape)}"
        )
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        chosen, values
    )


def _tables_of_runs(indices: Packed, lut: Tensor) -> Tensor | None:
    """Return tables [runs, entries] if each serves a run of indices, and entries are numbers."""
    shape = indices.shape
    if indices.is_signed or lut.dim() != len(shape) + 2 or lut.shape[-2:] != (1 << indices.bits, 1):
        return None
    tables = lut.shape[: len(shape)]
    last = max((axis for axis, count in enumerate(tables) if count > 1), default=0)
    # a block is a run if it is whole on the axes after this one, and one wide on those before it
    is_run = tables[:last] == shape[:last] and not shape[last] % max(1, tables[last])
    return lut.reshape(-1, lut.shape[-2]) if is_run and indices.size and lut.numel() else None


def _places_in_tables(indices: Tensor, lut: Tensor) -> Tensor:
    """Return the row of each index when all tables are stacked: int32, in blocks."""
    rank, entries = indices.dim(), lut.shape[-2] if lut.dim() > 1 else 0
    if lut.dim() != rank + 2:
        raise ValueError(
            f"lut needs {rank + 2} axes, two more than indices, got shape {list(lut.shape)}"
        )
    tables = lut.shape[:rank]
    count = math.prod(tables)
    # a byte cannot be more than the last of 256 entries
    if entries < 256 and indices.numel() and int(indices.max()) >= entries:
        raise ValueError(f"a table has {entries} entries, but there is index {int(indices.max())}")
    if count == 1:
        return indices.int()
    first = torch.arange(count, dtype=torch.int32, device=indices.device).reshape(tables) * entries
    blocks, each = _blocks(indices, first, "lut")
    return (blocks.int() + each).reshape(indices.shape)


def _shifted_and_scaled(
    data: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Rounded after each of the two steps, as coremltools does."""
    blocks, factors = _blocks(data, scale, "scale")
    blocks, factors = _rounded(blocks, dtype), _rounded(factors, dtype)
    if offset is not None:
        if offset.shape != scale.shape:
            raise ValueError(
                f"offset needs the shape of scale, {list(scale.shape)}, got {list(offset.shape)}"
            )
        blocks = _rounded(blocks - offset.to(dtype).reshape(factors.shape), dtype)
    return _rounded(factors * blocks, dtype).reshape(data.shape)


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a dtype; those with a gradient in float32, of the same values.

    The gradient of rounding is taken to be 1. In float16 most gradients would be 0.
    """
    if not (exact.requires_grad and torch.is_grad_enabled()):
        return exact.to(dtype)
    rounded: Tensor = _Rounded.apply(exact.float(), dtype)  # type: ignore[no-untyped-call]
    return rounded


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: Tensor, dtype: torch.dtype) -> Tensor:
        return exact.to(dtype).to(exact.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _blocks(data: Tensor, each: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return data with two axes for each (blocks, places in a block), and a number per block."""
    if each.dim() != data.dim() or any(
        n % blocks if blocks else n for n, blocks in zip(data.shape, each.shape, strict=True)
    ):
        raise ValueError(
            f"{name} has {list(each.shape)} blocks, which do not divide the axes of "
            f"{list(data.shape)}"
        )
    split, ones = [], []
    for n, blocks in zip(data.shape, each.shape, strict=True):
        split += [blocks, n // max(blocks, 1)]
        ones += [blocks, 1]
    return data.reshape(split), each.reshape(ones)


def _vector_axis(axis: int | None, rank: int) -> int:
    if axis is None or not -rank <= axis < rank:
        raise ValueError(f"vector_axis must be one of the {rank} axes, got {axis}")
    return axis % rank
