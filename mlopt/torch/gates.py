"""Gates: weights of recurrent modules, which coremltools splits when it converts them.

The rows of such a weight are those of its gates, one gate after another. coremltools computes with
them before there is a program: for its ``lstm`` it puts the gates of ``torch.nn.LSTM`` into another
order, and from ``torch.nn.GRU`` it makes a linear layer per gate. It can do neither with compressed
weights. A permutation of rows is the same palette with permuted rows of indices, so the palettes of
the weights that coremltools makes follow from the palette of the original weight.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import QuantizedTable

ARRANGEMENTS: dict[int, tuple[tuple[int, ...], ...]] = {
    4: ((0, 1, 3, 2),),  # LSTM: input, forget, cell, output  ->  input, forget, output, cell
    3: ((0,), (1,), (2,)),  # GRU: reset, update, new  ->  one weight each
}
"""By number of gates: the weights that coremltools makes from one, each by its gates in order."""

ArrayT = TypeVar("ArrayT", bound=npt.NDArray[Any])


def rows_of(order: tuple[int, ...], gates: int, count: int) -> npt.NDArray[np.intp]:
    """Return which of ``count`` rows, a multiple of ``gates``, belong to the gates in ``order``."""
    return np.arange(count).reshape(gates, -1)[list(order)].reshape(-1)


def arranged(palettized: Palettized, gates: int) -> tuple[Palettized, ...] | None:
    """Return the palettes of the weights that coremltools makes from one, as in ``ARRANGEMENTS``.

    Groups of channels that span gates are cut, so that some tables are stored several times. None
    where that takes more than the dense weights and than the palette itself, and where vectors span
    gates.
    """
    d = palettized.cluster_dim if palettized.vector_axis == 0 else 1
    if palettized.shape[0] % (gates * d):
        return None
    palettes = tuple(_with_gates(palettized, order, gates) for order in ARRANGEMENTS[gates])
    most = max(palettized.size * palettized.dtype.itemsize, palettized.nbytes)
    return palettes if sum(each.nbytes for each in palettes) <= most else None


def _with_gates(palettized: Palettized, order: tuple[int, ...], gates: int) -> Palettized:
    """Return the palette of a weight's gates in some order; gates are whole rows of indices."""
    indices, table, scale = palettized.indices, palettized.table, palettized.scale
    rows = rows_of(order, gates, len(indices))
    height = len(indices) // len(table)
    groups = rows // height
    # as few tables as possible: one, as many as before, or with groups cut at the gates
    for size in (len(rows), height, math.gcd(height, len(indices) // gates)):
        if len(rows) % size == 0:
            cut = groups.reshape(-1, size)
            if (cut == cut[:, :1]).all():
                break
    chosen = cut[:, 0]
    if scale is not None and len(scale) > 1:
        scale = scale[rows_of(order, gates, len(scale))]
    quantized = palettized.quantized
    if quantized is not None:
        quantized = QuantizedTable(
            quantized.codes[chosen],
            _of_groups(quantized.scale, chosen),
            None if quantized.offset is None else _of_groups(quantized.offset, chosen),
        )
    return attrs.evolve(
        palettized,
        table=table[chosen],
        indices=np.ascontiguousarray(indices[rows]),
        scale=scale,
        quantized=quantized,
    )


def _of_groups(numbers: ArrayT, chosen: npt.NDArray[np.intp]) -> Any:
    """Select the scales or offsets, one for all tables or one per table, of the chosen tables."""
    return numbers if len(numbers) == 1 else numbers[chosen]
