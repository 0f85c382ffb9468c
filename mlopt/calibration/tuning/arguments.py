"""Checks of the arguments that ``tune`` takes."""

from __future__ import annotations

from typing import Any

from mlopt.choices import TUNED, Tuned
from mlopt.errors import ConfigError
from mlopt.requests.checked import shown, word


def checked_what(what: Any) -> frozenset[Tuned]:
    """Return the kinds of constants to tune, given as some words or as one."""
    if isinstance(what, str):
        what = (what,)
    try:
        chosen = frozenset(word(each, "what", TUNED) for each in what)
    except TypeError:
        raise ConfigError(f"what must be some of {', '.join(TUNED)}, got {shown(what)}") from None
    if not chosen:
        raise ConfigError(f"what must be some of {', '.join(TUNED)}, got none")
    return chosen


def number_up_to(value: Any, name: str, *, most: float) -> float:
    """Return a number that is more than 0 and at most ``most``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most:
        raise ConfigError(f"{name} must be more than 0 and at most {most}, got {shown(value)}")
    return float(value)


def checked_values(values: Any) -> tuple[str, ...] | None:
    """Return names of values, given as some names or as one, each once; None as it is."""
    if values is None:
        return None
    names = (values,) if isinstance(values, str) else tuple(dict.fromkeys(values))
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"values must be names of values, got {shown(values)}")
    return names
