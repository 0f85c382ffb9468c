"""What is odd in a package and does no harm, by chance: other writers, edits, old versions."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mlopt.mil.messages import Model
from mlopt.mil.walk import every_value, file_values
from tests.fuzz.mutators import mutate
from tests.fuzz.seeds import MODEL, Files

_SENTINEL = b"\xef\xbe\xad\xde"


def odd(files: Files, rng: random.Random) -> tuple[Files, list[str]]:
    """Return the files with one to three oddities, and now and then damage; and their names."""
    changed = dict(files)
    chosen = rng.choices(_ODDITIES, k=rng.choice((1, 1, 2, 3)))
    for oddity in chosen:
        oddity(changed, rng)
    names = [oddity.__name__ for oddity in chosen]
    if rng.random() < 0.3:
        changed, damage = mutate(changed, rng)
        names += damage
    return changed, names


def _weights(files: Files, rng: random.Random) -> tuple[str, bytearray, list[int]] | None:
    """A weight file with blobs: its name, its bytes, and where metadata begins in it."""
    names = [name for name in sorted(files) if name.endswith(".bin")]
    if not names:
        return None
    name = rng.choice(names)
    raw = bytearray(files[name])
    begins = [at for at in range(64, len(raw) - 63, 64) if raw[at : at + 4] == _SENTINEL]
    return (name, raw, begins) if begins else None


def undefined_words(files: Files, rng: random.Random) -> None:
    """As coremltools 5 to 7 wrote them."""
    found = _weights(files, rng)
    if found is not None:
        name, raw, begins = found
        for at in begins:
            if rng.random() < 0.7:
                first = rng.choice((24, 32))
                raw[at + first : at + 64] = rng.randbytes(64 - first)
        files[name] = bytes(raw)


def header(files: Files, rng: random.Random) -> None:
    """Another count, other reserved words."""
    found = _weights(files, rng)
    if found is not None:
        name, raw, _ = found
        struct.pack_into("<I", raw, 0, rng.choice((0, 1, 1000, 2**32 - 1)))
        raw[8:64] = rng.randbytes(56)
        files[name] = bytes(raw)


def moved_data(files: Files, rng: random.Random) -> None:
    """Data elsewhere in the file: at its end, anywhere, in other data."""
    found = _weights(files, rng)
    if found is None:
        return
    name, raw, begins = found
    at = rng.choice(begins)
    size, start = struct.unpack_from("<QQ", raw, at + 8)
    kind = rng.randrange(3)
    if kind == 0:
        raw += bytes(rng.randrange(8))
        data = raw[start : start + size]
        struct.pack_into("<Q", raw, at + 16, len(raw))
        raw += data
    elif kind == 1:
        struct.pack_into("<Q", raw, at + 16, rng.randrange(max(1, len(raw) - size % (1 << 20))))
    else:
        struct.pack_into("<Q", raw, at + 8, (size + rng.randrange(4)) % 2**64)
    files[name] = bytes(raw)


def moved_metadata(files: Files, rng: random.Random) -> None:
    """A second copy of metadata, where nothing is aligned, and the model refers to that."""
    found = _weights(files, rng)
    if found is None:
        return
    name, raw, begins = found
    at = rng.choice(begins)
    raw += bytes(rng.randrange(8))
    new = len(raw)
    raw += raw[at : at + 64]

    def refer(model: Any) -> None:
        for value in _file_values(model):
            if value.blobFileValue.offset == at and rng.random() < 0.7:
                value.blobFileValue.offset = new

    _edit(files, refer)
    files[name] = bytes(raw)


def version(files: Files, rng: random.Random) -> None:
    """A specification version that is not that of the opset."""
    _edit(files, lambda model: setattr(model, "specificationVersion", rng.choice(range(4, 11))))


def opset(files: Files, rng: random.Random) -> None:
    """An opset that is not that of the version, the body with it."""

    def change(model: Any) -> None:
        for program in _programs(model):
            for name in sorted(program.functions):
                function = program.functions[name]
                if function.opset in function.block_specializations and rng.random() < 0.6:
                    bodies, new = function.block_specializations, f"CoreML{rng.randrange(5, 11)}"
                    bodies[new].CopyFrom(bodies[function.opset])
                    if rng.random() < 0.5 and new != function.opset:
                        del bodies[function.opset]
                    function.opset = new

    _edit(files, change)


def unused_body(files: Files, rng: random.Random) -> None:
    """A body that nobody reads, sound or not."""

    def change(model: Any) -> None:
        for program in _programs(model):
            for function in program.functions.values():
                if function.opset not in function.block_specializations:
                    continue
                bodies = function.block_specializations
                bodies["Other"].CopyFrom(bodies[function.opset])
                if rng.random() < 0.5:
                    for op in bodies["Other"].operations:
                        for value in op.attributes.values():
                            if value.WhichOneof("value") == "blobFileValue":
                                value.blobFileValue.offset += rng.choice((1, 64, 1 << 40))

    _edit(files, change)


def other_fields(files: Files, rng: random.Random) -> None:
    """Values in another member of TensorValue than coremltools uses."""

    def change(model: Any) -> None:
        values = [v for v in _values(model) if v.immediateValue.WhichOneof("value") == "tensor"]
        for value in rng.sample(values, min(len(values), rng.choice((1, 3)))):
            tensor = value.immediateValue.tensor
            field = tensor.WhichOneof("value")
            if field is None or field == "strings":
                continue
            if field == "bytes":
                if rng.random() < 0.7:
                    tensor.bytes.values += rng.randbytes(rng.randrange(3))
                else:
                    numbers = list(tensor.bytes.values)
                    tensor.ints.values.extend(numbers)
                continue
            numbers = [float(x) for x in getattr(tensor, field).values]
            if rng.random() < 0.2:
                numbers = [x + 0.5 for x in numbers]
            other = rng.choice(("floats", "doubles", "ints", "longInts", "bools"))
            kind = {"floats": float, "doubles": float, "bools": bool}.get(other, int)
            if all(np.isfinite(numbers)) and max(map(abs, numbers), default=0) < 2**31:
                tensor.ClearField(field)
                getattr(tensor, other).values.extend(map(kind, numbers))

    _edit(files, change)


def shared_names(files: Files, rng: random.Random) -> None:
    """The weight file spelled in another way."""

    def change(model: Any) -> None:
        for value in _file_values(model):
            if rng.random() < 0.5:
                name = value.blobFileValue.fileName
                value.blobFileValue.fileName = name.replace("/weights/", "/./weights//")

    _edit(files, change)


def manifest(files: Files, rng: random.Random) -> None:
    """Keys twice, a byte order mark, more entries than there are readers for."""
    text = files.get("Manifest.json", b"{}").decode("utf-8", "replace").strip().removeprefix("{")
    first = rng.choice(
        (
            '"rootModelIdentifier": "x", ',
            '"itemInfoEntries": {}, ',
            '"fileFormatVersion": "0.0.1", ',
            '"more": [1, 2.5, null, {"a": "\\u00fc"}], ',
        )
    )
    mark = "\ufeff" if rng.random() < 0.3 else ""
    files["Manifest.json"] = f"{mark}{{{first}{text}".encode()


_ODDITIES: tuple[Callable[[Files, random.Random], None], ...] = (
    *(undefined_words, header, moved_data, moved_data, moved_metadata, version, opset),
    *(unused_body, other_fields, other_fields, shared_names, manifest),
)


def _programs(model: Any) -> list[Any]:
    if model.WhichOneof("Type") == "pipeline":
        return [found for inner in model.pipeline.models for found in _programs(inner)]
    return [model.mlProgram] if model.WhichOneof("Type") == "mlProgram" else []


def _file_values(model: Any) -> list[Any]:
    return [value for program in _programs(model) for value in file_values(program)]


def _values(model: Any) -> list[Any]:
    return [
        placed.value
        for program in _programs(model)
        for placed in every_value(program)
        if placed.value.WhichOneof("value") == "immediateValue"
    ]


def _edit(files: Files, change: Callable[[Any], None]) -> None:
    with contextlib.suppress(DecodeError):
        model = Model.FromString(files.get(MODEL, b""))
        change(model)
        files[MODEL] = model.SerializeToString()
