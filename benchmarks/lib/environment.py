"""What a result depends on besides the code: interpreter, packages, machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

_PACKAGES = ("mlopt", "coremltools", "numpy", "numba", "scipy", "scikit-learn", "torch")


def environment() -> dict[str, Any]:
    """Versions (None: not installed as a distribution) and the machine in a few words."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
