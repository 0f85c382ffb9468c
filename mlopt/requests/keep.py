"""Reasons to keep a weight as it is, or not to follow part of a request."""

from __future__ import annotations

from typing import Any

import attrs
import numpy.typing as npt

from mlopt.palette.value.spec import PaletteSpec


@attrs.frozen
class Keep:
    """The decision to keep a weight, bit for bit.

    Parameters
    ----------
    reason
        The reason in full.
    category
        The reason without what is particular to the weight; `reason` itself if not given.
    """

    reason: str
    category: str = attrs.field(default=attrs.Factory(lambda self: self.reason, takes_self=True))


NOT_FINITE = Keep("it holds an infinity or a NaN", "infinity or NaN")


def low_rank(rank: int) -> Keep:
    """The reason to keep a weight of fewer than two axes."""
    return Keep(f"rank {rank}; Core ML wants rank 2 or more", "rank 0 or 1")


def float_table_note(lut_dtype: str, dtype: str) -> str:
    """The note on a table that stays in the weight's ``dtype`` although 8 bits were requested."""
    return (
        f"the table stays in {dtype}: the weights are so small that the scale of one in "
        f"{lut_dtype} would be subnormal"
    )


def without_unusable_codes(
    spec: PaletteSpec, weight: npt.NDArray[Any]
) -> tuple[PaletteSpec, tuple[str, ...]]:
    """The spec, asking for tables in floats where 8-bit codes cannot serve, and a note if so."""
    from mlopt.palette.palettize import can_quantize_table  # with it come the kernels

    if spec.lut_dtype is None or can_quantize_table(weight, spec):
        return spec, ()
    note = float_table_note(spec.lut_dtype, weight.dtype.name)
    return attrs.evolve(spec, lut_dtype=None), (note,)
