"""The size of a package that is edited and not written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlopt.mil.blob import BlobPlaces
from mlopt.mil.dtypes import DType, dtype_named
from mlopt.mil.edited import EditedPackage
from mlopt.mil.files import resolved
from mlopt.mil.misplaced import MANIFEST
from mlopt.mil.package import Package

Release: TypeAlias = "Callable[[int, int], None] | None"


def unknown(shape: Iterable[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array whose content is not known yet, and which takes no memory.

    A :class:`PackageSizer` counts it as equal to itself, and to no other array.
    """
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def is_unknown(data: Any) -> bool:
    """Return whether an array of two elements or more is one of :func:`unknown`, or a part."""
    return isinstance(data, np.ndarray) and data.size > 1 and not any(data.strides)


class BlobCounter(BlobPlaces):
    """Counts what a weight file would take. Blobs are compared while their arrays are referred to.

    Arrays are referred to until the end: those of a mapped file take no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stored: dict[int, memoryview] = {}
        self._unknown: dict[tuple[int, int, int], tuple[int, npt.NDArray[Any]]] = {}

    def add(
        self,
        dtype: str | DType,
        data: Any,
        padding_bits: int = 0,
        *,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        """Give a blob its place, and return the offset of its metadata; see ``BlobPlaces``."""
        if not is_unknown(data):
            return super().add(dtype, data, padding_bits, release=release)
        kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
        assert kind.blob is not None
        # the same element in memory: parts of one array
        key = kind.blob, data.nbytes, data.__array_interface__["data"][0]
        if key not in self._unknown:
            self._unknown[key] = self._place(data.nbytes), data
        return self._unknown[key][0]

    def _store(
        self, offset: int, number: int, view: memoryview, padding_bits: int, release: Release
    ) -> None:
        self._stored[offset] = view

    def _holds(self, offset: int, view: memoryview) -> bool:
        stored = self._stored[offset]
        return np.array_equal(np.frombuffer(stored, np.uint8), np.frombuffer(view, np.uint8))


class PackageSizer(EditedPackage):
    """Finds out how many bytes an edited package takes, by the way of a writer, without writing.

    What is stored may hold arrays of :func:`unknown`. Reads the blobs of the source as far as it
    takes to compare those that look equal.
    """

    def __init__(self, package: Package) -> None:
        super().__init__(package)
        package.written = True
        self._files: dict[PurePosixPath, BlobCounter] = {}

    def finish(self) -> int:
        """Move what still refers to the source, and return the bytes of all files."""
        self._move_values()
        package = self.package
        others = {
            inner: resolved(package.path, inner)[0].stat().st_size
            for inner in self._other_files(self._files)
        }
        manifest = self._manifest(self._files)
        if manifest is not None:
            others[PurePosixPath(MANIFEST)] = len(manifest)
        weights = sum(blobs.nbytes for blobs in self._files.values())
        return weights + int(package.spec.ByteSize()) + sum(others.values())

    def _blobs(self, file_name: str) -> BlobCounter:
        return self._files.setdefault(self.package.files.path_of(file_name), BlobCounter())
