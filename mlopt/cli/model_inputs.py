"""Inputs of a model as the command line gives them: files of arrays, images, numbers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

_ARRAYS = (".npy",)
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def parsed_inputs(given: Sequence[str]) -> dict[str, Any]:
    """Inputs by name of arguments ``NAME=VALUE``; see ``mlopt run --help``."""
    inputs: dict[str, Any] = {}
    for argument in given:
        name, separator, text = argument.partition("=")
        if not separator or not name or not text:
            raise typer.BadParameter(
                f"{argument!r} is not NAME=VALUE, such as x=input.npy", param_hint="'--input'"
            )
        if name in inputs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="'--input'")
        inputs[name] = _value(text)
    return inputs


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name."""
    found = _loaded(path)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise typer.BadParameter(f"{path} is no .npz file of arrays", param_hint="'--inputs'")
    with found:
        return {name: found[name] for name in found.files}


def write_arrays(values: Mapping[str, Any], path: Path) -> None:
    """Write those of the values that are arrays to an .npz file, under any names."""
    # numpy's savez takes names as keywords, of which "file" is its own
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(  # type: ignore[no-untyped-call]
                        file, value, allow_pickle=False
                    )


def _value(text: str) -> Any:
    path = Path(text)
    if path.suffix.lower() in _ARRAYS:
        return _loaded(path)
    if path.suffix.lower() in _IMAGES:
        return _image(path)
    try:
        return float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        return text


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as arrays of numpy: {error}") from error


def _image(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise typer.BadParameter("images need Pillow; install mlopt[torch]") from None
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist") from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read as an image: {error}") from error
