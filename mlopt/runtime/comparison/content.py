"""Content of a tensor: whether it is informative enough to compare anything with it."""

from __future__ import annotations

import math
from typing import Literal

import attrs
import torch
from torch import Tensor

State = Literal["informative", "empty", "not finite", "zero", "saturated", "constant"]
"""empty: no elements; not finite: NaN or infinite everywhere; zero: 0 everywhere; saturated: each
element is at an end of its range; constant: the same number everywhere."""

Ends = tuple[float, float]
"""The least and the greatest possible value."""

FLOAT16_ENDS: Ends = (-65504.0, 65504.0)


@attrs.define
class Content:
    """Content of a tensor, over all samples that were added.

    ends: the range of elements: of a sigmoid, of a clip, of pixels; else of float16, where numbers
    that are too large for it end up. elements, finite: how many there are; least, greatest: of the
    finite ones; at_ends: how many of the finite ones are at one of the ends.
    """

    ends: Ends = FLOAT16_ENDS
    elements: int = 0
    finite: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    at_ends: int = 0

    def add(self, values: Tensor) -> None:
        """Add a sample: a tensor of floats of any shape."""
        self.elements += values.numel()
        finite = values[values.isfinite()]
        if not finite.numel():
            return
        least, greatest = torch.aminmax(finite)
        self.finite += finite.numel()
        self.least = min(self.least, float(least))
        self.greatest = max(self.greatest, float(greatest))
        self.at_ends += int(((finite <= self.ends[0]) | (finite >= self.ends[1])).sum())

    @property
    def state(self) -> State:
        """The state of all elements together."""
        if not self.elements:
            return "empty"
        if not self.finite:
            return "not finite"
        if self.least == self.greatest == 0.0:
            return "zero"
        if self.at_ends == self.finite:
            return "saturated"
        # a single number is the same everywhere, yet it is informative
        is_constant = self.least == self.greatest and self.finite > 1
        return "constant" if is_constant else "informative"

    def __str__(self) -> str:
        if self.state == "zero":
            return "zero everywhere"
        if self.state == "constant":
            return f"{self.least:g} everywhere"
        if self.state == "saturated":
            ends = {f"{value:g}" for value in (self.least, self.greatest)}
            which = " or ".join(sorted(ends, key=float))
            return f"saturated: {which} everywhere, the end of its range"
        return {
            "empty": "without elements",
            "not finite": "NaN or infinite everywhere",
            "informative": f"from {self.least:g} to {self.greatest:g}",
        }[self.state]
