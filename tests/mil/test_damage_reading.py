"""Packages that are damaged, or made to do harm: refused when they are opened, by what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.errors import DestinationError, ModelFormatError
from mlopt.mil.blob import SENTINEL, BlobReader, BlobWriter
from mlopt.mil.messages import Model, Value
from mlopt.mil.opening import open_package
from mlopt.mil.values import file_value, immediate_value, read_immediate, string_value, tensor_type
from mlopt.mil.walk import file_values
from mlopt.mil.writer import PackageWriter
from tests.conftest import PackageOf
from tests.mil.memory import peak_memory

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture
def source(package_of: PackageOf, tmp_path: Path) -> Path:
    """Return a copy of a small package that the test may damage."""
    return Path(shutil.copytree(package_of("recurrent"), tmp_path / "source.mlpackage"))


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Let a test that waits for ever fail."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    signal.alarm(60)
    yield
    signal.alarm(0)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Apply ``change`` to the model message of a package."""
    model = Model.FromString((path / MODEL).read_bytes())
    change(model)
    (path / MODEL).write_bytes(model.SerializeToString())


def refused(path: Path, match: str) -> str:
    with pytest.raises(ModelFormatError, match=match) as caught:
        open_package(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def stored_values(model: Any) -> list[Any]:
    return list(file_values(model.mlProgram))


# --- weight files ---------------------------------------------------------------------------------


def test_truncation_at_every_byte_of_the_metadata(source: Path) -> None:
    """And at some of the others; all but the padding behind the last blob is missed."""
    whole = (source / WEIGHTS).read_bytes()
    offsets = [v.blobFileValue.offset for v in stored_values(open_package(source).spec)]
    sizes = {at + n for at in (0, *offsets[:3], offsets[-1]) for n in range(64)}
    sizes |= set(range(0, len(whole), max(1, len(whole) // 50))) | {len(whole) - 1}
    for size in sizes:
        (source / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ModelFormatError, match=r"weight\.bin: .*"):
            open_package(source)
    (source / WEIGHTS).write_bytes(whole)
    open_package(source)


def blob_file(path: Path, *blobs: tuple[int, int, int, int], size: int = 1024) -> None:
    """Write a weight file with metadata (offset, type, bytes, data offset) at will."""
    raw = bytearray(size)
    struct.pack_into("<II", raw, 0, len(blobs), 2)
    for offset, number, nbytes, start in blobs:
        struct.pack_into("<IIQQQ", raw, offset, SENTINEL, number, nbytes, start, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def package_of_blobs(path: Path, *values: tuple[int, str, tuple[int, ...]]) -> None:
    """Write a package whose constants are at the given (offset, type, shape)."""
    spec = Model(specificationVersion=7)
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML6"
    block = function.block_specializations["CoreML6"]
    for index, (offset, dtype, shape) in enumerate(values):
        op = block.operations.add(type="const")
        op.attributes["name"].CopyFrom(string_value(f"w{index}"))
        op.attributes["val"].CopyFrom(
            file_value("@model_path/weights/weight.bin", offset, dtype, shape)
        )
        op.outputs.add(name=f"w{index}").type.CopyFrom(tensor_type(dtype, shape))
    (path / MODEL).parent.mkdir(parents=True)
    (path / MODEL).write_bytes(spec.SerializeToString())
    entry = {"path": "com.apple.CoreML/model.mlmodel"}
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": entry}}
    (path / "Manifest.json").write_text(json.dumps(manifest))


OVERLAPS = {
    "data in data": [(64, 3, 96, 128), (256, 3, 32, 192)],
    "data in metadata": [(64, 3, 96, 128), (256, 3, 32, 96)],
    "data is metadata": [(64, 3, 64, 256), (256, 3, 32, 320)],
    "data in its own metadata": [(64, 3, 64, 64)],
    "metadata in data": [(64, 3, 256, 128), (256, 3, 32, 512)],
    "metadata in metadata": [(64, 3, 32, 256), (96, 3, 32, 512)],
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_overlapping_blobs(tmp_path: Path, kind: str) -> None:
    """Odd, but nothing keeps a writer from it: each has the bytes that it names, also in a copy."""
    path = tmp_path / "a.mlpackage"
    blobs = OVERLAPS[kind]
    package_of_blobs(path, *((offset, "uint8", (nbytes,)) for offset, _, nbytes, _ in blobs))
    blob_file(path / WEIGHTS, *blobs)
    raw = (path / WEIGHTS).read_bytes()
    with PackageWriter(open_package(path), tmp_path / "out") as writer:
        output = writer.finish()
    for package in (path, output):
        for constant, (_, _, nbytes, start) in zip(
            open_package(package).programs[0].constants(), blobs, strict=True
        ):
            assert constant.value().tobytes() == raw[start : start + nbytes]


def test_a_small_file_does_not_pass_for_a_large_one(tmp_path: Path) -> None:
    """Each of many blobs takes nearly the whole file: copied, they would be many files."""
    path = tmp_path / "a.mlpackage"
    blobs = [(64 * i, 3, 4096 - i, i) for i in range(1, 40)]
    package_of_blobs(path, *((offset, "uint8", (nbytes,)) for offset, _, nbytes, _ in blobs))
    blob_file(path / WEIGHTS, *blobs, size=4096)
    refused(path, r"weight\.bin: blobs overlap: together they have 1\d{5} bytes, in a file of 4096")


def test_shared_blobs_are_sound(tmp_path: Path) -> None:
    """Two references to one offset, and two metadata with the same data."""
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, *((at, "uint8", (96,)) for at in (64, 64, 256)))
    blob_file(path / WEIGHTS, (64, 3, 96, 128), (256, 3, 96, 128))
    assert len(open_package(path).programs[0].constants()) == 3


@pytest.mark.parametrize("count", [0, 1, 16, (1 << 32) - 1])
def test_counts_that_cannot_be(tmp_path: Path, count: int) -> None:
    """Nobody needs the number of blobs to find one."""
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, (64, "uint8", (64,)), (192, "uint8", (64,)))
    blob_file(path / WEIGHTS, (64, 3, 64, 128), (192, 3, 64, 256))
    with open(path / WEIGHTS, "r+b") as file:
        file.write(struct.pack("<I", count))
    with PackageWriter(open_package(path), tmp_path / "out") as writer:
        output = writer.finish()
    package = open_package(output)
    assert package.files.reader("@model_path/weights/weight.bin").count == 1  # both are zeros


def test_booleans_in_a_file(tmp_path: Path) -> None:
    """They are stored as bytes; any but 0 is true."""
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, (64, "bool", (4, 16)))
    blob_file(path / WEIGHTS, (64, 3, 64, 128))
    with open(path / WEIGHTS, "r+b") as file:
        file.seek(128)
        file.write(bytes([0, 1, 2, 255] * 16))
    with PackageWriter(open_package(path), tmp_path / "out") as writer:
        output = writer.finish()
    for package in (path, output):
        (constant,) = open_package(package).programs[0].constants()
        value = constant.value()
        assert value.dtype == np.bool_
        np.testing.assert_array_equal(value, [[False, True, True, True] * 4] * 4)
        assert value.view(np.uint8).max() == 1
    blob_file(path / WEIGHTS, (64, 4, 64, 128))
    refused(path, "holds 64 int8 elements, but const 'w0' of function 'main' is bool")


@pytest.mark.parametrize(("dtype", "number", "stored"), [("int64", 14, "<i4"), ("fp64", 2, "<f4")])
def test_numbers_of_64_bits_in_a_file(tmp_path: Path, dtype: str, number: int, stored: str) -> None:
    """They are stored in 32, by the one writer that stores them in a file."""
    path = tmp_path / "a.mlpackage"
    numbers = np.arange(-8, 8).astype(stored)
    package_of_blobs(path, (64, dtype, (2, 8)))
    blob_file(path / WEIGHTS, (64, number, 64, 128))
    with open(path / WEIGHTS, "r+b") as file:
        file.seek(128)
        file.write(numbers.tobytes())
    with PackageWriter(open_package(path), tmp_path / "out") as writer:
        output = writer.finish()
    for package in (path, output):
        (constant,) = open_package(package).programs[0].constants()
        assert constant.value().dtype == np.dtype(dtype.replace("fp", "float"))
        np.testing.assert_array_equal(constant.value(), numbers.reshape(2, 8))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("uint8", (63,)),
        ("uint8", (65,)),
        ("uint8", ()),
        ("uint8", (0, 64)),
        ("int8", (64,)),
        ("fp16", (64,)),
        ("uint4", (64,)),
        # Products that are 64 when they wrap around at 64 bits, or in floating point.
        ("uint8", (1 << 32, 1 << 32, 64)),
        ("uint8", (64, (1 << 63) + 1, 2)),
        ("uint8", ((1 << 64) - 1, (1 << 64) - 64)),
        ("fp16", (1 << 60, 1 << 60)),
    ],
)
def test_types_that_are_not_those_of_the_blob(tmp_path: Path, dtype: str, shape: Any) -> None:
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, (64, dtype, shape))
    blob_file(path / WEIGHTS, (64, 3, 64, 128))
    message = refused(path, r"weight\.bin: the blob at offset 64 holds 64 uint8 elements")
    assert f"const 'w0' of function 'main' is {dtype} of shape {list(shape)}" in message


def test_values_in_a_file_that_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, (64, "uint8", (64,)))
    blob_file(path / WEIGHTS, (64, 3, 64, 128))

    def make_list(model: Any) -> None:
        (value,) = stored_values(model)
        value.type.listType.type.CopyFrom(tensor_type("uint8", (64,)))

    edit(path, make_list)
    refused(path, "is not a tensor of known shape")


@pytest.mark.parametrize("padding", [1, 8, 1 << 63])
def test_padding_beyond_the_data(tmp_path: Path, padding: int) -> None:
    raw = bytearray(256)
    struct.pack_into("<II", raw, 0, 1, 2)
    struct.pack_into("<IIQQQ", raw, 64, SENTINEL, 9, 0, 128, padding)
    (tmp_path / "w.bin").write_bytes(raw)
    with pytest.raises(ModelFormatError, match="padding bits"):
        BlobReader(tmp_path / "w.bin").read(64)


def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """A weight file with a hole: nothing of it is read or written but two blobs."""
    path = tmp_path / "a.mlpackage"
    far = (5 << 30) + 64
    package_of_blobs(path, (64, "uint8", (32,)), (far, "uint8", (32,)))
    blob_file(path / WEIGHTS, (64, 3, 32, 128))
    with open(path / WEIGHTS, "r+b") as file:
        file.write(struct.pack("<I", 2))
        file.seek(far)
        file.write(struct.pack("<IIQQQ32x", SENTINEL, 3, 32, far + 64, 0) + bytes(range(32)))
    package = open_package(path)
    first, second = package.programs[0].constants()
    np.testing.assert_array_equal(first.value(), np.zeros(32))
    np.testing.assert_array_equal(second.value(), np.arange(32))
    with PackageWriter(package, tmp_path / "out") as writer:
        output = writer.finish()
    assert (output / WEIGHTS).stat().st_size < 1024
    _, again = open_package(output).programs[0].constants()
    np.testing.assert_array_equal(again.value(), np.arange(32))


# --- the model ------------------------------------------------------------------------------------


def first_body(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def rename_opset(model: Any, name: str, *, body: bool) -> None:
    function = model.mlProgram.functions["main"]
    if body:
        function.block_specializations[name].CopyFrom(first_body(model))
    function.opset = name


def nest(model: Any, depth: int) -> None:
    block = first_body(model)
    for _ in range(depth):
        block = block.operations.add(type="cond").blocks.add()


def nest_values(model: Any, depth: int) -> None:
    value = first_body(model).operations.add(type="const").attributes["val"]
    for _ in range(depth):
        value = value.immediateValue.list.values.add()


def damage_immediate(model: Any, change: Callable[[Any], Any]) -> None:
    op = first_body(model).operations.add(type="const")
    op.attributes["name"].CopyFrom(string_value("hurt"))
    value = immediate_value(np.zeros((2, 2), np.float32))
    change(value)
    op.attributes["val"].CopyFrom(value)


def set_type(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    value.type.CopyFrom(tensor_type(dtype, shape))


MODELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "newer version": (
        lambda m: setattr(m, "specificationVersion", 99),
        "model: specification version 99 belongs to no known target",
    ),
    "no version": (lambda m: setattr(m, "specificationVersion", 0), "specification version 0"),
    "unknown opset": (
        lambda m: rename_opset(m, "CoreML99", body=True),
        "function 'main' has the unknown opset 'CoreML99'; known are CoreML5",
    ),
    "no body": (
        lambda m: rename_opset(m, "CoreML7", body=False),
        r"'main' has opset 'CoreML7' but bodies only for \['CoreML5'\]",
    ),
    "deep blocks": (lambda m: nest(m, 200), "not a readable model"),
    "deep values": (lambda m: nest_values(m, 200), "not a readable model"),
    "few elements": (
        lambda m: damage_immediate(m, lambda v: set_type(v, "fp32", (5,))),
        "const 'hurt' of function 'main': .* takes 5 elements, got 4",
    ),
    "absurd shape": (
        lambda m: damage_immediate(m, lambda v: set_type(v, "fp32", (1 << 63, 1 << 63, 4))),
        "takes 3402823669209384634633746074317682114\\d\\d elements, got 4",
    ),
    "many dimensions": (
        lambda m: damage_immediate(m, lambda v: set_type(v, "fp32", (1 << 63,) * 100_000)),
        "100000 dimensions; at most 32",
    ),
    "unknown type": (
        lambda m: damage_immediate(m, lambda v: setattr(v.type.tensorType, "dataType", 77)),
        "const 'hurt' of function 'main': unknown element type 77",
    ),
    "list in a tensor": (
        lambda m: damage_immediate(m, lambda v: v.immediateValue.list.SetInParent()),
        "a list is stored where the type is tensorType",
    ),
    "wrong field": (
        lambda m: damage_immediate(m, lambda v: set_type(v, "string", (2, 2))),
        "floats cannot hold string elements",
    ),
    "packed in floats": (
        lambda m: damage_immediate(m, lambda v: set_type(v, "uint4", (8,))),
        "floats cannot hold uint4 elements",
    ),
    "unknown type in a file": (
        lambda m: setattr(stored_values(m)[0].type.tensorType, "dataType", 77),
        "of function 'main': .*unknown element type 77",
    ),
    "weights that are the model": (
        lambda m: setattr(
            stored_values(m)[0].blobFileValue, "fileName", "@model_path/./model.mlmodel"
        ),
        "not stay inside the package; allowed is .* that is not the model itself",
    ),
    "a long name": (
        lambda m: setattr(stored_values(m)[0].blobFileValue, "fileName", "x" * 100_000),
        "not stay inside",
    ),
    "a name too long": (
        lambda m: setattr(
            stored_values(m)[0].blobFileValue, "fileName", "@model_path/" + "x" * 1000
        ),
        "name too long",
    ),
}


@pytest.mark.parametrize("damage", MODELS)
def test_damaged_models(source: Path, damage: str) -> None:
    change, match = MODELS[damage]
    edit(source, change)
    refused(source, match)


@pytest.mark.parametrize("version", [1, 5, 6, 7])
def test_a_version_older_than_the_opset(source: Path, version: int) -> None:
    """The opset says what the operations are; what is read and written has a version that fits."""
    edit(source, lambda m: rename_opset(m, "CoreML6", body=True))
    edit(source, lambda m: setattr(m, "specificationVersion", version))
    (program,) = open_package(source).programs
    assert (program.declared_version, program.specification_version) == (version, 7)


def test_a_body_that_nobody_reads(source: Path, tmp_path: Path) -> None:
    """It is copied where it can be, and left out where it refers to what is not there."""

    def add(model: Any) -> None:
        bodies = model.mlProgram.functions["main"].block_specializations
        for opset in ("CoreML9", "Future1"):
            bodies[opset].CopyFrom(first_body(model))

    def spoil(model: Any) -> None:
        bodies = model.mlProgram.functions["main"].block_specializations
        for op in bodies["Future1"].operations:
            op.attributes["val"].blobFileValue.offset = 1 << 40

    edit(source, add)
    package = open_package(source)
    assert package.dropped_bodies == []
    edit(source, spoil)
    package = open_package(source)
    assert package.dropped_bodies == [("", "main", "Future1")]
    with PackageWriter(package, tmp_path / "out") as writer:
        output = open_package(writer.finish())
    function = output.programs[0].message.functions["main"]
    assert sorted(function.block_specializations) == ["CoreML5", "CoreML9"]
    assert output.dropped_bodies == []


def test_numbers_of_other_types() -> None:
    """What a field of another type holds is read where nothing of it is lost."""
    value = immediate_value(np.float32([1, -3]))
    set_type(value, "int32", (2,))
    assert read_immediate(value).tolist() == [1, -3]
    value = immediate_value(np.int32([0, 5]))
    set_type(value, "bool", (2,))
    assert read_immediate(value).tolist() == [False, True]
    value = immediate_value(np.frombuffer(b"\x21\x43\x65\x87", np.uint8), "uint4", (8,))
    set_type(value, "uint4", (3,))
    assert read_immediate(value).tolist() == [0x21, 0x43]
    set_type(value, "uint4", (9,))
    with pytest.raises(ModelFormatError, match="takes 5 packed bytes, got 4"):
        read_immediate(value)


def test_integers_that_their_type_cannot_hold() -> None:
    value = immediate_value(np.float32([1, np.nan]))
    set_type(value, "int32", (2,))
    with pytest.raises(ModelFormatError, match=r"here: floats hold .* that int32 elements cannot"):
        read_immediate(value, "here")
    value = immediate_value(np.int32([1, 300]))
    set_type(value, "int8", (2,))
    with pytest.raises(ModelFormatError, match="ints hold numbers that int8 elements cannot"):
        read_immediate(value)
    value = immediate_value(np.float64([1, 1e300]))
    set_type(value, "fp16", (2,))
    assert read_immediate(value).tolist() == [1, np.inf]


def test_a_model_in_memory_that_is_nested_too_deep(source: Path) -> None:
    """One that no file can hold: it is found before anything overflows the stack."""
    spec = Model.FromString((source / MODEL).read_bytes())
    nest_values(spec, 3000)

    class Loaded:
        package_path = str(source)

        def get_spec(self) -> Any:
            return spec

    with pytest.raises(ModelFormatError, match="nested too deep"):
        open_package(Loaded())


def test_names_that_are_repeated_or_used_too_early(source: Path) -> None:
    def confuse(model: Any) -> None:
        block = first_body(model)
        block.operations[-1].outputs.add().CopyFrom(block.operations[0].outputs[0])
        op = block.operations.add(type="add")
        op.inputs["x"].arguments.add().name = "later"
        op.inputs["y"].arguments.add()
        op.outputs.add(name="later")
        block.outputs.append("nowhere")

    edit(source, confuse)
    (program,) = open_package(source).programs
    nodes = program.nodes()
    assert nodes[-1].inputs == {"x": (None,), "y": (None,)}
    assert len(program.constants(nodes)) > 3


@pytest.mark.long
def test_memory_of_a_damaged_model_follows_its_size(tmp_path: Path) -> None:
    """Elements of no content are the smallest messages there are: two bytes each in the file."""
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path)
    spec = Model.FromString((path / MODEL).read_bytes())
    block = spec.mlProgram.functions["main"].block_specializations["CoreML6"]
    block.operations.add().blocks.add()
    # Field 3 (operations) of the block, empty, many times.
    empty = b"\x1a\x00" * 500_000
    grown = Model.FromString(spec.SerializeToString())
    grown.mlProgram.functions["main"].block_specializations["CoreML6"].MergeFromString(empty)
    (path / MODEL).write_bytes(grown.SerializeToString())
    size = (path / MODEL).stat().st_size
    assert 1_000_000 < size < 1_010_000
    imports = "from mlopt.mil.opening import open_package"
    opened = peak_memory(imports, "p = open_package(sys.argv[1])", path)
    assert opened < 150 * size
    code = "for p in open_package(sys.argv[1]).programs: p.constants()"
    assert opened < peak_memory(imports, code, path) < 600 * size


# --- the manifest ---------------------------------------------------------------------------------

ENTRY = '"itemInfoEntries": {"a": {"path": %s}}'
MANIFESTS = {
    "huge": (b" " * (1 << 20) + b"{}", "has 1048578 bytes; at most 1048576"),
    "deep": (b"[" * 100_000, "manifest cannot be read"),
    "deep object": (b'{"a":' * 100_000, "manifest cannot be read"),
    "UTF-16": ("{}".encode("utf-16"), "manifest cannot be read"),
    "not UTF-8": (b'{"a": "\xff"}', "manifest cannot be read"),
    "a list": (b"[]", "names no root model"),
    "a number": (b"1", "names no root model"),
    "a list of entries": (
        b'{"rootModelIdentifier": 0, "itemInfoEntries": [{"path": "a"}]}',
        "names no root model",
    ),
    "a list as key": (b'{"rootModelIdentifier": [], "itemInfoEntries": {}}', "names no root"),
    "a number as path": (b'{"rootModelIdentifier": "a", ' + ENTRY.encode() % b"3}", "no root"),
    "a number as entry": (b'{"rootModelIdentifier": "a", "itemInfoEntries": {"a": 3}}', "no root"),
    "the last one is none": (
        b'{"rootModelIdentifier": "a", %s, "rootModelIdentifier": "b"}'
        % (ENTRY.encode() % b'"com.apple.CoreML/model.mlmodel"'),
        "names no root",
    ),
    "many repeated": (
        b"{" + b",".join(b'"%d": 0' % (i // 2) for i in range(60_000)) + b"}",
        "names no root",
    ),
    "long integer": (b'{"a": ' + b"1" * 10_000 + b"}", "manifest cannot be read"),
}
PATHS = {
    "": "leaves the package",
    ".": "leaves the package",
    "/etc/passwd": "leaves the package",
    "../Manifest.json": "leaves the package",
    "com.apple.CoreML/../../x": "leaves the package",
    "com.apple.CoreML": "it is a folder where a file is expected",
    "com.apple.CoreML/absent": "that the manifest names is missing",
    "com.apple.CoreML/model.mlmodel/x": "that the manifest names is missing",
    "a\0b": "cannot be a path",
    "\ud800": "cannot be a path",
    "x" * 5000: "model file cannot be read",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_damaged_manifests(source: Path, kind: str) -> None:
    content, match = MANIFESTS[kind]
    (source / "Manifest.json").write_bytes(content)
    refused(source, match)


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_the_root_model(source: Path, path: str) -> None:
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": path}}}
    (source / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFormatError, match=PATHS[path]):
        open_package(source)


def test_a_manifest_with_a_byte_order_mark(source: Path) -> None:
    content = (source / "Manifest.json").read_text()
    (source / "Manifest.json").write_text(content, encoding="utf-8-sig")
    open_package(source)


def test_the_last_of_a_repeated_key_counts(source: Path, ct: Any) -> None:
    """As for coremltools."""
    content = (source / "Manifest.json").read_text().lstrip()
    repeated = '{"rootModelIdentifier": "x", "itemInfoEntries": {}, ' + content.removeprefix("{")
    (source / "Manifest.json").write_text(repeated)
    package = open_package(source)
    assert package.manifest is not None
    assert package.manifest.repeated == ("itemInfoEntries", "rootModelIdentifier")
    assert (source / "Manifest.json").read_text() == repeated
    assert ct.utils.load_spec(str(source)) == package.spec  # which writes the manifest again


# --- what is no file ------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    # The name of a socket is short, wherever the tests run.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.skipif(os.name == "nt", reason="Windows has none of these")
@pytest.mark.parametrize("name", [WEIGHTS, MODEL, "Manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "link to a device"])
def test_no_file_where_one_is_expected(source: Path, name: str, kind: str) -> None:
    path = source / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        make_socket(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
        refused(
            source, f"{path.name}: it is a link to /dev/zero, a device where a file is expected"
        )
        return
    else:
        try:
            os.mknod(path, 0o020666, os.makedev(1, 5))
        except OSError:
            pytest.skip("not allowed to make devices")
    refused(source, f"{path.name}: it is a {kind} where a file is expected")


@pytest.mark.parametrize("name", [WEIGHTS, MODEL, "Manifest.json", str(Path(WEIGHTS).parent)])
def test_links_that_lead_out(source: Path, tmp_path: Path, name: str) -> None:
    """Several packages may share a file; an output has its own, and the shared one stays."""
    target = tmp_path / "elsewhere"
    (source / name).rename(target)
    (source / name).symlink_to(target)
    package = open_package(source)
    (inner,) = package.links
    read = WEIGHTS if name == str(Path(WEIGHTS).parent) else name
    assert (str(inner), package.links[inner].is_relative_to(target)) == (read, True)
    before = {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}
    values = [c.value() for c in package.programs[0].constants()]
    for output in (tmp_path / "out.mlpackage", source):
        with PackageWriter(open_package(source), output) as writer:
            writer.finish()
        assert not any(p.is_symlink() for p in output.rglob("*"))
        assert open_package(output).links == {}
        for old, new in zip(values, open_package(output).programs[0].constants(), strict=True):
            np.testing.assert_array_equal(old, new.value())
    assert before == {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}


def test_other_files_of_a_shared_folder_are_not_copied(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    (source / WEIGHTS).parent.rename(folder)
    (folder / "private.txt").write_text("secret")
    (source / WEIGHTS).parent.symlink_to(folder)
    with PackageWriter(open_package(source), tmp_path / "out") as writer:
        output = writer.finish()
    assert [p.name for p in (output / WEIGHTS).parent.iterdir()] == ["weight.bin"]
    open_package(output)


def test_a_loop_of_links(source: Path) -> None:
    for name in (WEIGHTS, MODEL, "Manifest.json"):
        content = (source / name).read_bytes()
        (source / name).unlink()
        (source / name).symlink_to("other")
        (source / name).with_name("other").symlink_to(Path(name).name)
        refused(source, r"[Tt]oo many levels of symbolic links")
        (source / name).unlink()
        (source / name).with_name("other").unlink()
        (source / name).write_bytes(content)


def test_an_output_in_the_place_of_what_is_linked_to(source: Path, tmp_path: Path) -> None:
    """The package that the source borrows its weights from is not replaced."""
    lender = Path(shutil.copytree(source, tmp_path / "lender.mlpackage"))
    (source / WEIGHTS).unlink()
    (source / WEIGHTS).symlink_to(lender / WEIGHTS)
    with pytest.raises(DestinationError, match=r"weight\.bin is a link to .*lender"):
        PackageWriter(open_package(source), lender)


def test_earlier_outputs_that_share_a_file_are_replaced_without_it(
    source: Path, tmp_path: Path
) -> None:
    """Whether by a link or as another name of the same file."""
    shared = Path(shutil.copy(source / WEIGHTS, tmp_path / "shared.bin"))
    before = shared.read_bytes()
    for link in (os.symlink, os.link):
        output = Path(shutil.copytree(source, tmp_path / f"{link.__name__}.mlpackage"))
        for name, target in ((WEIGHTS, shared), (MODEL, tmp_path / "shared.mlmodel")):
            if not target.exists():
                shutil.copy(source / name, target)
            (output / name).unlink()
            link(target, output / name)
        package = open_package(source)
        first_body(package.spec).attributes["more"].CopyFrom(string_value("changed"))
        with PackageWriter(package, output) as writer:
            writer.add_blob("uint8", np.arange(64, dtype=np.uint8), (64,))
            writer.finish()
        assert shared.read_bytes() == before
        assert (tmp_path / "shared.mlmodel").read_bytes() == (source / MODEL).read_bytes()
        assert (output / WEIGHTS).read_bytes() != before


def test_links_that_lead_nowhere(source: Path) -> None:
    for name in (WEIGHTS, MODEL, "Manifest.json"):
        content = (source / name).read_bytes()
        for target in (Path(name).name, "absent"):
            (source / name).unlink()
            (source / name).symlink_to(target)
            refused(source, r"cannot be (opened|read)|is missing")
        (source / name).unlink()
        (source / name).write_bytes(content)
    open_package(source)


def test_a_compiled_model(tmp_path: Path) -> None:
    path = tmp_path / "a.mlmodelc"
    path.mkdir()
    (path / "coremldata.bin").write_bytes(b"")
    refused(path, r"compiled model \(\.mlmodelc\).* the \.mlpackage that it was compiled from")


def test_a_name_that_no_file_can_have() -> None:
    for name in ("a\0b", "x" * 10_000):
        with pytest.raises(ModelFormatError, match="does not exist"):
            open_package(name)


def test_a_missing_and_an_extra_weight_file(source: Path, tmp_path: Path) -> None:
    extra = (source / WEIGHTS).with_name("extra.bin")
    extra.write_bytes(b"extra")
    with PackageWriter(open_package(source), tmp_path / "out") as writer:
        output = writer.finish()
    assert (output / WEIGHTS).with_name("extra.bin").read_bytes() == b"extra"
    (source / WEIGHTS).unlink()
    refused(source, "every weight file that its program names")


def test_a_file_that_shrinks_while_it_is_opened(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing beyond the end of a file is mapped: reading it would end the process."""
    from mlopt.mil import blob

    mapped = blob.mmap.mmap  # type: ignore[attr-defined]

    def shrink(number: int, length: int, **kwargs: Any) -> Any:
        os.truncate(source / WEIGHTS, 64)
        return mapped(number, length, **kwargs)

    monkeypatch.setattr(blob.mmap, "mmap", shrink)  # type: ignore[attr-defined]
    refused(source, r"weight\.bin: the weight file cannot be opened")


def test_values_without_elements() -> None:
    """Zero elements are sound, in the message and in a file."""
    value = Value.FromString(immediate_value(np.zeros((0, 5), np.float16)).SerializeToString())
    assert read_immediate(value).shape == (0, 5)


def test_a_blob_without_elements(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    package_of_blobs(path, (64, "fp16", (0, 5)))
    (path / WEIGHTS).parent.mkdir()
    with open(path / WEIGHTS, "w+b") as file, BlobWriter(file) as writer:
        assert writer.add("fp16", b"") == 64
    (constant,) = open_package(path).programs[0].constants()
    assert constant.value().shape == (0, 5)
