"""What coremltools reads of an odd package, mlopt reads too, and as the same values.

Three judges: coremltools' reader of weight files, its loader of ML programs, and the formulas of
its pass that decompresses. What one of them takes and mlopt refuses is a failure, unless the
refusal is listed here with its reason; what both take has equal values.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.frontend.milproto import load as milproto

from mlopt.coreml.weights import node_of, weights_of
from mlopt.errors import ModelFormatError
from mlopt.mil.blob import BlobReader
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.values import is_as_written
from tests import judges
from tests.fuzz.oddities import odd
from tests.fuzz.seeds import Files
from tests.fuzz.trial import Wrong, step_guard, write

#: Refusals that stand, whatever coremltools takes: what the message says, and the reason.
LISTED: tuple[tuple[str, str], ...] = (
    (
        r"unknown opset",
        "Core ML refuses an opset that it does not know; coremltools goes by the version and takes "
        "the operations to be those that it knows",
    ),
    (
        r"does not stay inside the package|leaves the package",
        "harm: coremltools looks for the last part of the name in the folder of weights, whatever "
        "is before it, and follows a path of the root model out of the package",
    ),
    (r"blobs overlap: together they have", "harm: a small file that is written as a large one"),
    (r"has \d+ bytes; at most 1048576", "harm: a manifest of a megabyte and more"),
    (
        r"(floats|doubles|ints|longInts) hold numbers that u?int\d+ elements cannot",
        "misread: coremltools cuts off fractions, and wraps around what is too large",
    ),
    (
        r"strings cannot hold (?!string)\w+ elements|\b(?!strings)\w+ cannot hold string elements",
        "misread: coremltools prints numbers as text, and reads numbers from text",
    ),
    (
        r"takes \d+ packed bytes, got \d+",
        "misread: of 3- and 6-bit elements, coremltools takes missing bits of the last for zeros",
    ),
    (
        r"a \w+ is stored where the type is",
        "misread: coremltools takes a list that is bound to a parameter for one, whatever type is "
        "declared",
    ),
    (
        r"its output '.*' is .*, but the model declares",
        "Core ML compares the type that an operation gives with the one that is declared, and so "
        "does coremltools for all operations but constants",
    ),
    (r"of \d+ dimensions; at most 32", "no array of numpy 1, and Core ML's tensors stop at 5"),
)


def input_of(seeds: dict[str, Files], seed: int, number: int) -> tuple[Files, str, random.Random]:
    """The input of that number, as ``driver.input_of`` gives it."""
    rng = random.Random(f"differential {seed}:{number}")
    name = rng.choice(sorted(seeds))
    files, oddities = odd(seeds[name], rng)
    return files, f"{name}: {', '.join(oddities)}", rng


def run(files: Files, folder: Path, rng: random.Random) -> dict[str, str]:
    """Let the judges and mlopt read a package; returns for each step who took it.

    Raises
    ------
    Wrong
        The judge took what mlopt refuses without a listed reason, or the values are others.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source.mlpackage"
    source.mkdir(parents=True)
    write(files, source)
    ends = {"blobs": _blobs(source)}
    # A copy: coremltools writes the manifest of a package that it reads anew.
    theirs = _loaded(shutil.copytree(source, folder / "theirs.mlpackage"))
    with step_guard("differential"):
        try:
            package = open_package(source)
            ours = [_constants(package, index) for index in range(len(package.programs))]
        except ModelFormatError as error:
            if theirs is not None:
                ends["load"] = _listed(error)
            else:
                ends["load"] = "neither"
            return ends
    if theirs is None:
        return {**ends, "load": "mlopt alone"}
    ends["load"] = "both"
    if len(theirs) != len(package.programs):
        raise Wrong(f"{len(theirs)} programs became {len(package.programs)}")
    for index, program in enumerate(theirs):
        _compare_constants(program, ours[index])
        ends["decompress"] = _compare_compressed(program, package, index)
    return ends


def _listed(error: ModelFormatError) -> str:
    for pattern, _ in LISTED:
        if re.search(pattern, str(error)):
            return f"listed: {pattern[:30]}"
    raise Wrong(f"coremltools takes it: {str(error)[:1500]}")


# --- blobs ----------------------------------------------------------------------------------------

_READS = {
    1: ("fp16", np.uint16),
    2: ("float", np.float32),
    3: ("uint8", np.uint8),
    4: ("int8", np.int8),
    6: ("int16", np.int16),
    7: ("uint16", np.uint16),
    8: ("int4", np.int8),
    9: ("uint1", np.uint8),
    10: ("uint2", np.uint8),
    11: ("uint4", np.uint8),
    12: ("uint3", np.uint8),
    13: ("uint6", np.uint8),
    14: ("int32", np.int32),
    15: ("uint32", np.uint32),
}
_NARROW = {8: 4, 9: 1, 10: 2, 11: 4, 12: 3, 13: 6}
_MOST_BYTES = 1 << 24


def _blobs(source: Path) -> str:
    """Let both readers read every blob of every weight file, wherever there is a sentinel."""
    native = ct.libmilstoragepython
    seen = Counter[str]()
    for path in sorted(source.rglob("*.bin")):
        if not path.is_file():
            continue
        raw = path.read_bytes()
        starts = [m.start() for m in re.finditer(b"\xef\xbe\xad\xde", raw)]
        for offset in [*starts, 0, 64, len(raw)]:
            if len(raw) < offset + 64:
                number = size = start = 0
            else:
                _, number, size, start = struct.unpack_from("<IIQQ", raw, offset)
            if number not in _READS or start + size >= 1 << 64 or size > _MOST_BYTES:
                continue  # their arithmetic wraps around, and reads what is not theirs
            name, dtype = _READS[number]
            try:
                reader = native._BlobStorageReader(str(path))
                theirs = getattr(reader, f"read_{name}_data")(offset).view(dtype)
            except (RuntimeError, ValueError):
                theirs = None
            try:
                blob = BlobReader(path).read(offset)
            except ModelFormatError as error:
                if theirs is not None:
                    raise Wrong(f"coremltools reads the blob: {error}") from error
                seen["neither"] += 1
                continue
            if theirs is None and blob.size:  # nothing at all is something that it does not read
                raise Wrong(f"coremltools does not read the blob at {offset} of {path.name}")
            ours = blob.array()
            if number in _NARROW:
                ours = _unpacked(ours, _NARROW[number], blob.size, signed=number == 8)
            if ours.view(np.uint8).tobytes() != theirs.view(np.uint8).tobytes():
                raise Wrong(f"another blob at {offset} of {path.name}")
            seen["both"] += 1
    return "both" if seen["both"] else "neither"


def _unpacked(packed: np.ndarray, bits: int, size: int, *, signed: bool) -> np.ndarray:
    """Elements of a bit stream, the lowest bit first."""
    stream = np.unpackbits(packed, bitorder="little")[: size * bits].reshape(size, bits)
    values = (stream.astype(np.int64) << np.arange(bits)).sum(1)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return values.astype(np.int8 if signed else np.uint8)


# --- programs -------------------------------------------------------------------------------------


def _loaded(package: Path) -> list[Any] | None:
    """What coremltools' loader makes of the ML programs; None: it fails, in whatever way."""
    try:
        with step_guard("judge"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec, folder = judges.spec_and_weights(package)
            parts = judges.ml_programs(spec)
            where = "" if folder is None else str(folder)
            return [milproto.load(p, p.specificationVersion, where) for p in parts] or None
    except Wrong:
        raise
    except Exception:
        return None


_Key = tuple[str, str]


def _constants(package: Package, index: int) -> dict[_Key, Any]:
    """The const operations of a program by function and name; of names that are there once."""
    program = package.programs[index]
    found: dict[_Key, Any] = {}
    repeated: Counter[_Key] = Counter()
    for constant in program.constants():
        if constant.inline or constant.variable is None:
            continue
        key = constant.function, constant.variable.name
        repeated[key] += 1
        found[key] = (constant, constant.value())
    return {key: value for key, value in found.items() if repeated[key] == 1}


def _compare_constants(program: Any, ours: dict[_Key, Any]) -> None:
    theirs: dict[_Key, Any] = {}
    repeated: Counter[_Key] = Counter()
    for name, function in program.functions.items():
        for op in judges.pymil_operations(function):
            if op.op_type == "const":
                repeated[name, op.outputs[0].name] += 1
                theirs[name, op.outputs[0].name] = op.outputs[0].val
    for key in theirs.keys() & ours.keys():
        constant, value = ours[key]
        their_value = theirs[key]
        if repeated[key] > 1 or not isinstance(their_value, np.ndarray | np.generic | str):
            continue
        if constant.dtype in _PACKED or not (
            constant.storage is not None or is_as_written(constant.message)
        ):
            _compare_loosely(key, constant, value, their_value)
            continue
        same = np.asarray(their_value)
        if not _equal(value, same):
            raise Wrong(f"{key}: {constant.dtype} {value!r:.300} is {same!r:.300} for coremltools")


_PACKED = frozenset({"uint1", "uint2", "uint3", "uint4", "uint6", "int4"})


def _compare_loosely(key: _Key, constant: Any, value: Any, theirs: Any) -> None:
    """Values in other fields, and packed ones."""
    if constant.dtype in _PACKED:
        bits = int(re.sub(r"\D", "", constant.dtype))
        value = _unpacked(
            np.asarray(value).reshape(-1), bits, constant.size, signed=constant.dtype == "int4"
        ).reshape(constant.shape)
    field = constant.message.immediateValue.tensor.WhichOneof("value")
    if field == "bytes" and constant.dtype not in (*_PACKED, "fp16", "int8", "uint8", "uint32"):
        return  # which they take for text
    if not _equal(np.asarray(value), np.asarray(theirs)):
        raise Wrong(f"{key}: {value!r:.300} is {theirs!r:.300} for coremltools")


def _equal(ours: Any, theirs: np.ndarray) -> bool:
    ours = np.asarray(ours)
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == object or theirs.dtype.kind in "US":
        return [_text(x) for x in ours.reshape(-1)] == [_text(x) for x in theirs.reshape(-1)]
    if theirs.dtype.itemsize < ours.dtype.itemsize:
        # 64-bit numbers become 32-bit ones in pymil.
        with np.errstate(all="ignore"):
            ours = ours.astype(theirs.dtype)
    return bool(np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _compare_compressed(program: Any, package: Package, index: int) -> str:
    """Compare what compressed weights hold; says who could tell."""
    theirs: dict[_Key, np.ndarray] = {}
    repeated: Counter[_Key] = Counter()
    for name, function in program.functions.items():
        for op in judges.pymil_operations(function):
            if not op.op_type.startswith("constexpr_"):
                continue
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    values = judges.materialised(op)
            except Exception:
                continue
            for var, value in zip(op.outputs, values, strict=True):
                repeated[name, var.name] += 1
                theirs[name, var.name] = value
    try:
        with step_guard("decompress"):
            weights, _ = weights_of(package, smallest=0)
            compressed = [
                ((node_of(each).function, each.name), weight)
                for weight in weights
                if weight.is_compressed and weight.program is package.programs[index]
                for each in weight.instances
            ]
            ours = {key: weight.value() for key, weight in compressed}
            count = Counter(key for key, _ in compressed)
    except ModelFormatError as error:
        names = re.findall(r"'([^']*)'", str(error))
        if any(name in names for _, name in theirs):
            return _listed(error)
        return "coremltools fails"
    compared = 0
    for key in theirs.keys() & ours.keys():
        if repeated[key] == 1 and count[key] == 1:
            compared += 1
            if not _equal(ours[key], theirs[key]):
                raise Wrong(f"{key}: {ours[key]!r:.300} is {theirs[key]!r:.300} for coremltools")
    return "both" if compared else "none"
