"""Files of named arrays, in the layout of safetensors.

Eight bytes: the length of the header, little-endian; the header: JSON with the element type, shape
and offsets of each array, and texts by name under ``__metadata__``, padded with spaces; then the
arrays without gaps. See https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError, DestinationError
from mlopt.whole_files import whole_file

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LONGEST_HEADER = 1 << 30
_ALIGNMENT = 64
_METADATA = "__metadata__"


@attrs.frozen
class Entry:
    """An array of a file: its name, dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_of(
    entries: Iterable[Entry], metadata: Mapping[str, str], *, length: int | None = None
) -> bytes:
    """Return the start of a file, before its arrays, in ``length`` bytes or as many as it needs.

    Raises
    ------
    ValueError
        It does not fit into ``length``.
    """
    values: dict[str, Any] = {_METADATA: dict(metadata)}
    position = 0
    for entry in entries:
        values[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(values, separators=(",", ":")).encode()
    whole = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT if length is None else length
    if 8 + len(text) > whole:
        raise ValueError(f"the header needs {8 + len(text)} bytes, and has {whole}")
    return (whole - 8).to_bytes(8, "little") + text.ljust(whole - 8)


def read(path: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Return the metadata of a file and its arrays by name, mapped and read-only.

    Raises
    ------
    ConfigError
        It cannot be read, or is not complete, or not in this layout.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ConfigError(_other(path, "its first 8 bytes are not the length of a header"))
            values = json.loads(file.read(length))
    except OSError as error:
        raise ConfigError(f"{path}: the calibration cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_other(path, "its header is not JSON")) from None
    if not isinstance(values, dict) or not isinstance(values.get(_METADATA), dict):
        raise ConfigError(_other(path, "its header has no metadata"))
    metadata = {str(name): str(text) for name, text in values.pop(_METADATA).items()}
    start, end = 8 + length, 8 + length
    places: dict[str, tuple[Entry, int]] = {}
    for name, described in values.items():
        try:
            dtype: np.dtype[Any] = _DTYPES[described["dtype"]]
            entry = Entry(name, dtype, tuple(map(int, described["shape"])))
            first, last = map(int, described["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(_other(path, f"its header does not describe {name!r}")) from None
        if first < 0 or min(entry.shape, default=0) < 0 or last - first != entry.nbytes:
            raise ConfigError(_other(path, f"the place of {name!r} contradicts its shape"))
        places[name] = (entry, start + first)
        end = max(end, start + last)
    if end != size:
        what = f"it has {size} bytes, and its header describes {end}"
        raise ConfigError(
            f"{path}: the calibration is cut short or damaged: {what}; copy it again, or calibrate "
            "again"
        )
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return metadata, {name: _view(data, *place) for name, place in places.items()}


def write(
    path: Path,
    arrays: Mapping[Entry, Callable[[], npt.NDArray[Any]]],
    metadata: Mapping[str, str],
) -> None:
    """Write a file, complete or not at all; each array is asked for when it is written.

    Raises
    ------
    DestinationError
        It cannot be written.
    """
    try:
        with whole_file(path) as file:
            file.write(header_of(arrays, metadata))
            for entry, made in arrays.items():
                array = np.ascontiguousarray(made(), dtype=entry.dtype)
                assert array.shape == entry.shape
                file.write(array.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise DestinationError(
            f"{path}: the calibration cannot be written: {error}; choose another place"
        ) from error


def _view(data: npt.NDArray[Any], entry: Entry, start: int) -> npt.NDArray[Any]:
    part = np.asarray(data[start : start + entry.nbytes])
    return part.view(entry.dtype).reshape(entry.shape)


def _other(path: Path, reason: str) -> str:
    return (
        f"{path} is not a calibration: {reason}; give a file that `mlopt calibrate` or "
        "Calibration.save has written"
    )
