"""Tables as their format can hold them, and the palette that has them."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.palette.palettize import palettize
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import Lattice, is_wide_enough
from mlopt.palette.value.spec import NBITS, PaletteSpec
from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.palettization.form import Grouping
from mlopt.torch.palettization.nearest import nearest_labels
from mlopt.torch.tensors import as_array, numpy_dtype

_INTEGERS = {"i8": "int8", "u8": "uint8"}


def rounded_table(table: Tensor, lut_dtype: str) -> Tensor:
    """A table [G, K, d] rounded to ``"f16"``, ``"bf16"``, or 8 bits with one scale; else itself."""
    if lut_dtype == "f16":
        return table.half().to(table.dtype)
    if lut_dtype == "bf16":
        return table.bfloat16().to(table.dtype)
    if lut_dtype in _INTEGERS:
        return torch.from_numpy(_on_lattice(as_array(table), _INTEGERS[lut_dtype])).to(table)
    return table


def palette_of(
    kept: Tensor, table: Tensor, scale: Tensor | None, options: FakePalettizeOptions
) -> Palettized:
    """The palette of a weight: for each point the nearest entry.

    Parameters
    ----------
    kept
        The weight, in units of ``scale``, in the dtype that it is stored in.
    table
        [G, K, d], rounded already.
    scale
        That of the channels, None for none.
    """
    grouping = options.grouping
    dtype = numpy_dtype(kept.dtype)
    tables = iter(as_array(table).astype(np.float64))
    nbits = min(n for n in NBITS if 1 << n >= options.entries)

    def nearest(group: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        entries = np.unique(next(tables).astype(dtype), axis=0)
        # groups come with their channels first
        wide, centres = (torch.from_numpy(a.astype(np.float64)) for a in (group, entries))
        points = Grouping(group.shape, d=grouping.d).points(wide)
        return entries, as_array(nearest_labels(points, centres[None]))

    is_cut = grouping.groups > 1 or grouping.d > 1
    spec = PaletteSpec(
        mode="custom",
        lut_function=nearest,
        channel_axis=grouping.axis if is_cut else None,
        group_size=grouping.shape[grouping.axis] // grouping.groups if is_cut else None,
        cluster_dim=grouping.d,
        allowed_nbits=tuple(n for n in NBITS if n >= nbits),
        lut_dtype=_INTEGERS.get(options.lut_dtype),
    )
    palettized, _ = palettize(as_array(kept), spec)
    if scale is not None:
        palettized = attrs.evolve(palettized, scale=as_array(scale.to(kept.dtype)))
    return palettized


def _on_lattice(table: npt.NDArray[Any], lut_dtype: str) -> npt.NDArray[Any]:
    """Numbers rounded to those that a table in 8 bits with one scale can hold."""
    wide = table.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not is_wide_enough(low, high, lut_dtype, table.dtype):
        return table
    lattice = Lattice.spanning(low, high, lut_dtype, table.dtype)
    return lattice.points[lattice.nearest(wide)].astype(table.dtype)
