"""Weights as indices into look-up tables: ``constexpr_lut_to_dense`` and ``_lut_to_sparse``."""

from __future__ import annotations

import math

import numpy as np

from mlopt.coreml.constexpr.parameters import (
    BYTES,
    FLOATS,
    INDICES,
    Array,
    Parameter,
    Parameters,
    TensorType,
)
from mlopt.coreml.constexpr.sparse import MASK, check_counts, checked_shape, scattered
from mlopt.mil.constexpr_forms import OLD_TABLE_SIZES
from mlopt.mil.dtypes import dtype_named
from mlopt.palette.value.bits import packed_nbytes, unpack_bits
from mlopt.palette.value.palettized import Palettized

_ENTRIES = FLOATS | BYTES
_LONGEST_VECTOR = 4096
"""Indices of one bit make a weight of any size from a table of long vectors: a file of a megabyte
would unfold to terabytes. No weight that anyone compressed comes near this."""

OLD_DENSE = {
    "indices": Parameter(frozenset({"uint8"}), 1),
    "lut": Parameter(_ENTRIES, 1),
    "shape": Parameter(frozenset({"uint32"}), 1),
}
"""iOS16 and iOS17: packed indices into one table of scalars."""

DENSE = {
    "indices": Parameter(INDICES),
    "lut": Parameter(_ENTRIES),
    "vector_axis": Parameter(frozenset({"int32"}), 0, required=False),
}

SPARSE = {
    "indices_mask": MASK,
    "indices_nonzero_data": Parameter(INDICES, 1),
    "lut": Parameter(_ENTRIES),
    "vector_axis": Parameter(frozenset({"int32"}), 0, required=False),
}


def check_old_dense(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight; raises ModelFormatError where the parameters contradict."""
    entries = p["lut"].size
    if entries not in OLD_TABLE_SIZES:
        raise p.refusal(f"lut must have one of {OLD_TABLE_SIZES} entries, got {entries}")
    shape = checked_shape(p)
    nbytes = packed_nbytes(math.prod(shape), nbits=nbits(p))
    if p["indices"].size != nbytes:
        raise p.refusal(
            f"indices into {entries} entries for the shape {list(shape)} take {nbytes} bytes, "
            f"got {p['indices'].size}"
        )
    return ((p["lut"].dtype, shape),)


def old_dense(p: Parameters) -> tuple[Array, ...]:
    """The weight."""
    return (dequantized(old_palette_parts(p)),)


def check_dense(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight."""
    indices = p["indices"]
    _check_table(p, indices.dtype, indices.shape)
    return ((p["lut"].dtype, expanded_shape(p, indices.shape)),)


def dense(p: Parameters) -> tuple[Array, ...]:
    """The weight."""
    return (dequantized(palette_parts(p)),)


def check_sparse(p: Parameters) -> tuple[TensorType, ...]:
    """The types of the mask and of the nonzero values."""
    mask, indices = p["indices_mask"], p["indices_nonzero_data"]
    _check_table(p, indices.dtype, mask.shape)
    if indices.size > mask.size:
        raise p.refusal(f"{indices.size} nonzero indices for a mask of {mask.size} elements")
    return (
        ("uint1", expanded_shape(p, mask.shape)),
        (p["lut"].dtype, (indices.size * vector_length(p),)),
    )


def sparse(p: Parameters) -> tuple[Array, ...]:
    """The mask, and the nonzero values in C order of the weight."""
    mask = p["indices_mask"].read()
    nonzero = p["indices_nonzero_data"].read()
    check_counts(p, mask, nonzero)
    values = dequantized((p["lut"].read(), scattered(nonzero, mask), vector_axis(p)))
    if (axis := vector_axis(p)) is not None:
        mask = np.repeat(mask, vector_length(p), axis)
    return mask, values[mask.view(np.bool_)]


Parts = tuple[Array, Array, int | None]
"""A table of rank K + 2, indices uint8 of rank K, and the vector axis (None: scalars)."""


def old_palette_parts(p: Parameters) -> Parts:
    """Table and indices of the iOS16 form, checked before."""
    table = p["lut"].read()
    (_, shape), *_ = check_old_dense(p)
    indices = unpack_bits(p["indices"].read(), nbits(p), math.prod(shape))
    return table.reshape([1] * len(shape) + [table.size, 1]), indices.reshape(shape), None


def palette_parts(p: Parameters) -> Parts:
    """Table, indices and vector axis of the iOS18 form, checked before."""
    return p["lut"].read(), np.ascontiguousarray(p["indices"].read()), vector_axis(p)


def dequantized(parts: Parts) -> Array:
    """The weight, of the table's dtype."""
    table, indices, axis = parts
    return Palettized(table, indices, axis).dequantize()


def nbits(p: Parameters) -> int:
    """Bits of an index; they may be packed in bytes, so that their type does not tell."""
    lut = p["lut"]
    return (lut.size if len(lut.shape) == 1 else lut.shape[-2]).bit_length() - 1


def vector_length(p: Parameters) -> int:
    """Values d that one entry of the table holds."""
    lut = p["lut"]
    return 1 if len(lut.shape) == 1 else lut.shape[-1]


def vector_axis(p: Parameters) -> int | None:
    """The axis along which an entry's values lie, 0 .. K-1; None for entries of one value."""
    if vector_length(p) == 1:
        return None
    axis = p.integer("vector_axis")
    return axis if axis >= 0 else axis + len(p["lut"].shape) - 2


def expanded_shape(p: Parameters, indices_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the weight whose indices have that shape."""
    axis = vector_axis(p)
    return tuple(n * vector_length(p) if i == axis else n for i, n in enumerate(indices_shape))


def _check_table(p: Parameters, dtype: str, shape: tuple[int, ...]) -> None:
    """Check a table against indices of that type in the layout of that shape."""
    lut, rank = p["lut"], len(shape)
    if len(lut.shape) != rank + 2:
        raise p.refusal(
            f"lut must have a rank 2 above that of the indices, got {list(lut.shape)} for "
            f"{list(shape)}"
        )
    *groups, entries, d = lut.shape
    for axis, (n, g) in enumerate(zip(shape, groups, strict=True)):
        if g < 1 or n % g:
            raise p.refusal(f"{g} tables do not divide the {n} indices on axis {axis}")
    needed = 1 << dtype_named(dtype).bits
    if entries != needed:
        raise p.refusal(f"indices of type {dtype} need {needed} entries, got {entries}")
    if not 1 <= d <= _LONGEST_VECTOR:
        raise p.refusal(f"entries hold 1 to {_LONGEST_VECTOR} values, got {d}")
    if "vector_axis" not in p:
        if d > 1:
            raise p.refusal(f"vector_axis is missing; entries hold {d} values")
    elif not -rank <= (axis := p.integer("vector_axis")) < rank:
        raise p.refusal(f"vector_axis must be in [{-rank}, {rank}), got {axis}")
