"""Checks of an opened package: versions, opsets, values, and the blobs that they refer to.

What passes can be read, copied and rewritten without further checks: a damaged value is found here,
before it can end up in an output. Only the model and the metadata of blobs are read.

Each check says why it refuses: "no reader" where coremltools' loader or Core ML refuses as well,
"misread" where a value would differ from what was meant, "harm" where taking it could hurt the
machine. What is merely odd is accepted, and the lint reports it.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from mlopt.errors import ModelFormatError
from mlopt.mil.messages import ProgramMessage
from mlopt.mil.package import Package
from mlopt.mil.program import Program, operation_name
from mlopt.mil.targets import Target, opset_target
from mlopt.mil.values import check_immediate, tensor_type_of
from mlopt.mil.walk import Placed, every_value, functions_in_order

_OPSETS = [target.opset for target in Target]
#: Blobs after which the pages of the weight files are dropped: touching metadata maps whole runs of
#: pages around it.
_RELEASE_AFTER = 256
#: The most that the blobs in a weight file may add up to, as a multiple of its size, if they
#: overlap: an output holds each of them, and memory holds them one after the other.
_MOST_TIMES = 8

_Parts = dict[tuple[PurePosixPath, int], tuple[int, int]]
"""Weight file and offset of the metadata -> first byte of a blob's data and the one after it."""


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
    where = f"{package.path / package.model_path}"
    for program in package.programs:
        _check_opsets(program, where)
        _check_version(program, where)
        _drop_unsound_bodies(package, program)
        for placed in every_value(program.message):
            _check_value(package, placed, blobs)
            if placed.value.WhichOneof("value") == "blobFileValue":
                names.add(placed.value.blobFileValue.fileName)
    package.files.release()
    _check_amount(package, blobs)
    return tuple(sorted(names))


def _check_version(program: Program, where: str) -> None:
    """Check the version of the models around a program, and raise it to what their opsets need.

    Core ML reads a function by its opset and coremltools by the version, so nothing is read
    correctly if the version is older than the opset.
    """
    newest = max((opset_target(f.opset) for f in program.functions), default=Target.iOS15)
    for model in (program.model, *program.enclosing):
        # No reader: version 0 does not exist, and what a newer one means is not known yet.
        if model.specificationVersion not in range(1, newest):
            Target.of_specification(model.specificationVersion, where)
    for model in (program.model, *program.enclosing):
        model.specificationVersion = max(model.specificationVersion, newest)


def _check_opsets(program: Program, where: str) -> None:
    for name, function in functions_in_order(program.message):
        bodies = sorted(function.block_specializations)
        if function.opset not in bodies:  # no reader
            raise ModelFormatError(
                f"{where}: function {name!r} has opset {function.opset!r} but bodies only for "
                f"{bodies}; the model is damaged"
            )
        # No reader: Core ML refuses opsets newer than itself ("Unknown opset"); coremltools looks
        # at the version alone, and would read the operations of a newer opset as those that it
        # knows.
        if function.opset not in _OPSETS:
            raise ModelFormatError(
                f"{where}: function {name!r} has the unknown opset {function.opset!r}; known are "
                f"{', '.join(_OPSETS)}. The model is damaged, or newer than this version of mlopt."
            )


def _drop_unsound_bodies(package: Package, program: Program) -> None:
    """Remove function bodies for unused opsets if they hold values that cannot be copied.

    A function is read by the body for its own opset; the model is complete without the others.
    """
    for name, function in functions_in_order(program.message):
        bodies = function.block_specializations
        for opset in sorted(set(bodies) - {function.opset}):
            alone = ProgramMessage()
            alone.functions[name].block_specializations[opset].CopyFrom(bodies[opset])
            try:
                for placed in every_value(alone):
                    _check_value(package, placed, {})
            except ModelFormatError:
                del bodies[opset]
                package.dropped_bodies.append((program.label, name, opset))


def _check_value(package: Package, placed: Placed, blobs: _Parts) -> None:
    kind = placed.value.WhichOneof("value")
    if kind == "blobFileValue":
        _check_stored(package, placed, blobs)
    elif kind == "immediateValue":
        _check_immediate(package, placed)


def _check_immediate(package: Package, placed: Placed) -> None:
    try:
        check_immediate(placed.value)
    except ModelFormatError:
        # Again, for the message: errors are rare, and naming the place takes time.
        where = f"{package.path / package.model_path}"
        check_immediate(placed.value, f"{where}: {_described(placed)}")
        raise


def _check_stored(package: Package, placed: Placed, blobs: _Parts) -> None:
    """Check that a blob exists and has the elements of the value's type; record its extent."""
    reference = placed.value.blobFileValue
    blob = package.files.blob(reference.fileName, reference.offset)
    inner = package.files.path_of(reference.fileName)
    blobs[inner, blob.offset] = (blob.data_offset, blob.data_offset + blob.nbytes)
    if len(blobs) % _RELEASE_AFTER == 0:
        package.files.release()
    try:
        typed = tensor_type_of(placed.value.type)
        matches = typed is not None and blob.holds(typed[0], math.prod(typed[1]))
    except ModelFormatError as error:
        raise ModelFormatError(
            f"{package.path / package.model_path}: {_described(placed)}: {error}"
        ) from None
    if not matches:  # no reader
        wanted = "not a tensor of known shape" if typed is None else f"{typed[0].name} of shape "
        raise ModelFormatError(
            f"{package.path / inner}: the blob at offset {blob.offset} holds {blob.size} "
            f"{blob.dtype.name} elements, but {_described(placed)} is {wanted}"
            f"{'' if typed is None else list(typed[1])}. The model or its weight file is damaged."
        )


def _check_amount(package: Package, blobs: _Parts) -> None:
    """Check that a small weight file does not pass for a large one (harm).

    Blobs may overlap: a weight can be cut into parts without being copied. But n blobs that each
    span the whole file take n times its size wherever they are written or read.
    """
    sizes: dict[PurePosixPath, int] = {}
    for inner, (first, end) in {(inner, part) for (inner, _), part in blobs.items()}:
        sizes[inner] = sizes.get(inner, 0) + end - first
    for inner, size in sorted(sizes.items()):
        reader = package.files.reader_at(inner)
        if size > _MOST_TIMES * reader.size:
            raise ModelFormatError(
                f"{reader.path}: blobs overlap: together they have {size} bytes, in a file of "
                f"{reader.size}; at most {_MOST_TIMES} times its size can be handled. The file is "
                "damaged; fetch or convert the model again."
            )


def _described(placed: Placed) -> str:
    """Return where a value is, in words for a message."""
    inside = "the program" if placed.function is None else f"function {placed.function!r}"
    if placed.op is None:
        return f"a value of {inside}"
    return f"{placed.op.type} {operation_name(placed.op)!r} of {inside}"
