"""Why a weight stays as it is, and why a part of a request does not hold for it."""

from __future__ import annotations

import attrs


@attrs.frozen
class Keep:
    """The weight stays bit for bit.

    Parameters
    ----------
    reason
        Why, in full.
    category
        The reason without what is particular to the weight; `reason` itself where not given.
    """

    reason: str
    category: str = attrs.field(default=attrs.Factory(lambda self: self.reason, takes_self=True))


NOT_FINITE = Keep("it holds an infinity or a NaN", "infinity or NaN")


def low_rank(rank: int) -> Keep:
    """Why a weight of so few axes stays: less than two."""
    return Keep(f"rank {rank}; Core ML wants rank 2 or more", "rank 0 or 1")


def float_table_note(lut_dtype: str, dtype: str) -> str:
    """Why a weight of ``dtype`` has a table in that although 8 bits were asked for."""
    return (
        f"the table stays in {dtype}: the weights are so small that the scale of one in "
        f"{lut_dtype} would be subnormal"
    )
