"""Blob storage version 2, a package's weight file: read through a memory map, written as a stream.

All numbers are little-endian. The file begins with 64 bytes ``{u32 count, u32 version = 2,
zeros}``. Each blob begins at the next multiple of 64 with 64 bytes of metadata ``{u32 sentinel, u32
dtype, u64 bytes, u64 data offset, u64 padding bits, zeros}``, followed by its data. A model refers
to a blob by the offset of its metadata.

Before iOS18's types, writers left what follows the data offset uninitialised. It has a meaning only
for types narrower than a byte; it is written as zeros, and ignored for other types.

Each check says why it refuses: "no reader" where coremltools' own reader refuses as well, "harm"
where taking it could hurt the machine. What is merely odd is read, and the lint reports it.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import numpy as np

from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import BY_BLOB, BY_NAME, DType, dtype_named
from mlopt.mil.files import open_regular
from mlopt.mil.misplaced import LONGEST_POINTER, check_no_pointer

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2

_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ4Q")
METADATA_BYTES = _METADATA.size
_CHUNK = 4 << 20


@attrs.frozen(eq=False)
class Blob:
    """One blob of a mapped weight file.

    Attributes
    ----------
    dtype
        The type of its elements.
    data
        Its bytes as uint8[n], a read-only view of the mapped file.
    offset
        Offset of its metadata in the file, in bytes; what a model refers to.
    data_offset
        Offset of its data in the file, in bytes.
    padding_bits
        Unused bits at the end of the last byte; 0 unless elements are narrower than a byte.
    spare
        Bytes after the last whole element, which ``data`` leaves out; nearly always 0.
    has_undefined_words
        Whether its metadata has nonzero bytes in fields without a meaning.
    """

    dtype: DType
    data: np.ndarray
    offset: int
    data_offset: int
    padding_bits: int
    spare: int = 0
    has_undefined_words: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return int(self.data.size)

    @property
    def size(self) -> int:
        """Number of elements."""
        return (self.nbytes * 8 - self.padding_bits) // self.dtype.bits

    @property
    def is_aligned(self) -> bool:
        """Whether its data begins at a multiple of the size of an element."""
        assert self.dtype.numpy is not None
        return self.data_offset % self.dtype.numpy.itemsize == 0

    def array(self) -> np.ndarray:
        """Return the elements as a flat read-only view; packed bytes for a type below 8 bits.

        A copy if the data is not aligned: not every function accepts unaligned arrays.
        """
        assert self.dtype.numpy is not None
        if self.is_aligned:
            return self.data.view(self.dtype.numpy)
        copied = self.data.copy().view(self.dtype.numpy)
        copied.flags.writeable = False
        return copied

    def holds(self, dtype: DType, size: int) -> bool:
        """Return whether it holds ``size`` elements of ``dtype``, see ``stored_as``."""
        return self.dtype is stored_as(dtype) and self.size == size

    def elements(self, dtype: DType) -> np.ndarray:
        """Return the elements as those of ``dtype``, which it ``holds``; see ``array``."""
        if dtype is self.dtype:
            return self.array()
        # A view of bytes other than 0 and 1 is not a boolean array that numpy can work with.
        elements: np.ndarray = self.array().astype(dtype.numpy)
        elements.flags.writeable = False
        return elements


def stored_as(dtype: DType) -> DType:
    """Return the type of the blobs that hold elements of ``dtype``.

    Weight files have no booleans and no 64-bit numbers. coremltools keeps those in the model;
    other writers store booleans as uint8, int64 as int32 and fp64 as fp32.
    """
    return BY_NAME[_STORED_AS.get(dtype.name, dtype.name)]


_STORED_AS = {"bool": "uint8", "int64": "int32", "fp64": "fp32"}


class BlobReader:
    """A weight file, mapped read-only. Views stay valid after the file is renamed or removed.

    Raises
    ------
    ModelFormatError
        The file is missing or not a regular file, too short for its header, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            file, self.state = open_regular(self.path)
            with file:
                self.size = self.state.size
                if self.size < _HEADER.size:  # no reader
                    raise ModelFormatError(
                        f"{self.path}: the weight file has {self.size} bytes, its header alone "
                        f"takes {_HEADER.size}; it is truncated. Fetch or convert the model again."
                    )
                # With its size: what is mapped beyond the end of a file cannot be read.
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            if isinstance(error, ModelFormatError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise ModelFormatError(
                f"{self.path}: the weight file cannot be opened ({reason}). "
                "A model package needs every weight file that its program names."
            ) from error
        check_no_pointer(self.path, self._map[: LONGEST_POINTER + 1])
        #: The number of blobs that its header claims. It is not needed to find one.
        self.count, version = _HEADER.unpack_from(self._map)
        if version != VERSION:  # no reader
            raise ModelFormatError(
                f"{self.path}: blob storage version {version} at offset 4; only {VERSION} can "
                "be read. The file is damaged, or is not a weight file."
            )
        self._bytes = np.frombuffer(self._map, np.uint8)

    def read(self, offset: int) -> Blob:
        """Return the blob whose metadata is at ``offset`` (bytes); nothing is copied.

        Raises
        ------
        ModelFormatError
            There is no valid blob at the offset.
        """
        if offset + _METADATA.size > self.size:  # no reader
            raise self._damage(
                offset, f"the file has {self.size} bytes, so no blob can begin there"
            )
        sentinel, number, nbytes, data_offset, padding, *reserved = _METADATA.unpack_from(
            self._map, offset
        )
        if sentinel != SENTINEL:  # no reader
            raise self._damage(
                offset, f"no blob begins there: got {sentinel:#010x}, expected {SENTINEL:#010x}"
            )
        dtype = BY_BLOB.get(number)
        if dtype is None:  # no reader: it is asked for a type, and never for this one
            raise self._damage(
                offset, f"unknown element type {number}; known are {sorted(BY_BLOB)}"
            )
        if data_offset + nbytes > self.size:  # no reader
            raise self._damage(
                offset,
                f"its {nbytes} bytes of data at {data_offset} end past the file's {self.size} "
                "bytes",
            )
        undefined, spare = any(reserved), 0
        if dtype.packed:
            if not _fits(nbytes, padding, dtype):  # no reader
                raise self._damage(
                    offset,
                    f"{nbytes} bytes less {padding} padding bits are not a whole number of "
                    f"{dtype.name} elements",
                )
        else:
            undefined, padding = undefined or padding != 0, 0
            spare = nbytes % (dtype.bits // 8)
        data = self._bytes[data_offset : data_offset + nbytes - spare]
        return Blob(dtype, data, offset, data_offset, padding, spare, undefined)

    def release(self, start: int, nbytes: int) -> None:
        """Drop a range of the file, in bytes, from memory; a later access reads it again."""
        if nbytes <= 0 or not hasattr(self._map, "madvise") or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, min(start + nbytes, self.size) - first)

    def _damage(self, offset: int, what: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.path}: blob at offset {offset}: {what}. Fetch or convert the model again."
        )


class BlobPlaces(ABC):
    """Where the blobs of a new weight file come to lie, front to back; equal ones are stored once.

    Two blobs are equal when type, padding and every byte are. A checksum of a few samples finds
    candidates, which are then compared with what is there already: whole blobs are not hashed.

    Attributes
    ----------
    count
        The number of blobs.
    nbytes
        The size of the file so far.
    """

    def __init__(self) -> None:
        self.nbytes = _HEADER.size
        self.count = 0
        self._candidates: dict[tuple[int, ...], list[int]] = {}

    def add(
        self,
        dtype: str | DType,
        data: Any,
        padding_bits: int = 0,
        *,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        """Store a blob and return the offset of its metadata.

        Parameters
        ----------
        dtype
            The type of its elements, or that type's name.
        data
            An array or another object with C-contiguous bytes; packed bytes for types below 8 bits.
        padding_bits
            Unused bits at the end of the last byte (packed types only).
        release
            Called with (start, bytes) of each part of ``data`` that has been written, and for the
            whole at the end, so that the pages of a mapped file can be dropped.

        Raises
        ------
        ValueError
            A weight file cannot hold the type, or the bytes are not a whole number of elements.
        """
        kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
        view = _bytes_of(data)
        if kind.blob is None:
            raise ValueError(f"a weight file cannot hold {kind.name} elements")
        if padding_bits < 0 or (padding_bits and not kind.packed):
            raise ValueError(f"padding of {padding_bits} bits is impossible for {kind.name}")
        if not _fits(len(view), padding_bits, kind):
            raise ValueError(
                f"{len(view)} bytes less {padding_bits} padding bits are not a whole number of "
                f"{kind.name} elements"
            )
        fingerprint = (kind.blob, padding_bits, len(view), _sample_checksum(view))
        known = self._candidates.setdefault(fingerprint, [])
        offset = next((at for at in known if self._holds(at, view)), None)
        if offset is None:
            offset = self._place(len(view))
            self._store(offset, kind.blob, view, padding_bits, release)
            known.append(offset)
        if release is not None:
            release(0, len(view))
        return offset

    def _place(self, nbytes: int) -> int:
        """Return the offset of a new blob, which then is the last one; ``nbytes``: of its data."""
        offset = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = offset + _METADATA.size + nbytes
        self.count += 1
        return offset

    @abstractmethod
    def _store(
        self,
        offset: int,
        number: int,
        view: memoryview,
        padding_bits: int,
        release: Callable[[int, int], None] | None,
    ) -> None:
        """Store a blob of the type with a number, in its place."""

    @abstractmethod
    def _holds(self, offset: int, view: memoryview) -> bool:
        """Return whether the bytes of the blob at an offset begin with those of ``view``."""


class BlobWriter(BlobPlaces):
    """Writes a weight file from front to back; what is written is not kept in memory.

    Parameters
    ----------
    file
        An empty binary file, open for reading and writing ("w+b"). The caller closes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._end = file.write(_HEADER.pack(0, VERSION))

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> None:
        """Write the number of blobs into the header and flush."""
        self._file.seek(0)
        self._file.write(_HEADER.pack(self.count, VERSION))
        self._file.seek(self._end)
        self._file.flush()

    def _store(
        self,
        offset: int,
        number: int,
        view: memoryview,
        padding_bits: int,
        release: Callable[[int, int], None] | None,
    ) -> None:
        start = offset + _METADATA.size
        self._file.seek(self._end)
        self._file.write(bytes(offset - self._end))
        self._file.write(
            _METADATA.pack(SENTINEL, number, len(view), start, padding_bits, 0, 0, 0, 0)
        )
        for at in range(0, len(view), _CHUNK):
            part = view[at : at + _CHUNK]
            self._file.write(part)
            if release is not None:
                release(at, len(part))
        self._end = start + len(view)

    def _holds(self, offset: int, view: memoryview) -> bool:
        self._file.seek(offset + _METADATA.size)
        for at in range(0, len(view), _CHUNK):
            part = view[at : at + _CHUNK]
            written = np.frombuffer(self._file.read(len(part)), np.uint8)
            # numpy, because memoryviews are compared element by element.
            if not np.array_equal(written, np.frombuffer(part, np.uint8)):
                return False
        return True


def _fits(nbytes: int, padding_bits: int, dtype: DType) -> bool:
    """Return whether the bytes, without the padding, are a whole number of elements."""
    return (
        padding_bits < 8
        and padding_bits <= nbytes * 8
        and (nbytes * 8 - padding_bits) % dtype.bits == 0
    )


def _bytes_of(data: Any) -> memoryview:
    """Return the bytes of ``data``; copied only if an array is not C-contiguous."""
    if isinstance(data, np.ndarray):
        # Through uint8: memoryview does not know bfloat16, and refuses to cast empty arrays.
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _sample_checksum(view: memoryview) -> int:
    """Return a CRC-32 of head, tail and 64 pieces in between: at most 12 KiB are read."""
    if len(view) <= 12288:
        return zlib.crc32(view)
    checksum = zlib.crc32(view[-4096:], zlib.crc32(view[:4096]))
    step = len(view) // 65
    for at in range(step, 65 * step, step):
        checksum = zlib.crc32(view[at : at + 64], checksum)
    return checksum
