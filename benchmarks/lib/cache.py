"""Where built packages are kept between runs: never inside the repository."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT_VARIABLE = "MLOPT_BENCH_CACHE"


def cache_folder() -> Path:
    """The folder of built packages: ``$MLOPT_BENCH_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlopt-benchmarks"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlopt-benchmarks"


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Path of the cached package ``name``, calling ``build(path)`` where it does not exist yet.

    The build goes to a temporary folder beside the destination and is renamed at the end, so an
    interrupted build leaves nothing that looks finished.
    """
    folder = cache_folder()
    package = folder / f"{name}.mlpackage"
    if package.exists():
        return package
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}-"))
    try:
        fresh = workspace / package.name
        build(fresh)
        fresh.rename(package)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return package
