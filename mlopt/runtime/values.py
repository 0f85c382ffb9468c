"""Values of a run: copied, in float32, for another run, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlopt.runtime.element_types import NARROW
from mlopt.runtime.state import StateTensor


def copied(value: Any) -> Any:
    """Return tensors, including those in a tuple, copied; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def widened(value: Any) -> Any:
    """Return tensors of narrow floats, including those in a tuple, in float32."""
    if isinstance(value, tuple):
        return tuple(widened(item) for item in value)
    if isinstance(value, Tensor) and value.dtype in NARROW.values():
        return value.float()
    return value


def forked(value: Any, copies: dict[int, StateTensor]) -> Any:
    """Return a value of a frame for another run; copies: of the states that were met before."""
    if not isinstance(value, StateTensor):
        return value
    return copies.setdefault(id(value), StateTensor(value.value.clone()))


def described(arguments: Mapping[str, Any]) -> str:
    """Return arguments as an error tells them: ``x: float32[2, 3], axis: 1``."""
    return (
        ", ".join(f"{name}: {_describe(value)}" for name, value in arguments.items()) or "nothing"
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
