"""The rest of ``coremltools.optimize`` under the names of mlopt.

``import mlopt as cto`` replaces ``import coremltools.optimize as cto``, even for what mlopt does
not provide: linear quantization, pruning, GPTQ, quantization of activations. Such a name is
coremltools' own object, whether it is asked for as an attribute (``cto.coreml.prune_weights``) or
imported (``from mlopt.torch.pruning import MagnitudePruner``), and coremltools is loaded then.

The names are listed here, so that listing them, or requesting an unknown one, loads nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OPTIMIZE = "coremltools.optimize"

_OBJECTS = {
    "mlopt.coreml": (
        "OpLinearQuantizerConfig",
        "OpMagnitudePrunerConfig",
        "OpThresholdPrunerConfig",
        "linear_quantize_activations",
        "linear_quantize_weights",
        "prune_weights",
    ),
}
"""Module of mlopt -> additional names of coremltools' module of that name."""

_MODULES = {
    "mlopt.coreml": ("experimental",),
    "mlopt.torch": (
        "base_model_optimizer",
        "layerwise_compression",
        "optimization_config",
        "pruning",
        "quantization",
    ),
}
"""Module of mlopt -> submodules that are coremltools' own, with all that is in them."""

_MIXED = {
    "mlopt.torch.palettization": (
        "palettization_config",
        "palettizer",
        "post_training_palettization",
        "sensitive_k_means",
    ),
}
"""Module of mlopt -> submodules in which coremltools defines the names of that module.

There, a name that mlopt has is mlopt's, and the others are coremltools'.
"""

_ALIASES = frozenset(f"{parent}.{name}" for parent, names in _MODULES.items() for name in names)
_OVERLAYS = frozenset(f"{parent}.{name}" for parent, names in _MIXED.items() for name in names)


def names_besides(module_name: str) -> tuple[str, ...]:
    """Return the names that a module of mlopt borrows."""
    kinds = (_OBJECTS, _MODULES, _MIXED)
    return tuple(name for kind in kinds for name in kind.get(module_name, ()))


def attribute(module_name: str, name: str) -> Any:
    """Return coremltools' object for a ``name`` that a module of mlopt lacks, or AttributeError."""
    if name in _OBJECTS.get(module_name, ()):
        return getattr(importlib.import_module(_theirs(module_name)), name)
    if name in (*_MODULES.get(module_name, ()), *_MIXED.get(module_name, ())):
        return importlib.import_module(f"{module_name}.{name}")
    raise AttributeError(f"module {module_name!r} has no attribute {name!r}")


def _theirs(module_name: str) -> str:
    return _OPTIMIZE + module_name.removeprefix("mlopt")


class _Alias:
    """Loader of a module of coremltools as one of mlopt: the same object, under both names."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None: the import system makes a module that is then replaced."""

    def exec_module(self, module: ModuleType) -> None:
        # The entry at the end of loading is what is imported. If create_module returned it, the
        # import system would overwrite its own attributes.
        sys.modules[module.__name__] = importlib.import_module(self.name)


class _Overlay:
    """Loader of a module with mlopt's names before coremltools' ones."""

    def __init__(self, ours: str, theirs: str) -> None:
        self.ours, self.theirs = ours, theirs

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None: the import system makes the module."""

    def exec_module(self, module: ModuleType) -> None:
        ours, theirs = importlib.import_module(self.ours), importlib.import_module(self.theirs)
        for name in dir(theirs):
            if not name.startswith("_"):
                setattr(module, name, ours.__dict__.get(name, getattr(theirs, name)))


class _Finder:
    """Finder of the modules above for the import system."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module that coremltools lends; None for any other."""
        if not name.startswith("mlopt."):
            return None
        if name in _OVERLAYS:
            loader = _Overlay(name.rpartition(".")[0], _theirs(name))
            return ModuleSpec(name, loader, origin=_theirs(name))  # type: ignore[arg-type]
        # Also below an alias: the path of the module there would load files a second time.
        if ".".join(name.split(".")[:3]) not in _ALIASES:
            return None
        if importlib.util.find_spec(_theirs(name)) is None:
            return None
        return ModuleSpec(name, _Alias(_theirs(name)), origin=_theirs(name))  # type: ignore[arg-type]


_FINDER = _Finder()


def install() -> None:
    """Install the finder before those that look for files."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
