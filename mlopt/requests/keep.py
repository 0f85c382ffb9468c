"""Why a weight stays as it is, and why a part of a request does not hold for it."""

from __future__ import annotations

import attrs


@attrs.frozen
class Keep:
    """The weight stays bit for bit: ``reason`` in full, ``category`` without its numbers."""

    reason: str
    category: str


def float_table_note(lut_dtype: str, dtype: str) -> str:
    """Why a weight of ``dtype`` has a table in that although 8 bits were asked for."""
    return (
        f"the table stays in {dtype}: the weights are so small that the scale of one in "
        f"{lut_dtype} would be subnormal"
    )
