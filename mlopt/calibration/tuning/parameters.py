"""Parameters: tuned numbers in float32, and the steps of Adam that they take."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.calibration.tuning.tunables import Tunable

_FIRST, _SECOND = 0.9, 0.99
_LEAST = 1e-30
"""In the denominator: gradients may be small, those that are 0 must not divide by it."""


class Parameter:
    """A tunable constant while it is tuned.

    Steps are those of Adam (Kingma and Ba, arXiv 1412.6980), in units of the root mean square that
    the numbers have at first. What counts in every run is :meth:`rounded`: the numbers as they will
    be stored.
    """

    def __init__(self, tunable: Tunable, device: torch.device) -> None:
        self.tunable = tunable
        self.start = torch.from_numpy(tunable.value()).to(device)
        self.numbers = self.start.float().clone()
        self.unit = float(self.numbers.double().square().mean().sqrt())
        self.has_gradient = False
        self._means = torch.zeros_like(self.numbers), torch.zeros_like(self.numbers)
        self._limit = torch.finfo(self.start.dtype).max

    def stored(self) -> Tensor:
        """Return the numbers in the dtype in which they are stored."""
        return self.numbers.clamp(-self._limit, self._limit).to(self.start.dtype)

    def rounded(self) -> Tensor:
        """Return a copy of the stored numbers, in float32."""
        return self.stored().float().clone()

    def step(self, gradient: Tensor, number: int, rate: float) -> None:
        """Take the step of that number, counted from 1; rate: its length in units."""
        self.has_gradient |= bool(gradient.any())
        first, second = self._means
        first.lerp_(gradient, 1 - _FIRST)
        second.lerp_(gradient.square(), 1 - _SECOND)
        mean, square = first / (1 - _FIRST**number), second / (1 - _SECOND**number)
        self.numbers -= rate * self.unit * mean / (square.sqrt() + _LEAST)

    def array(self) -> npt.NDArray[np.floating]:
        """Return the numbers as they are stored."""
        values: npt.NDArray[np.floating] = self.stored().cpu().numpy()
        return values

    @property
    def change(self) -> float:
        """The root mean square of the change, in units."""
        change = (self.stored().double() - self.start.double()).square().mean().sqrt()
        return float(change) / self.unit if self.unit else 0.0


def with_units(parameters: Iterable[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """Return the parameters with a unit for their steps, and those without.

    Biases that are all 0 take the mean of the other ones of their kind.
    """
    chosen = list(parameters)
    units: dict[str, list[float]] = {}
    for each in chosen:
        if each.unit:
            units.setdefault(each.tunable.kind, []).append(each.unit)
    for each in chosen:
        known = units.get(each.tunable.kind)
        if not each.unit and known and each.tunable.kind != "tables":
            each.unit = math.fsum(known) / len(known)
    return [each for each in chosen if each.unit], [each for each in chosen if not each.unit]
