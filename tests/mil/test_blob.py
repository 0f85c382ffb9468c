"""The weight file, against coremltools' own reader and writer."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopt.errors import ModelFormatError
from mlopt.mil.blob import BlobReader, BlobWriter
from mlopt.mil.dtypes import BY_BLOB, dtype_named

# name here -> (name in coremltools' methods, dtype of the array it takes)
NATIVE = {
    "fp16": ("fp16", np.uint16),
    "fp32": ("float", np.float32),
    "int8": ("int8", np.int8),
    "int16": ("int16", np.int16),
    "int32": ("int32", np.int32),
    "uint8": ("uint8", np.uint8),
    "uint16": ("uint16", np.uint16),
    "uint32": ("uint32", np.uint32),
    "int4": ("int4", np.int8),
    "uint1": ("uint1", np.uint8),
    "uint2": ("uint2", np.uint8),
    "uint3": ("uint3", np.uint8),
    "uint4": ("uint4", np.uint8),
    "uint6": ("uint6", np.uint8),
}


@pytest.fixture(scope="module")
def native(ct: Any) -> Any:
    return pytest.importorskip("coremltools.libmilstoragepython")


def packed(elements: np.ndarray, bits: int) -> np.ndarray:
    """Pack the low ``bits`` bits of each element into one stream, slowly."""
    stream = np.array([(int(e) >> i) & 1 for e in elements for i in range(bits)], np.uint8)
    return np.packbits(stream, bitorder="little")


def samples(size: int) -> dict[str, np.ndarray]:
    """Return elements of each type as coremltools takes them."""
    rng = np.random.default_rng(size)
    result = {}
    for name, (_, dtype) in NATIVE.items():
        if name == "fp32":
            result[name] = rng.standard_normal(size).astype(np.float32)
        elif dtype_named(name).packed:
            low = -8 if name == "int4" else 0
            bits = dtype_named(name).bits
            result[name] = rng.integers(low, low + 2**bits, size).astype(dtype)
        else:
            info: Any = np.iinfo(dtype)
            result[name] = rng.integers(info.min, info.max, size, dtype, endpoint=True)
    return result


def write(path: Path, blobs: dict[str, np.ndarray]) -> list[int]:
    """Write blobs with our writer; return their offsets."""
    offsets = []
    with open(path, "w+b") as file, BlobWriter(file) as writer:
        for name, elements in blobs.items():
            dtype = dtype_named(name)
            data = packed(elements, dtype.bits) if dtype.packed else elements
            padding = data.size * 8 - elements.size * dtype.bits if dtype.packed else 0
            offsets.append(writer.add(name, data, padding))
    return offsets


@pytest.mark.parametrize("size", [1, 5, 10, 64, 65, 1000])
def test_file_equals_that_of_coremltools(native: Any, tmp_path: Path, size: int) -> None:
    blobs = samples(size)
    theirs = native._BlobStorageWriter(str(tmp_path / "theirs.bin"))
    expected = [getattr(theirs, f"write_{NATIVE[k][0]}_data")(v) for k, v in blobs.items()]
    del theirs

    assert write(tmp_path / "ours.bin", blobs) == expected
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


@pytest.mark.parametrize("size", [1, 11, 64])
def test_coremltools_reads_ours(native: Any, tmp_path: Path, size: int) -> None:
    blobs = samples(size)
    offsets = write(tmp_path / "w.bin", blobs)
    reader = native._BlobStorageReader(str(tmp_path / "w.bin"))
    for offset, (name, elements) in zip(offsets, blobs.items(), strict=True):
        found = getattr(reader, f"read_{NATIVE[name][0]}_data")(offset)
        np.testing.assert_array_equal(found, elements, err_msg=name)


@pytest.mark.parametrize("size", [1, 11, 64])
def test_we_read_coremltools(native: Any, tmp_path: Path, size: int) -> None:
    blobs = samples(size)
    writer = native._BlobStorageWriter(str(tmp_path / "w.bin"))
    offsets = [getattr(writer, f"write_{NATIVE[k][0]}_data")(v) for k, v in blobs.items()]
    del writer
    reader = BlobReader(tmp_path / "w.bin")
    assert reader.count == len(blobs)
    for offset, (name, elements) in zip(offsets, blobs.items(), strict=True):
        blob = reader.read(offset)
        assert (blob.dtype.name, blob.size) == (name, size)
        if blob.dtype.packed:
            np.testing.assert_array_equal(blob.data, packed(elements, blob.dtype.bits))
        else:
            np.testing.assert_array_equal(blob.array().view(elements.dtype), elements)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(BY_BLOB)), st.integers(0, 70), st.integers(0, 3)),
        max_size=12,
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, blobs: list[Any]) -> None:
    path = tmp_path_factory.mktemp("blob") / "w.bin"
    written: dict[int, Any] = {}
    keys = set()
    with open(path, "w+b") as file, BlobWriter(file) as writer:
        for number, size, seed in blobs:
            dtype = BY_BLOB[number]
            data = np.random.default_rng(seed).integers(0, 256, dtype.nbytes(size), np.uint8)
            padding = data.size * 8 - size * dtype.bits
            written[writer.add(dtype, data, padding)] = (dtype, data, size)
            keys.add((number, size, data.tobytes()))
    reader = BlobReader(path)
    assert reader.count == len(written) == len(keys)
    for offset, (dtype, data, size) in written.items():
        assert offset % 64 == 0
        blob = reader.read(offset)
        assert (blob.dtype, blob.size) == (dtype, size)
        np.testing.assert_array_equal(blob.data, data)


def test_equal_blobs_are_stored_once_and_near_equal_ones_twice() -> None:
    file = io.BytesIO()
    writer = BlobWriter(file)
    data = np.zeros(1 << 20, np.uint8)
    first = writer.add("uint8", data)
    assert writer.add("uint8", data.copy()) == first
    assert writer.add("int8", data) != first
    other = data.copy()
    other[300_001] = 1  # between the samples that the fingerprint takes
    second = writer.add("uint8", other)
    assert second != first
    assert writer.add("uint8", other) == second
    assert writer.add("uint8", data) == first
    assert writer.count == 3


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    (offset,) = write(tmp_path / "w.bin", {"fp32": np.arange(9999, dtype=np.float32)})
    reader = BlobReader(tmp_path / "w.bin")
    view = reader.read(offset).array()
    (tmp_path / "w.bin").unlink()
    reader.release(0, reader.size)
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, np.arange(9999))


def test_layouts_are_written_in_c_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    with open(tmp_path / "w.bin", "w+b") as file, BlobWriter(file) as writer:
        offset = writer.add("fp16", array.T)
        assert writer.add("fp16", array.T.copy()) == offset
    found = BlobReader(tmp_path / "w.bin").read(offset).array()
    np.testing.assert_array_equal(found, array.T.ravel())


@pytest.mark.parametrize(
    ("position", "content", "match"),
    [
        (64, b"\0\0\0\0", "no blob begins there"),
        (68, struct.pack("<I", 99), "unknown element type 99"),
        (72, struct.pack("<Q", 1 << 40), "end past the file"),
        (72, struct.pack("<Q", (1 << 64) - 1), "end past the file"),
        (80, struct.pack("<Q", 1 << 63), "end past the file"),
        (80, struct.pack("<Q", 129), "end past the file"),
    ],
)
def test_damaged_metadata(tmp_path: Path, position: int, content: bytes, match: str) -> None:
    path = tmp_path / "w.bin"
    write(path, {"fp32": np.arange(16, dtype=np.float32)})
    raw = bytearray(path.read_bytes())
    raw[position : position + len(content)] = content
    path.write_bytes(raw)
    with pytest.raises(ModelFormatError, match=match) as caught:
        BlobReader(path).read(64)
    assert str(path) in str(caught.value)
    assert "offset 64" in str(caught.value)


UNDEFINED = struct.pack("<5Q", 0x16B394090, 0x2BC7189F0, 0x1069F0D94, 0x2C1BD1930, (1 << 64) - 1)


@pytest.mark.parametrize("name", [n for n in NATIVE if not dtype_named(n).packed])
def test_undefined_words_mean_nothing(native: Any, tmp_path: Path, name: str) -> None:
    """coremltools 5 to 7 wrote what was in memory behind the data offset."""
    elements = samples(16)[name]
    (offset,) = write(tmp_path / "w.bin", {name: elements})
    raw = bytearray((tmp_path / "w.bin").read_bytes())
    raw[offset + 24 : offset + 64] = UNDEFINED
    (tmp_path / "w.bin").write_bytes(raw)
    theirs = getattr(
        native._BlobStorageReader(str(tmp_path / "w.bin")), f"read_{NATIVE[name][0]}_data"
    )
    blob = BlobReader(tmp_path / "w.bin").read(offset)
    assert (blob.size, blob.padding_bits, blob.has_undefined_words) == (16, 0, True)
    np.testing.assert_array_equal(blob.array().view(elements.dtype), theirs(offset))
    # Written again, it is the blob that it would be without them.
    write(tmp_path / "clean.bin", {name: elements})
    with open(tmp_path / "again.bin", "w+b") as file, BlobWriter(file) as writer:
        assert writer.add(name, elements) == writer.add(name, blob.data, blob.padding_bits)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "clean.bin").read_bytes()


def test_reserved_words_of_packed_types_mean_nothing(native: Any, tmp_path: Path) -> None:
    """But their padding does."""
    (offset,) = write(tmp_path / "w.bin", {"uint3": np.arange(5) % 8})
    raw = bytearray((tmp_path / "w.bin").read_bytes())
    raw[offset + 32 : offset + 64] = UNDEFINED[8:]
    (tmp_path / "w.bin").write_bytes(raw)
    blob = BlobReader(tmp_path / "w.bin").read(offset)
    assert (blob.size, blob.has_undefined_words) == (5, True)
    for padding in (0, 2, 3, 8, 16, 1 << 40):
        raw[offset + 24 : offset + 32] = struct.pack("<Q", padding)
        (tmp_path / "w.bin").write_bytes(raw)
        with pytest.raises(ModelFormatError, match=f"2 bytes less {padding} padding bits"):
            BlobReader(tmp_path / "w.bin").read(offset)
        with pytest.raises(RuntimeError):
            native._BlobStorageReader(str(tmp_path / "w.bin")).read_uint3_data(offset)


@pytest.mark.parametrize("spare", [1, 2, 3])
def test_bytes_behind_the_last_element_are_passed_over(
    native: Any, tmp_path: Path, spare: int
) -> None:
    (offset,) = write(tmp_path / "w.bin", {"fp32": np.arange(16, dtype=np.float32)})
    raw = bytearray((tmp_path / "w.bin").read_bytes())
    raw[offset + 8 : offset + 16] = struct.pack("<Q", 60 + spare)
    (tmp_path / "w.bin").write_bytes(raw)
    blob = BlobReader(tmp_path / "w.bin").read(offset)
    assert (blob.size, blob.nbytes, blob.spare) == (15, 60, spare)
    theirs = native._BlobStorageReader(str(tmp_path / "w.bin")).read_float_data(offset)
    np.testing.assert_array_equal(blob.array(), theirs)


@pytest.mark.parametrize("start", [0, 2, 65, 126, 129, 130])
def test_data_may_be_anywhere(native: Any, tmp_path: Path, start: int) -> None:
    """Also in the header, in its own metadata, and where no element is aligned."""
    (offset,) = write(tmp_path / "w.bin", {"fp32": np.linspace(1, 2, 64, dtype=np.float32)})
    raw = bytearray((tmp_path / "w.bin").read_bytes())
    raw[offset + 8 : offset + 24] = struct.pack("<QQ", 128, start)
    (tmp_path / "w.bin").write_bytes(raw)
    blob = BlobReader(tmp_path / "w.bin").read(offset)
    theirs = native._BlobStorageReader(str(tmp_path / "w.bin")).read_float_data(offset)
    np.testing.assert_array_equal(blob.array().view(np.uint32), theirs.view(np.uint32))
    assert blob.array().flags.aligned
    assert not blob.array().flags.writeable


@pytest.mark.parametrize("offset", [0, 32, 96, 160, 192, 1 << 40, (1 << 64) - 1])
def test_offsets_where_no_blob_begins(tmp_path: Path, offset: int) -> None:
    write(tmp_path / "w.bin", {"fp32": np.arange(16, dtype=np.float32)})
    with pytest.raises(ModelFormatError, match=f"offset {offset}"):
        BlobReader(tmp_path / "w.bin").read(offset)


@pytest.mark.parametrize("size", [0, 63, 64, 100, 130, 191])
def test_truncated_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "w.bin"
    write(path, {"fp32": np.arange(16, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelFormatError, match=r"w\.bin"):
        BlobReader(path).read(64)


def test_other_version_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(struct.pack("<II", 1, 1) + bytes(200))
    with pytest.raises(ModelFormatError, match="version 1"):
        BlobReader(tmp_path / "w.bin")
    with pytest.raises(ModelFormatError, match="cannot be opened"):
        BlobReader(tmp_path / "absent.bin")


@pytest.mark.parametrize(
    ("dtype", "nbytes", "padding"),
    [("bool", 8, 0), ("fp16", 3, 0), ("fp16", 2, 1), ("uint3", 1, 3)],
)
def test_writer_refuses_what_no_reader_could_read(dtype: str, nbytes: int, padding: int) -> None:
    with pytest.raises(ValueError, match=r"cannot hold|not a whole number|impossible"):
        BlobWriter(io.BytesIO()).add(dtype, bytes(nbytes), padding)


def test_large_blobs_are_copied_at_the_speed_of_the_disk(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 80 << 20, np.uint8)
    with open(tmp_path / "plain.bin", "wb") as file:
        start = time.perf_counter()
        file.write(data.data)
        plain = time.perf_counter() - start
    with open(tmp_path / "w.bin", "w+b") as file:
        start = time.perf_counter()
        with BlobWriter(file) as writer:
            writer.add("uint8", data)
        ours = time.perf_counter() - start
    assert ours < 5 * plain + 0.5  # a loose bound: the machine may be busy
