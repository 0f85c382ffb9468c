"""Functions that the command line names as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import typer


def imported_function(text: str, option: str, wanted: str) -> Callable[..., Any]:
    """Import a function; modules of the current folder can be imported.

    text: ``module:function``; option: the one that errors are about; wanted: what it takes.
    """
    module_name, _, name = text.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise typer.BadParameter(
            f"the module {module_name!r} cannot be imported: {error}; {wanted}", param_hint=option
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise typer.BadParameter(
            f"the module {module_name!r} has no function {name!r}; {wanted}", param_hint=option
        )
    return function  # type: ignore[no-any-return]
