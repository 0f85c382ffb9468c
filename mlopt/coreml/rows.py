"""What rows of a report say of weights in a Core ML model, and of what is stored for them."""

from __future__ import annotations

import numpy as np

from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.requests.report import WeightRow
from mlopt.requests.rows import StoredPalette, StoredWeight, row_of


def kept_row(decision: WeightDecision, keep: Keep) -> WeightRow:
    """The row of a weight that stays as it is."""
    return row_of(decision, _stored(decision.subject), keep)


def palettized_row(
    decision: WeightDecision,
    nbits: int,
    nbytes: int,
    *,
    lut_dtype: str | None,
    snr_db: float | None = None,
    notes: tuple[str, ...] = (),
) -> WeightRow:
    """The row of a palettized weight; parameters as in :class:`StoredPalette`."""
    weight, spec = decision.subject, decision.result
    assert isinstance(spec, PaletteSpec)
    if lut_dtype is not None and not weight.is_compressed:
        here, plain = (_table_nbytes(weight, spec, nbits, each) for each in (lut_dtype, None))
        if here > plain:
            note = f"a table in {weight.dtype} would be smaller: {plain} bytes, not {here}"
            notes = (*notes, note)
    palette = StoredPalette(nbits, nbytes, lut_dtype, snr_db, notes)
    return row_of(decision, _stored(weight), palette)


def _stored(weight: Weight) -> StoredWeight:
    return StoredWeight(
        names=weight.names,
        shape=weight.shape,
        dtype=weight.dtype,
        size=weight.size,
        nbytes=weight.nbytes,
        consumers=shown_consumers(weight.consumers),
        model=weight.program.label,
        functions=weight.functions,
        was_compressed=weight.is_compressed,
    )


def exact_nbytes(weight: Weight, spec: PaletteSpec, nbits: int) -> int:
    """Bytes that a palette of ``nbits`` will take: packed indices, tables, scale."""
    size = packed_nbytes(weight.size // spec.cluster_dim, nbits=nbits)
    size += _table_nbytes(weight, spec, nbits, spec.lut_dtype)
    if spec.scale_axis is not None:
        size += weight.shape[spec.scale_axis] * np.dtype(weight.dtype).itemsize
    return size


def _table_nbytes(weight: Weight, spec: PaletteSpec, nbits: int, lut_dtype: str | None) -> int:
    """Bytes of the tables, with their own scale and offset where they are in 8 bits."""
    groups = 1
    if spec.group_size is not None and spec.channel_axis is not None:
        groups = weight.shape[spec.channel_axis] // spec.group_size
    numbers = groups * (1 << nbits) * spec.cluster_dim
    itemsize = np.dtype(weight.dtype).itemsize
    if lut_dtype is None:
        return numbers * itemsize
    return numbers + itemsize + (lut_dtype == "uint8")
