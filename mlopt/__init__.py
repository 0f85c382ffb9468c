"""Palettization of Core ML and PyTorch models.

``import mlopt as cto`` stands where ``import coremltools.optimize as cto`` stood. The rooms of the
library (``cto.coreml`` and the others) are loaded when first used, so that importing mlopt itself
costs nothing: it loads neither coremltools nor torch nor numpy. What mlopt has no version of is
coremltools' own, see ``mlopt.drop_in``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mlopt.drop_in import install

if TYPE_CHECKING:
    from mlopt import (
        calibration,
        coreml,
        errors,
        mil,
        pages,
        palette,
        planning,
        runtime,
        statistics,
        torch,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "calibration",
    "coreml",
    "errors",
    "mil",
    "pages",
    "palette",
    "planning",
    "runtime",
    "statistics",
    "torch",
]

_ROOMS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> ModuleType:
    """Load the room ``name`` on first use; AttributeError where there is none."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)


install()
