"""Packages that load their parts when these are first asked for.

Importing any module of a package runs the package's ``__init__`` first. If that imported all it
offers, then listing the weights of a model would load every kernel that palettizes one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package in which the names that it offers are objects, and never modules of it.

    The import system binds every module that it has loaded to its name in the package. There, the
    module would take the place of a function of its name, such as ``palettize`` of
    ``palettize.py``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["__all__"]):
            super().__setattr__(name, value)


def offer_on_demand(package: str, parts: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Let a package offer names whose modules are loaded when they are asked for.

    Parameters
    ----------
    package
        Its name; it has an ``__all__`` with these names.
    parts
        Module to the names that it defines; relative to the package if it begins with a dot.

    Returns
    -------
    For the ``__getattr__`` of the package: a function of a name that returns the object, and raises
    AttributeError for a name that no part has.
    """
    module_of = {name: part for part, names in parts.items() for name in names}
    package_itself = sys.modules[package]
    package_itself.__class__ = _Package

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name], package), name)
        # so that it is found without this function from now on
        setattr(package_itself, name, value)
        return value

    return load
