"""What a model file promises of its values, checked against what is there, when it is opened.

Whatever passes may be read, copied and rewritten without a further look: a damaged value is found
here, before it can end up in an output. Nothing is read but the model and the metadata of blobs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mlopt.errors import ModelFormatError
from mlopt.mil.blob import METADATA_BYTES, Blob
from mlopt.mil.program import Program, operation_name
from mlopt.mil.targets import Target
from mlopt.mil.values import check_immediate, tensor_type_of
from mlopt.mil.walk import Placed, every_value, functions_in_order

if TYPE_CHECKING:
    from mlopt.mil.package import Package

_OPSETS = [target.opset for target in Target]
#: Blobs after which the pages of the weight files are dropped: touching metadata maps whole runs of
#: pages around it.
_RELEASE_AFTER = 256

_Parts = dict[tuple[PurePosixPath, int], tuple[int, int]]
"""Weight file and offset of the metadata -> first byte of a blob's data and the one behind it."""


def check_package(package: Package) -> tuple[str, ...]:
    """Check versions, opsets and every value of every program, and the blobs they refer to.

    Returns the names of the weight files as the programs spell them, sorted.

    Raises
    ------
    ModelFormatError
        Something is damaged, or newer than this version of mlopt knows.
    """
    blobs: _Parts = {}
    names: set[str] = set()
    for program in package.programs:
        where = f"{package.path / package.model_path}"
        Target.of_specification(program.specification_version, where)
        _check_opsets(program, where)
        for placed in every_value(program.message):
            kind = placed.value.WhichOneof("value")
            if kind == "blobFileValue":
                _check_stored(package, placed, blobs)
                names.add(placed.value.blobFileValue.fileName)
            elif kind == "immediateValue":
                _check_immediate(placed, where)
    package.release()
    _check_apart(package, blobs)
    return tuple(sorted(names))


def _check_opsets(program: Program, where: str) -> None:
    for name, function in functions_in_order(program.message):
        bodies = sorted(function.block_specializations)
        if function.opset not in bodies:
            raise ModelFormatError(
                f"{where}: function {name!r} has opset {function.opset!r} but bodies only for "
                f"{bodies}; the model is damaged"
            )
        if function.opset not in _OPSETS:
            raise ModelFormatError(
                f"{where}: function {name!r} has the unknown opset {function.opset!r}; known are "
                f"{', '.join(_OPSETS)}. The model is damaged, or newer than this version of mlopt."
            )


def _check_immediate(placed: Placed, where: str) -> None:
    try:
        check_immediate(placed.value)
    except ModelFormatError:
        # Again, for the message: nearly always there is none, and naming the place takes time.
        check_immediate(placed.value, f"{where}: {_described(placed)}")
        raise


def _check_stored(package: Package, placed: Placed, blobs: _Parts) -> None:
    """Check that a blob is there and has the elements of the value's type; enter its place."""
    reference = placed.value.blobFileValue
    blob = package.blob(reference.fileName, reference.offset)
    inner = package.weight_path(reference.fileName)
    blobs[inner, blob.offset] = (blob.data_offset, blob.data_offset + blob.nbytes)
    if len(blobs) % _RELEASE_AFTER == 0:
        package.release()
    try:
        typed = tensor_type_of(placed.value.type)
        matches = typed is not None and _holds(blob, *typed)
    except ModelFormatError as error:
        raise ModelFormatError(
            f"{package.path / package.model_path}: {_described(placed)}: {error}"
        ) from None
    if not matches:
        wanted = "no tensor of known shape" if typed is None else f"{typed[0].name} of shape "
        raise ModelFormatError(
            f"{package.path / inner}: the blob at offset {blob.offset} holds {blob.size} "
            f"{blob.dtype.name} elements, but {_described(placed)} is {wanted}"
            f"{'' if typed is None else list(typed[1])}. The model or its weight file is damaged."
        )


def _holds(blob: Blob, dtype: Any, shape: tuple[int, ...]) -> bool:
    return blob.dtype is dtype and blob.size == math.prod(shape)


def _check_apart(package: Package, blobs: _Parts) -> None:
    """Check that blobs do not lie in one another; equal data under two offsets may be shared."""
    counts = Counter(inner for inner, _ in blobs)
    for inner, count in counts.items():
        reader = package.reader_at(inner)
        if reader.count < count:
            raise ModelFormatError(
                f"{reader.path}: {reader.count} blobs at offset 0, but the model refers to "
                f"{count}. The file is damaged; fetch or convert the model again."
            )
        parts = [(at, at + METADATA_BYTES) for file, at in blobs if file == inner]
        parts += {part for (file, _), part in blobs.items() if file == inner and part[0] < part[1]}
        parts.sort()
        for (first, end), (second, _) in itertools.pairwise(parts):
            if second < end:
                raise ModelFormatError(
                    f"{reader.path}: blobs overlap: bytes {first} to {end} belong to one, and "
                    f"another has bytes from {second} on. The file is damaged; fetch or convert "
                    "the model again."
                )


def _described(placed: Placed) -> str:
    """Return where a value is, for a message."""
    inside = "the program" if placed.function is None else f"function {placed.function!r}"
    if placed.op is None:
        return f"a value of {inside}"
    return f"{placed.op.type} {operation_name(placed.op)!r} of {inside}"
