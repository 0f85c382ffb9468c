"""What a module was called with, as its readers take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlopt.calibration.readers.reader import Arguments


class UnfitError(Exception):
    """A module was called with something other than what modules of its kind multiply."""


def call_of(args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call for readers.

    x: the first; args, kwargs: all. Readers of one call may keep what they compute in it.
    """
    x = args[0] if args else kwargs.get("input", kwargs.get("x"))
    return {"x": x, "args": args, "kwargs": kwargs}


def argument(arguments: Arguments, position: int, name: str) -> Any:
    """Return an argument by its position or name; None if it was not given."""
    args, kwargs = arguments["args"], arguments["kwargs"]
    return args[position] if len(args) > position else kwargs.get(name)


def floats(x: Any, *, columns: int | None = None) -> Tensor:
    """Return a tensor of floats, with a last axis of ``columns`` if that is given.

    Raises
    ------
    UnfitError
        It is something else.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout is not torch.strided:
        raise UnfitError
    if x.is_nested or (columns is not None and (not x.dim() or x.shape[-1] != columns)):
        raise UnfitError
    return x
