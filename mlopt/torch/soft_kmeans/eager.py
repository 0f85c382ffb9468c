"""Functions that ``torch.compile`` must call without compiling them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Make a compiled caller break its graph for a function, and everything within it.

    As ``torch.compiler.disable`` would, which however loads the whole compiler when it decorates.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            apart: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return apart(*args, **kwargs)
        return function(*args, **kwargs)

    return call
