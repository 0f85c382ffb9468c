"""A package that is being edited: new values are stored, and old ones move with what is written."""

from __future__ import annotations

import json
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from mlopt.mil.blob import BlobPlaces
from mlopt.mil.dtypes import DType
from mlopt.mil.files import tree
from mlopt.mil.manifest import read_manifest
from mlopt.mil.messages import Value
from mlopt.mil.misplaced import MANIFEST
from mlopt.mil.package import Package
from mlopt.mil.program import MOVED
from mlopt.mil.value_store import DEFAULT_FILE, ValueStore


class EditedPackage(ValueStore):
    """A package whose messages are edited in place, and whose weight files are made anew.

    New values come from ``add_value`` or ``add_blob``, values that stay may be moved with ``keep``,
    and in the end all others move. A reference to a stored blob carries a mark in its offset until
    then, to distinguish it from references into the source.

    Parameters
    ----------
    package
        The opened source. Its messages belong to the output afterwards: it can be edited once.

    Raises
    ------
    ModelFormatError
        The source holds something that cannot be copied.
    """

    def __init__(self, package: Package) -> None:
        if package.written:
            raise ValueError("the package has been written already; open its source again")
        self.package = package
        names = package.source_weight_files
        parts = {package.model_path, PurePosixPath(MANIFEST), *map(package.files.path_of, names)}
        self._source_folders, self._source_files = tree(package.path, parts)
        # By weight file and place of the data: several metadata may refer to the same data.
        self._kept: dict[tuple[PurePosixPath, str, int, int, int], int] = {}
        self.default_file = DEFAULT_FILE if DEFAULT_FILE in names or not names else names[0]

    def keep(self, value: Value) -> None:
        """Copy the source's blob that ``value`` refers to, once, and refer to the copy.

        Nothing happens to a value that is in the message or has been stored already.
        """
        if value.WhichOneof("value") != "blobFileValue" or value.blobFileValue.offset >= MOVED:
            return
        reference = value.blobFileValue
        inner = self.package.files.path_of(reference.fileName)
        reader = self.package.files.reader_at(inner)
        blob = reader.read(reference.offset)
        key = (inner, blob.dtype.name, blob.data_offset, blob.nbytes, blob.padding_bits)
        if key not in self._kept:
            self._kept[key] = self._add(
                reference.fileName,
                blob.dtype,
                blob.data,
                blob.padding_bits,
                release=lambda start, nbytes: reader.release(blob.data_offset + start, nbytes),
            )
        reference.offset = self._kept[key]

    @abstractmethod
    def _blobs(self, file_name: str) -> BlobPlaces:
        """Return the blobs of a weight file as the model names it, begun on first use."""

    def _add(
        self,
        file_name: str,
        dtype: str | DType,
        data: Any,
        padding_bits: int,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        """Store a blob and return its offset, marked as one of the output's own."""
        return MOVED + self._blobs(file_name).add(dtype, data, padding_bits, release=release)

    def _move_values(self) -> None:
        """Move what still refers to the source, and remove all marks."""
        for name in self.package.source_weight_files:
            self._blobs(name)  # even if nothing is left in it: the old one is not copied then
        values = list(self.package.file_values())
        for value in values:
            self.keep(value)
        for value in values:
            value.blobFileValue.offset -= MOVED

    def _other_files(self, weight_files: Iterable[PurePosixPath]) -> Iterator[PurePosixPath]:
        """Yield every file of the source that has no new version."""
        renewed = {self.package.model_path, *weight_files}
        return (inner for inner in self._source_files if inner not in renewed)

    def _manifest(self, weight_files: Iterable[PurePosixPath]) -> bytes | None:
        """Return a manifest with entries for weights folders that it lacks; None if it lacks none.

        ``weight_files``: those of the output.
        """
        manifest = read_manifest(self.package.path)
        is_complete = True
        for inner in weight_files:
            folder = PurePosixPath(*inner.parts[1:]).parent
            paths = (e.get("path") for e in manifest.entries.values() if isinstance(e, dict))
            known = {path for path in paths if isinstance(path, str)}
            if str(folder) in known or any(str(parent) in known for parent in folder.parents):
                continue
            identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, str(folder))).upper()
            manifest.entries[identifier] = {
                "author": "com.apple.CoreML",
                "description": "CoreML Model Weights",
                "name": folder.name,
                "path": str(folder),
            }
            is_complete = False
        return None if is_complete else json.dumps(manifest.content, indent=4).encode()
