"""Moments that have had the very same updates: they are equal, and kept once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy.typing as npt


class Sharing:
    """Divides moments into those that have been equal until now.

    All begin together. After each sample those that were not given the same are parted for good.

    Parameters
    ----------
    leaders
        int64[moments]: the first of those that each has been equal to, 0 at the beginning. It is
        updated in place, so that it can be part of a file.
    """

    def __init__(self, leaders: npt.NDArray[Any]) -> None:
        self.leaders = leaders
        self.given: list[list[Hashable]] = []
        self.begin_sample()

    def begin_sample(self) -> None:
        """Forget what was given."""
        self.given = [[] for _ in self.leaders]

    def give(self, number: int, what: Hashable) -> None:
        """Note an update of moments; ``what``: equal only for equal updates, None for its own."""
        self.given[number].append(("own", number) if what is None else what)

    def end_sample(self) -> None:
        """Part moments that were given something else.

        Repeated for the same sample it changes nothing, and if it is cut short, too much is parted.
        """
        first: dict[Hashable, int] = {}
        self.leaders[:] = [
            first.setdefault((int(leader), tuple(given)), number)
            for number, (leader, given) in enumerate(zip(self.leaders, self.given, strict=True))
        ]
