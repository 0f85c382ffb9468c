"""Weights as a bit mask and the values where it is set: ``constexpr_sparse_to_dense``."""

from __future__ import annotations

import math

import numpy as np

from mlopt.coreml.constexpr.parameters import (
    BYTES,
    FLOATS,
    HIGHEST_RANK,
    NIBBLES,
    Array,
    Parameter,
    Parameters,
    TensorType,
)
from mlopt.palette.value.bits import packed_nbytes, unpack_bits

MASK = Parameter(frozenset({"uint1"}))

OLD_DENSE = {
    "nonzero_data": Parameter(FLOATS | BYTES, 1),
    "mask": Parameter(frozenset({"uint8"}), 1),
    "shape": Parameter(frozenset({"uint32"}), 1),
}
"""iOS16 and iOS17: the mask is packed in bytes."""

DENSE = {"nonzero_data": Parameter(FLOATS | BYTES | NIBBLES, 1), "mask": MASK}


def check_old_dense(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight; raises ModelFormatError where the parameters contradict."""
    shape = checked_shape(p)
    size = math.prod(shape)
    nbytes = packed_nbytes(size, nbits=1)
    if p["mask"].size != nbytes:
        raise p.refusal(
            f"a mask for the shape {list(shape)} takes {nbytes} bytes, got {p['mask'].size}"
        )
    _check_room(p, size)
    return ((p["nonzero_data"].dtype, shape),)


def old_dense(p: Parameters) -> tuple[Array, ...]:
    """The weight."""
    (_, shape), *_ = check_old_dense(p)
    size, packed = math.prod(shape), p["mask"].read()
    if size % 8 and packed[-1] >> (size % 8):
        raise p.refusal("bits of the mask behind its last element are set; they must be 0")
    nonzero = p["nonzero_data"].read()
    mask = unpack_bits(packed, 1, size).reshape(shape)
    check_counts(p, mask, nonzero)
    return (scattered(nonzero, mask),)


def check_dense(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight."""
    _check_room(p, p["mask"].size)
    return ((p["nonzero_data"].dtype, p["mask"].shape),)


def dense(p: Parameters) -> tuple[Array, ...]:
    """The weight."""
    mask, nonzero = p["mask"].read(), p["nonzero_data"].read()
    check_counts(p, mask, nonzero)
    return (scattered(nonzero, mask),)


def scattered(nonzero: Array, mask: Array) -> Array:
    """``nonzero`` [D] where ``mask`` (uint8, 0 or 1, D of them 1) is 1, in C order; 0 elsewhere."""
    weight = np.zeros(mask.shape, nonzero.dtype)
    weight[mask.view(np.bool_)] = nonzero
    return weight


def check_counts(p: Parameters, mask: Array, nonzero: Array) -> None:
    """Check that there is a value for each bit of the mask that is set."""
    count = int(np.count_nonzero(mask))
    if count != nonzero.size:
        raise p.refusal(f"{count} bits of the mask are set, but there are {nonzero.size} values")


def checked_shape(p: Parameters) -> tuple[int, ...]:
    """The weight's shape in the iOS16 form, where it is a parameter."""
    (rank,) = p["shape"].shape
    if not 1 <= rank <= HIGHEST_RANK:
        raise p.refusal(f"shape must give 1 to {HIGHEST_RANK} axes, got {rank}")
    return tuple(int(n) for n in p["shape"].read())


def _check_room(p: Parameters, size: int) -> None:
    if p["nonzero_data"].size > size:
        raise p.refusal(f"{p['nonzero_data'].size} values for a mask of {size} elements")
