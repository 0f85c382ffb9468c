"""Allowed lengths of axes."""

from __future__ import annotations

import math
from typing import Any

import attrs

from mlopt.errors import ModelFormatError
from mlopt.runtime.sizes import check_elements


@attrs.frozen
class Lengths:
    """The lengths that an axis may have: from ``least`` to ``most``, None for no limit."""

    least: int
    most: int | None

    def __contains__(self, length: int) -> bool:
        return self.least <= length and (self.most is None or length <= self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.least)
        return f"{self.least}..{'' if self.most is None else self.most}"


def lengths_of(limits: Any) -> Lengths:
    """Return the lengths of a ``SizeRange`` message."""
    most = int(limits.upperBound)
    return Lengths(int(limits.lowerBound), None if most < 0 else most)


def check_lengths(shape: tuple[int, ...], name: str, where: str) -> None:
    """Refuse the description of an impossible shape."""
    try:
        if min(shape, default=0) < 0:
            raise ValueError("lengths cannot be negative")
        check_elements(math.prod(shape))
    except ValueError as error:
        raise ModelFormatError(
            f"{where}: feature {name!r} is described with shape {list(shape)}: {error}; the model "
            "is damaged"
        ) from None
