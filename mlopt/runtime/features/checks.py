"""Checks of the arguments of ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlopt.errors import InputError
from mlopt.runtime.features.described import Feature
from mlopt.runtime.state import State


def check_names(given: Mapping[str, Any], features: Mapping[str, Feature], what: str) -> None:
    """Refuse inputs that the model does not describe, and missing ones."""
    unknown = [name for name in given if name not in features]
    needed = [n for n, f in features.items() if n not in given and not f.is_optional]
    if unknown or needed:
        lines = [f"it has no {what} {name!r}" for name in unknown]
        lines += [f"its {what} {name!r} is missing" for name in needed]
        raise InputError(
            f"the inputs given do not fit the model: {'; '.join(lines)}. Its {what}s are "
            f"{', '.join(map(repr, features)) or 'none'}"
        )


def several(data: Any, state: State | None) -> list[Any]:
    """Return several dictionaries of inputs, which cannot share a state."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        check_is_mapping(data)
    if state is not None:
        raise InputError("a state can only be given with one dictionary of inputs")
    return list(data)


def check_is_mapping(data: Any) -> None:
    """Refuse anything but a dictionary of inputs."""
    if not isinstance(data, Mapping):
        raise InputError(
            "inputs are a dictionary of names and values, or a list of such dictionaries; got "
            f"{type(data).__name__}"
        )
