"""Configs of coremltools' palettizers, where they are given instead of mlopt's.

The classes have the same names and parameters. They are recognized by where they are defined, so
that coremltools is not loaded to look for them.
"""

from __future__ import annotations

from typing import Any

import attrs

_DEFINED_IN = "coremltools.optimize.torch."


def is_foreign(value: object, class_name: str) -> bool:
    """Whether a value is an instance of coremltools' class of that name, or of a derived one."""
    return any(
        kind.__name__ == class_name and kind.__module__.startswith(_DEFINED_IN)
        for kind in type(value).__mro__
    )


def parameters_of(config: Any) -> dict[str, Any]:
    """Return the parameters of a config of coremltools with their values."""
    return {field.name: getattr(config, field.name) for field in attrs.fields(type(config))}
