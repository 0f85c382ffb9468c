"""Weights as scaled and shifted low-bit numbers, each block with its own scale.

``constexpr_affine_dequantize``, ``constexpr_blockwise_shift_scale`` and its sparse form.

The last bit of a result depends on the order in which numbers are rounded. The formulas here round
where coremltools' own decompression does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr.parameters import (
    BYTES,
    FLOATS,
    NIBBLES,
    Array,
    Parameter,
    Parameters,
    TensorType,
)
from mlopt.coreml.constexpr.sparse import MASK, check_counts, scattered
from mlopt.palette.value.half import to_float16
from mlopt.palette.value.palettized import Palettized

_SOURCE = FLOATS | BYTES | NIBBLES
_CHUNK = 1 << 16
"""Elements that are computed together."""

AFFINE = {
    "quantized_data": Parameter(BYTES),
    "zero_point": Parameter(BYTES | {"fp32"}, (0, 1)),
    "scale": Parameter(FLOATS, (0, 1)),
    "axis": Parameter(frozenset({"int32"}), 0),
}

BLOCKWISE = {
    "data": Parameter(_SOURCE),
    "scale": Parameter(FLOATS),
    "offset": Parameter(_SOURCE, required=False),
}

SPARSE_BLOCKWISE = {
    "data_mask": MASK,
    "nonzero_data": Parameter(_SOURCE, 1),
    "scale": Parameter(FLOATS),
    "offset": Parameter(_SOURCE, required=False),
}

Formula = Callable[[Array, Array, Array | None], Array]
"""(data, scale, offset) -> result, element by element; the three broadcast."""


def check_affine(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight; raises ModelFormatError where the parameters contradict."""
    shape = p["quantized_data"].shape
    axis = p.integer("axis")
    if not -len(shape) <= axis < len(shape):
        raise p.refusal(f"axis must be in [{-len(shape)}, {len(shape)}), got {axis}")
    for name in ("scale", "zero_point"):
        if p[name].shape not in ((), (shape[axis],)):
            raise p.refusal(
                f"{name} must be a scalar or have the {shape[axis]} elements of axis {axis}, "
                f"got the shape {list(p[name].shape)}"
            )
    return ((p["scale"].dtype, shape),)


def affine(p: Parameters) -> tuple[Array, ...]:
    """The weight: (data - zero_point) * scale in float32, then rounded to the type of scale."""
    data, axis = p["quantized_data"].read(), p.integer("axis")
    along_axis = [1] * data.ndim
    along_axis[axis] = -1
    scale, zero_point = np.broadcast_arrays(
        p["scale"].read().reshape(along_axis), p["zero_point"].read().reshape(along_axis)
    )
    return (_by_blocks(_affine_formula, data, p["quantized_data"].bits, scale, zero_point),)


def check_blockwise(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight."""
    _check_blocks(p, p["data"].dtype, p["data"].shape)
    return ((p["scale"].dtype, p["data"].shape),)


def blockwise(p: Parameters) -> tuple[Array, ...]:
    """The weight: scale * (data - offset), data cast to the type of scale before."""
    return (_dequantized(p, p["data"].read(), p["data"].bits),)


def check_sparse_blockwise(p: Parameters) -> tuple[TensorType, ...]:
    """The types of the mask and of the nonzero values."""
    mask, nonzero = p["data_mask"], p["nonzero_data"]
    _check_blocks(p, nonzero.dtype, mask.shape)
    if nonzero.size > mask.size:
        raise p.refusal(f"{nonzero.size} values for a mask of {mask.size} elements")
    return (("uint1", mask.shape), (p["scale"].dtype, nonzero.shape))


def sparse_blockwise(p: Parameters) -> tuple[Array, ...]:
    """The mask, and the nonzero values in C order of the weight."""
    mask, nonzero = p["data_mask"].read(), p["nonzero_data"].read()
    check_counts(p, mask, nonzero)
    values = _dequantized(p, scattered(nonzero, mask), p["nonzero_data"].bits)
    return mask, values[mask.view(np.bool_)]


def _check_blocks(p: Parameters, dtype: str, shape: tuple[int, ...]) -> None:
    """Check scale and offset against data of that type and shape."""
    scale = p["scale"].shape
    if len(scale) != len(shape):
        raise p.refusal(f"scale must have the rank of the data, got {list(scale)} for {shape}")
    for axis, (n, count) in enumerate(zip(shape, scale, strict=True)):
        if count < 1 or n % count:
            raise p.refusal(f"{count} scales do not divide the {n} elements on axis {axis}")
    if "offset" not in p:
        return
    offset = p["offset"]
    if offset.shape != scale:
        raise p.refusal(f"offset must have the shape of scale, {scale}, got {offset.shape}")
    if offset.dtype not in FLOATS and offset.dtype != dtype:
        raise p.refusal(
            f"offset must be of a float type or of the data's, {dtype}, got {offset.dtype}"
        )


def _dequantized(p: Parameters, data: Array, bits: int) -> Array:
    offset = p["offset"].read() if "offset" in p else None
    return _by_blocks(_blockwise_formula, data, bits, p["scale"].read(), offset)


def _affine_formula(data: Array, scale: Array, zero_point: Array | None) -> Array:
    assert zero_point is not None
    shifted = data.astype(np.float32) - zero_point.astype(np.float32)
    return shifted * scale.astype(np.float32)


def _blockwise_formula(data: Array, scale: Array, offset: Array | None) -> Array:
    if scale.dtype == np.float16 and _are_bytes(data) and (offset is None or _are_bytes(offset)):
        # Exact in float32 before the one rounding to float16, in which numpy is slow.
        wide = data.astype(np.float32)
        if offset is not None:
            wide = wide - offset.astype(np.float32)
        return wide * scale.astype(np.float32)
    data = data.astype(scale.dtype)
    return scale * (data if offset is None else data - offset)


def _are_bytes(array: Array) -> bool:
    return array.dtype in (np.int8, np.uint8)


def _rounded(computed: Array, dtype: npt.DTypeLike) -> Array:
    if computed.dtype == np.float32 and dtype == np.float16:
        return to_float16(computed)
    return computed.astype(dtype, copy=False)


def _by_blocks(
    formula: Formula, data: Array, bits: int, scale: Array, offset: Array | None
) -> Array:
    """The formula for each element of ``data`` with the scale and offset of its block.

    scale, offset: of the rank of ``data``; along each axis their length divides that of ``data``.
    The result has the dtype of ``scale``.
    """
    if data.dtype.kind != "f" and scale.size << bits <= data.size // 2:
        return _by_table(formula, data, bits, scale, offset)
    result = np.empty(data.shape, scale.dtype)
    if not data.size:
        return result
    length, *others = data.shape
    counts = scale.shape
    blocks = [part for n, g in zip(others, counts[1:], strict=True) for part in (g, n // g)]
    spread = [part for g in counts[1:] for part in (g, 1)]
    rows = max(1, _CHUNK // (data.size // length))
    for start in range(0, length, rows):
        part = data[start : start + rows]
        # The blocks of the first axis are looked up, those of the others broadcast.
        at = np.arange(start, start + len(part)) // (length // counts[0])
        computed = formula(
            part.reshape(len(part), *blocks),
            scale[at].reshape(len(part), *spread),
            None if offset is None else offset[at].reshape(len(part), *spread),
        )
        result[start : start + rows] = _rounded(computed, scale.dtype).reshape(part.shape)
    return result


def _by_table(
    formula: Formula, data: Array, bits: int, scale: Array, offset: Array | None
) -> Array:
    """The same by look-up: integers of few bits are indices into the results they can have."""
    codes = np.arange(1 << bits, dtype=np.uint8)
    indices = np.ascontiguousarray(data).view(np.uint8)
    numbers: Array = codes
    if data.dtype == np.int8:
        # In two's complement; the bits above the sign are its copies.
        sign = np.uint8(1 << (bits - 1))
        numbers = ((codes ^ sign).astype(np.int16) - int(sign)).astype(np.int8)
        if bits < 8:
            indices = indices & np.uint8((1 << bits) - 1)
    table = formula(numbers, scale[..., None], None if offset is None else offset[..., None])
    table = _rounded(table, scale.dtype)
    return Palettized(table[..., None], indices).dequantize()
