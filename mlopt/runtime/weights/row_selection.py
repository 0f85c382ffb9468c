"""Row selection: single rows of a compressed weight, as an embedding needs few of its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor

from mlopt.runtime.weights.packed import Packed

Arguments = dict[str, Any]


@attrs.frozen(eq=False)
class RowsOf:
    """How a ``constexpr`` operation computes some rows of its result.

    data: the input that has the rows, which is packed or compressed where it is so in the program;
    arguments: of all arguments those that give the rows at int64[n] of a result that has so many;
    None where these cannot be told apart without computing all, or where the arguments do not fit,
    which computing all will say.
    """

    data: str
    arguments: Callable[[Arguments, Tensor, int], Arguments | None]


@attrs.frozen(eq=False, repr=False)
class Rows:
    """A weight that is computed on demand, whole or in part.

    shape: of all of it; whole: computes it; select: computes its rows at int64[n], which are in
    range, as [n, ...].
    """

    shape: tuple[int, ...]
    whole: Callable[[], Tensor]
    select: Callable[[Tensor], Tensor]

    def dim(self) -> int:
        """The rank."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"compressed{list(self.shape)}"


Table = Tensor | Rows
"""A table in which rows are looked up."""


def rows_of(value: Any, index: Tensor) -> Any:
    """Return rows of a tensor, packed or compressed; None if they start within a byte."""
    if isinstance(value, Rows):
        return value.select(index)
    if not isinstance(value, Packed):
        return value.index_select(0, index)
    count, *rest = value.shape
    if math.prod(rest) * value.bits % 8:
        return None
    data = value.data.reshape(count, -1).index_select(0, index).reshape(-1)
    return Packed(data, value.bits, (len(index), *rest), is_signed=value.is_signed)


def blocks_of(each: Tensor, count: int, index: Tensor) -> Tensor | None:
    """Return for some rows the numbers or tables of their blocks of ``count`` rows, one each.

    They are returned as they are if one block has all rows; None if blocks do not divide them.
    """
    blocks = each.shape[0]
    if blocks == 1:
        return each
    if not blocks or count % blocks:
        return None
    return each.index_select(0, index // (count // blocks))
