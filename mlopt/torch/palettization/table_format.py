"""Tables in their storage format, and palettes from them."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.choices import LutDtype
from mlopt.palette.assignment import assign
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import quantized_table
from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.tensors import as_array

_INTEGERS: dict[str, LutDtype] = {"i8": "int8", "u8": "uint8"}


def rounded_table(table: Tensor, lut_dtype: str) -> Tensor:
    """Round a table [G, K, d] to ``"f16"``, ``"bf16"``, or 8 bits with one scale, if asked to."""
    if lut_dtype == "f16":
        return table.half().to(table.dtype)
    if lut_dtype == "bf16":
        return table.bfloat16().to(table.dtype)
    if lut_dtype in _INTEGERS:
        return torch.from_numpy(_on_lattice(as_array(table), _INTEGERS[lut_dtype])).to(table)
    return table


def stored_palette(
    kept: Tensor, table: Tensor, scale: Tensor | None, options: FakePalettizeOptions
) -> Palettized:
    """Return the palette of a weight: each point takes the nearest entry.

    Parameters
    ----------
    kept
        The weight, in units of ``scale``, in the dtype that it is stored in.
    table
        [G, K, d], already rounded.
    scale
        Scale of the channels, or None.
    """
    lut_dtype = _INTEGERS.get(options.lut_dtype)
    tables = as_array(table).astype(np.float64)
    palettized = assign(as_array(kept), tables, options.layout, lut_dtype=lut_dtype)
    if scale is not None:
        palettized = attrs.evolve(palettized, scale=as_array(scale.to(kept.dtype)))
    return palettized


def _on_lattice(table: npt.NDArray[Any], lut_dtype: str) -> npt.NDArray[Any]:
    """Round numbers to those that a table in 8 bits with one scale can hold."""
    quantized = quantized_table(table, lut_dtype)
    return table if quantized is None else quantized.decode()
