"""What rows of a report say of weights in a Core ML model, and of what is stored for them."""

from __future__ import annotations

import numpy as np

from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import tables_nbytes
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
        itemsize = np.dtype(weight.dtype).itemsize
        here, plain = (
            tables_nbytes(spec, weight.shape, nbits=nbits, itemsize=itemsize, lut_dtype=each)
            for each in (lut_dtype, None)
        )
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
