"""Rows of a report about the weights of a Core ML model."""

from __future__ import annotations

import attrs
import numpy as np

from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import palette_nbytes, tables_nbytes
from mlopt.requests.keep import Keep
from mlopt.requests.report import WeightRow
from mlopt.requests.rows import StoredPalette, WeightFacts, row_of


def kept_row(decision: WeightDecision, keep: Keep) -> WeightRow:
    """Return the row of a weight that stays as it is."""
    return row_of(decision, _stored(decision.weight), keep)


def palettized_row(decision: WeightDecision, palette: StoredPalette) -> WeightRow:
    """Return the row of a palettized weight."""
    weight, spec = decision.weight, decision.result
    assert isinstance(spec, PaletteSpec)
    notes = palette.notes + _notes_on_tables(weight, spec, palette)
    return row_of(decision, _stored(weight), attrs.evolve(palette, notes=notes))


def foreseen_row(decision: WeightDecision) -> WeightRow:
    """Return the row of a weight that would be palettized: its exact bytes, without clustering.

    A table that a ``lut_function`` makes is counted at 8 bits.
    """
    weight, spec = decision.weight, decision.result
    assert isinstance(spec, PaletteSpec)
    notes: tuple[str, ...] = ()
    if spec.nbits is None:
        notes = ("lut_function decides the size, counted at 8 bits",)
    nbits, itemsize = spec.nbits or 8, np.dtype(weight.dtype).itemsize
    nbytes = palette_nbytes(spec, weight.shape, nbits=nbits, itemsize=itemsize)
    return palettized_row(decision, StoredPalette(nbits, nbytes, spec.lut_dtype, notes=notes))


def _notes_on_tables(weight: Weight, spec: PaletteSpec, palette: StoredPalette) -> tuple[str, ...]:
    """Return a note if 8-bit tables with their scale are larger than plain ones would be."""
    if palette.lut_dtype is None or weight.is_compressed:
        return ()
    itemsize = np.dtype(weight.dtype).itemsize
    here, plain = (
        tables_nbytes(spec, weight.shape, nbits=palette.nbits, itemsize=itemsize, lut_dtype=dtype)
        for dtype in (palette.lut_dtype, None)
    )
    if here <= plain:
        return ()
    return (f"a table in {weight.dtype} would be smaller: {plain} bytes, not {here}",)


def _stored(weight: Weight) -> WeightFacts:
    return WeightFacts(
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
