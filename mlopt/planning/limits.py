"""What is asked of a plan: at most so many bytes, or at least so good an answer."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from mlopt.choices import LossName
from mlopt.errors import ConfigError
from mlopt.requests.checked import shown
from mlopt.statistics.guidance import decibels as ratio_of

Budget: TypeAlias = "int | str"
"""Bytes of the package, or a text such as ``"12MB"``, ``"4.2 bits"`` or ``"4x"``."""

Quality: TypeAlias = "float | str"
"""A number in dB (or, with loss kl, in nats), or a text such as ``"30 dB"`` or ``"0.02 nats"``."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?)"
_BUDGETS = (
    'a budget is bytes of the package (12000000), or a text: "12MB" (10**6 bytes; "12MiB" are '
    '2**20), "4.2 bits" (for each element of the weights, everything in the package counted) or '
    '"4x" (times smaller than the package is)'
)


def budget_in_bytes(budget: Budget, *, before: int, elements: int) -> int:
    """Return the bytes that a package may have.

    before: those of the model; elements: of its weights.

    Raises
    ------
    ConfigError
        It is no budget.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise ConfigError(f"{_BUDGETS}; got {shown(budget)}")
    if isinstance(budget, int):
        found = float(budget)
    else:
        match = re.fullmatch(rf"\s*{_NUMBER}\s*([a-z]+)\s*", budget.lower())
        if match is None:
            raise ConfigError(f"{_BUDGETS}; got {budget!r}")
        number, unit = float(match[1]), match[2]
        if unit in _UNITS:
            found = number * _UNITS[unit]
        elif unit in ("bit", "bits"):
            found = number * elements / 8
        elif unit in ("x", "times"):
            found = before / number if number else math.inf
        else:
            raise ConfigError(f"{_BUDGETS}; got {budget!r}")
    if not 1 <= found <= 1 << 60:
        raise ConfigError(f"{_BUDGETS}; got {shown(budget)}, which is {found:.3g} bytes")
    return int(found)


def decibels(loss: float) -> float:
    """Return the signal-to-noise ratio, in dB, of a relative squared error; infinity for 0."""
    return ratio_of(1.0, loss)


def loss_in_words(value: float, loss: LossName) -> str:
    """Return a loss for a reader: a squared one in dB, a divergence in nats."""
    if math.isnan(value):
        return "not a number"
    if value <= 0.0:
        return "no loss"
    if loss == "kl":
        return f"{value:.3g} nats"
    # what is infinite is worse than all numbers
    return f"{decibels(value):.1f} dB" if math.isfinite(value) else "infinite"


def most_loss(quality: Quality, loss: LossName) -> float:
    """Return the loss that a package may have.

    Raises
    ------
    ConfigError
        It is no quality, or not in the unit of the loss.
    """
    unit = "dB" if loss == "squared" else "nats"
    wanted = (
        f'with loss {loss}, a quality is a number of {unit}, or a text such as "'
        + ("30 dB" if loss == "squared" else "0.02 nats")
        + '"'
    )
    if isinstance(quality, str):
        match = re.fullmatch(rf"\s*(-?){_NUMBER}\s*{unit.lower()}\s*", quality.lower())
        if match is None:
            raise ConfigError(f"{wanted}; got {quality!r}")
        number = float(match[1] + match[2])
    elif isinstance(quality, bool) or not isinstance(quality, int | float):
        raise ConfigError(f"{wanted}; got {shown(quality)}")
    else:
        number = float(quality)
    try:
        found = 10.0 ** (-number / 10.0) if loss == "squared" else number
    except OverflowError:
        found = math.inf
    if not (math.isfinite(number) and 0.0 < found <= 1e6):
        raise ConfigError(f"{wanted}; got {shown(quality)}")
    return found
