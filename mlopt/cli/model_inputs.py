"""Model inputs from the command line, and outputs to files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import typer

from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.described import Feature, PlainFeature
from mlopt.runtime.features.images import ImageFeature
from mlopt.whole_files import whole_file

ARRAYS = (".npy",)
"""Endings of files with one array, in small letters."""

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of images, in small letters."""

# errors of numpy and Pillow for files that are damaged or of another kind
_DAMAGED_ARRAYS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
_DAMAGED_IMAGES = (OSError, ValueError, EOFError, SyntaxError, zlib.error)


def named_texts(given: Sequence[str]) -> dict[str, str]:
    """Return the texts of arguments ``NAME=VALUE`` by name."""
    texts: dict[str, str] = {}
    for argument in given:
        name, separator, text = argument.partition("=")
        if not separator or not name or not text:
            raise typer.BadParameter(
                f"{argument!r} is not NAME=VALUE, such as x=input.npy", param_hint="'--input'"
            )
        if name in texts:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="'--input'")
        texts[name] = text
    return texts


def parsed_inputs(texts: Mapping[str, str], features: Mapping[str, Feature]) -> dict[str, Any]:
    """Return inputs by name from the texts of ``mlopt run --input``.

    Names that are not inputs keep their texts: the model refuses them.
    """
    return {
        name: _value(text, features[name]) if name in features else text
        for name, text in texts.items()
    }


def array_of(path: Path, option: str = "'--input'") -> Any:
    """Return the array of an .npy file; option: the one that errors are about."""
    with _opened(path, option) as file:
        array = _loaded(file, option)
    if isinstance(array, np.lib.npyio.NpzFile):
        raise typer.BadParameter(
            f"{path} holds several arrays; give a file with one, as numpy.save writes it",
            param_hint=option,
        )
    return array


def image_of(path: Path, option: str = "'--input'") -> Any:
    """Return the ``PIL.Image`` in a file; option: the one that errors are about."""
    try:
        from PIL import Image
    except ImportError:
        raise typer.BadParameter(
            "images need Pillow; install mlopt[torch]", param_hint=option
        ) from None
    try:
        with Image.open(path) as image:
            # the pixels are read here, so that a damaged file can be named
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist", param_hint=option) from None
    except (*_DAMAGED_IMAGES, Image.DecompressionBombError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read as an image: {error}", param_hint=option
        ) from error


def arrays_of(path: Path, option: str = "'--inputs'") -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; option: the one that errors are about."""
    # opened here: numpy leaves files open that are damaged
    with _opened(path, option) as file:
        archive = _loaded(file, option)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise typer.BadParameter(f"{path} is not an .npz file of arrays", param_hint=option)
        return {name: _member(archive, name, path, option) for name in archive.files}


def named_arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return outputs as arrays by name.

    Arrays, numbers and labels are under their names; images too, [height, width] or
    [height, width, 3]; dictionaries of probabilities as two: ``NAME.labels`` and ``NAME.values``.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, Mapping):
            arrays[f"{name}.labels"] = np.array(list(value.keys()))
            arrays[f"{name}.values"] = np.array(list(value.values()))
        else:
            # the alpha of colours has no information
            is_opaque = getattr(value, "mode", None) == "RGBA"
            arrays[name] = np.asarray(value.convert("RGB") if is_opaque else value)
    return arrays


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays to an .npz file, under any names."""
    # numpy's savez takes names as keywords, of which "file" is its own
    with whole_file(path) as whole, zipfile.ZipFile(whole, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(  # type: ignore[no-untyped-call]
                    file, array, allow_pickle=False
                )


def _value(text: str, feature: Feature) -> Any:
    if isinstance(feature, PlainFeature) and feature.kind == "stringType":
        return text
    path = Path(text)
    if path.suffix.lower() in ARRAYS:
        return array_of(path)
    if path.suffix.lower() in IMAGES:
        return image_of(path)
    number = _number(text)
    if number is None or not _takes_number(feature):
        raise typer.BadParameter(
            f"{feature.name}={text}: {_allowed(feature)}", param_hint="'--input'"
        )
    return np.full(feature.shape, number) if isinstance(feature, ArrayFeature) else number


def _number(text: str) -> int | float | None:
    """Return a text as a number; None if it is not one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _takes_number(feature: Feature) -> bool:
    if isinstance(feature, ArrayFeature):
        return math.prod(feature.shape) == 1
    return isinstance(feature, PlainFeature)


def _allowed(feature: Feature) -> str:
    images = f"a file with an image ({', '.join(IMAGES)})"
    if isinstance(feature, ImageFeature):
        return f"the input is an image of {feature.described_sizes()}; give {images} or .npy"
    if isinstance(feature, PlainFeature):
        return "the input is a number; give one"
    number = " or a number" if _takes_number(feature) else ""
    return (
        f"the input is an array {feature.described_shapes()}; give a file with one array (.npy; "
        f".npz files hold several){number}"
    )


def _opened(path: Path, option: str) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist", param_hint=option) from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint=option) from error


def _loaded(file: IO[bytes], option: str) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except _DAMAGED_ARRAYS as error:
        raise typer.BadParameter(
            f"{file.name} cannot be read as arrays of numpy: {error}", param_hint=option
        ) from error


def _member(archive: Any, name: str, path: Path, option: str) -> np.ndarray:
    try:
        member = archive[name]
        # numpy returns other content as bytes
        if not isinstance(member, np.ndarray):
            raise ValueError("it is not an array")
    except _DAMAGED_ARRAYS as error:
        raise typer.BadParameter(
            f"{path}: {name!r} cannot be read as an array of numbers: {error}",
            param_hint=option,
        ) from error
    return member
