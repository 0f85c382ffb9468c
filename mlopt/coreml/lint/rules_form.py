"""Rules about the compressed forms: requirements of the format on tables and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import (
    SHIFT_SCALE,
    Palette,
    Subject,
    palettes_of,
    place_of_weight,
    type_of_input,
)
from mlopt.coreml.weights import Weight
from mlopt.mil.constexpr_forms import INDEX_BITS, OLD_TABLE_SIZES
from mlopt.palette.value.bits import packed_nbytes

_CHUNK = 1 << 20  # elements that are looked at together
_AGAIN = "compress the original model again; the tool that wrote this one violated the format"


@rule("table-size", severity="error", remedy=_AGAIN)
def table_size(subject: Subject) -> Iterator[Hit]:
    """A table without exactly 2**bits entries, or 3-bit indices before iOS18.

    An index of n bits stands for one of 2**n entries, and every weight has an index. The form of
    iOS16 and iOS17 has indices of 1, 2, 4, 6 and 8 bits; 3 bits came with the form of iOS18.
    """
    for weight in subject.compressed:
        for palette in palettes_of(weight):
            problem = _table_size_problem(palette)
            if problem:
                yield Hit(problem, place_of_weight(weight))


@rule("table-groups", severity="error", remedy=_AGAIN)
def table_groups(subject: Subject) -> Iterator[Hit]:
    """Tables that do not divide the weight evenly.

    The tables have two more axes than the indices, and along each axis the number of tables must
    divide the number of indices.
    """
    for weight in subject.compressed:
        for palette in palettes_of(weight):
            if not _groups_fit(palette):
                yield Hit(
                    f"tables of shape {list(palette.lut_shape)} for indices of shape "
                    f"{list(palette.index_shape)}",
                    place_of_weight(weight),
                )


@rule("vector-axis", severity="error", remedy=_AGAIN)
def vector_axis(subject: Subject) -> Iterator[Hit]:
    """Vectors without an axis to lie along.

    If an entry of a table is a vector, vector_axis names the axis along which its elements lie;
    along that axis the weight is longer than its indices by the length of the vector.
    """
    for weight in subject.compressed:
        for palette in palettes_of(weight):
            if not _vectors_fit(palette):
                yield Hit(
                    f"entries are vectors of {palette.cluster_dim}, and vector_axis is missing or "
                    "not an axis of the indices",
                    place_of_weight(weight),
                )


@rule("table-type", severity="error", remedy=_AGAIN)
def table_type(subject: Subject) -> Iterator[Hit]:
    """Table entries of a type that tables cannot have.

    Entries are float16 or float32, and from iOS18 on int8 or uint8 as well.
    """
    for weight in subject.compressed:
        for palette in palettes_of(weight):
            integers = () if palette.is_old_form else ("int8", "uint8")
            if palette.lut_dtype.name not in ("fp16", "fp32", *integers):
                yield Hit(f"entries of type {palette.lut_dtype.name}", place_of_weight(weight))


@rule("scale-blocks", severity="error", remedy=_AGAIN)
def scale_blocks(subject: Subject) -> Iterator[Hit]:
    """Scales that do not divide the data into equal blocks.

    Scales must have the rank of the data, their number must divide that of the data along each
    axis, and an offset must have the shape of the scales.
    """
    for weight in subject.compressed:
        for node in reversed(weight.chain):
            if node.op_type != SHIFT_SCALE:
                continue
            _, data = type_of_input(node, "data")
            _, scale = type_of_input(node, "scale")
            offset = scale
            if "offset" in node.inputs:
                _, offset = type_of_input(node, "offset")
            if not _divides(scale, data) or offset != scale:
                described = f"scales of shape {list(scale)} for data of shape {list(data)}"
                if offset != scale:
                    described += f", with offsets of shape {list(offset)}"
                yield Hit(described, place_of_weight(weight))


@rule(
    "not-finite-table",
    severity="warning",
    remedy="leave the weight as it is: infinities are masks, and NaNs an error in training",
)
def not_finite_table(subject: Subject) -> Iterator[Hit]:
    """A table or a scale that holds infinities or NaNs.

    Clustering is not defined for them: their neighbors end up at the wrong entry, and an infinite
    entry times a scale of zero is NaN. Attention masks must stay plain constants.
    """
    for weight in subject.compressed:
        bad = 0
        for constant in weight.stored:
            if constant.dtype not in ("fp16", "fp32"):
                continue
            flat = constant.value().reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                bad += int(np.count_nonzero(~np.isfinite(flat[start : start + _CHUNK])))
            constant.release()
        if bad:
            yield Hit(f"{bad} stored numbers are infinite or NaN", place_of_weight(weight))


@rule(
    "compressed-block-output",
    severity="warning",
    remedy="leave the weight as it is (a rule for its name with None), or return a copy of it",
)
def compressed_block_output(subject: Subject) -> Iterator[Hit]:
    """A compressed weight that a function or block returns.

    A value that a block returns must stay a plain constant: only operations that read a compressed
    weight decompress it.
    """
    for weight in subject.compressed:
        if weight.is_block_output:
            yield Hit("a block returns the compressed weight as it is", place_of_weight(weight))


def sound_palettes(weight: Weight) -> Iterator[Palette]:
    """The palettes of a weight that keep to the format; only of these can more be said."""
    for palette in palettes_of(weight):
        if (
            not _table_size_problem(palette)
            and _groups_fit(palette)
            and _vectors_fit(palette)
            and palette.indices.size
        ):
            yield palette


def _vector_axis(palette: Palette) -> int | None:
    """The axis that vectors lie along, 0 or more; None if it is missing or not an axis."""
    try:
        axis = palette.node.scalar("vector_axis")
    except ValueError:
        return None
    rank = len(palette.index_shape)
    return axis % rank if isinstance(axis, int) and -rank <= axis < rank else None


def _table_size_problem(palette: Palette) -> str | None:
    if not palette.is_old_form:
        if palette.nbits in INDEX_BITS and palette.entries == 1 << palette.nbits:
            return None
        return f"{palette.entries} entries for indices of type {palette.indices.dtype}"
    if palette.entries == 8:
        return "8 entries, which is 3 bits, in the form of iOS16"
    if palette.entries not in OLD_TABLE_SIZES:
        return f"{palette.entries} entries; the form of iOS16 has {OLD_TABLE_SIZES}"
    needed = packed_nbytes(math.prod(palette.index_shape), nbits=palette.nbits)
    if palette.indices.nbytes == needed:
        return None
    return f"{palette.indices.nbytes} bytes of {palette.nbits}-bit indices instead of {needed}"


def _groups_fit(palette: Palette) -> bool:
    if palette.is_old_form:
        return len(palette.lut_shape) == 1
    return len(palette.lut_shape) >= 2 and _divides(palette.groups, palette.index_shape)


def _vectors_fit(palette: Palette) -> bool:
    return palette.cluster_dim == 1 or (
        palette.cluster_dim > 1 and _vector_axis(palette) is not None
    )


def _divides(parts: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return len(parts) == len(whole) and all(
        part > 0 and length % part == 0 for part, length in zip(parts, whole, strict=True)
    )
