"""Checks of configuration values: each returns the value in the form in which it is kept.

Each raises ConfigError, naming the parameter, what it got and what is allowed.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from mlopt.choices import LUT_DTYPES, NBITS, LutDtype
from mlopt.errors import ConfigError

WordT = TypeVar("WordT", bound=str)


def listed(allowed: Iterable[object]) -> str:
    """The allowed values for a message."""
    return "one of " + ", ".join(str(value) for value in allowed)


def shown(value: object) -> str:
    """`value` for a message, with its type where that is probably what is wrong."""
    if value is None or isinstance(value, str):
        return repr(value)
    return f"{value!r} ({type(value).__name__})"


def near_matches(key: object, allowed: Iterable[str]) -> tuple[str, ...]:
    """The allowed names that look like `key`, at most three, the closest first."""
    return tuple(difflib.get_close_matches(str(key), list(allowed), n=3))


def did_you_mean(near: Iterable[str]) -> str:
    """The end of a message that suggests `near`; empty if there are none."""
    names = " or ".join(repr(name) for name in near)
    return f"; did you mean {names}?" if names else ""


def integer(value: Any, name: str, minimum: int | None = None) -> int:
    """`value` as an int; accepts numpy's integers, refuses booleans, floats and text."""
    allowed = "an integer" if minimum is None else f"an integer of at least {minimum}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be {allowed}, got {shown(value)}") from None
    if minimum is not None and number < minimum:
        raise ConfigError(f"{name} must be {allowed}, got {number}")
    return number


def word(value: Any, name: str, allowed: tuple[WordT, ...]) -> WordT:
    """`value` in lower case, one of `allowed`."""
    for each in allowed:
        if isinstance(value, str) and value.lower() == each:
            return each
    near = did_you_mean(near_matches(value, allowed))
    raise ConfigError(f"{name} must be {listed(allowed)}, got {shown(value)}{near}")


def flag(value: Any, name: str) -> bool:
    """`value` as a bool; accepts numpy's, and nothing else."""
    # The truth of anything else is a trap: bool("false") is True.
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ConfigError(f"{name} must be True or False, got {shown(value)}")


def index_bits(value: Any, name: str) -> int:
    """`value` as the number of bits of an index."""
    nbits = integer(value, name)
    if nbits not in NBITS:
        raise ConfigError(f"{name} must be {listed(NBITS)}, got {nbits}")
    return nbits


def lut_dtype_name(value: Any) -> LutDtype | None:
    """The name of a table dtype given as a string, or as numpy's or torch's type."""
    if value is None:
        return None
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    name = name.lower().removeprefix("torch.")
    for each in LUT_DTYPES:
        if name == each:
            return each
    raise ConfigError(
        f"lut_dtype must be None (the dtype of the weight) or {listed(LUT_DTYPES)}, "
        f"got {shown(value)}"
    )


def check_keys(values: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Refuse a mapping with a key that is not allowed."""
    names = list(allowed)
    for key in values:
        if key not in names:
            near = did_you_mean(near_matches(key, names))
            raise ConfigError(f"unknown key {key!r}; allowed: {', '.join(names)}{near}")
