"""Writing a package: streamed beside its destination, then renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from mlopt.errors import DestinationError
from mlopt.mil.blob import BlobWriter
from mlopt.mil.dtypes import DType, dtype_named
from mlopt.mil.package import Package
from mlopt.mil.program import MOVED
from mlopt.mil.values import file_value, make_value

_DEFAULT_FILE = "@model_path/weights/weight.bin"


def check_destination(destination: str | os.PathLike[str]) -> Path:
    """Return the folder that a package written to ``destination`` will have; nothing is written.

    A missing extension is appended. A link is followed, so that it goes on pointing at the package.

    Raises
    ------
    DestinationError
        The extension is not ``.mlpackage``, the parent folder is missing, or something that is no
        model package is in the way.
    """
    path = Path(os.fspath(destination)).expanduser()
    if path.suffix == "":
        path = path.with_name(path.name + ".mlpackage")
    if path.suffix != ".mlpackage":
        raise DestinationError(
            f"{path}: a package's name has to end in .mlpackage, not {path.suffix!r}"
        )
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise DestinationError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.exists() and not (path / "Manifest.json").is_file() and not _is_empty_folder(path):
        raise DestinationError(
            f"{path}: something that is no model package is in the way; remove it, or choose "
            "another name"
        )
    return path


class PackageWriter:
    """Writes an edited package to a destination; used as a context manager.

    While it is open, the messages of ``package.spec`` are edited in place: new values come from
    ``add_value`` or ``add_blob``, values that stay may be moved with ``keep``, and ``finish`` moves
    all others. A reference to a stored blob carries a mark in its offset until ``finish`` takes it
    off, which tells it from references into the source. Leaving the context without ``finish``
    removes everything.

    The destination appears with ``finish``, complete, by a rename; a package that was there before
    is removed afterwards, and put back if the rename fails. It may be the source itself.

    Parameters
    ----------
    package
        The opened source. Its messages belong to the output afterwards: it can be written once.
    destination
        See ``check_destination``.

    Raises
    ------
    DestinationError
        See ``check_destination``.
    """

    def __init__(self, package: Package, destination: str | os.PathLike[str]) -> None:
        if package.written:
            raise ValueError("the package has been written already; open its source again")
        self.package = package
        self.destination = check_destination(destination)
        self._token = secrets.token_hex(4)
        self._folder = self.destination.with_name(f".{self.destination.name}.{self._token}.tmp")
        root = Path(os.path.realpath(package.path))
        if root in self.destination.parents or self.destination in root.parents:
            raise DestinationError(
                f"{self.destination}: the output and its source {root} lie inside each other; "
                "choose another folder"
            )
        # By path: a model may spell the name of one file in two ways.
        self._files: dict[PurePosixPath, tuple[BinaryIO, BlobWriter]] = {}
        self._kept: dict[tuple[PurePosixPath, int], int] = {}
        names = package.source_weight_files
        #: The weight file that new values go to unless told otherwise.
        self.default_file = _DEFAULT_FILE if _DEFAULT_FILE in names or not names else names[0]

    def __enter__(self) -> PackageWriter:
        self.package.written = True
        self._folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_files()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_blob(
        self,
        dtype: str | DType,
        data: Any,
        shape: Sequence[int],
        *,
        file_name: str | None = None,
    ) -> Any:
        """Store a blob (equal ones once) and return the ``Value`` that refers to it.

        Parameters
        ----------
        dtype
            Element type or its name.
        data
            An array, or bytes; packed bytes for types narrower than a byte.
        shape
            Shape of the tensor.
        file_name
            The weight file as the model names it; None for ``default_file``.
        """
        kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
        size = int(np.prod(shape, dtype=np.int64))
        padding = kind.nbytes(size) * 8 - size * kind.bits
        nbytes = data.nbytes if isinstance(data, np.ndarray) else memoryview(data).nbytes
        if nbytes != kind.nbytes(size):
            raise ValueError(
                f"a {kind.name} tensor of shape {list(shape)} takes {kind.nbytes(size)} bytes, "
                f"got {nbytes}"
            )
        name = file_name or self.default_file
        return file_value(name, MOVED + self._blobs(name).add(kind, data, padding), kind, shape)

    def add_value(
        self,
        data: Any,
        dtype: str | DType | None = None,
        shape: Sequence[int] | None = None,
        *,
        specification_version: int,
        file_name: str | None = None,
    ) -> Any:
        """Return a ``Value`` of ``data``, stored where coremltools would: message or weight file.

        See ``values.make_value``.
        """
        name = file_name or self.default_file

        def add(kind: str, array: Any, padding: int) -> tuple[str, int]:
            return name, MOVED + self._blobs(name).add(kind, array, padding)

        return make_value(
            data, dtype, shape, specification_version=specification_version, add_blob=add
        )

    def keep(self, value: Any) -> None:
        """Copy the blob of the source that ``value`` refers to, once, and refer to the copy.

        Nothing happens to a value that is in the message or has been stored already.
        """
        if value.WhichOneof("value") != "blobFileValue" or value.blobFileValue.offset >= MOVED:
            return
        reference = value.blobFileValue
        key = (self.package.weight_path(reference.fileName), reference.offset)
        if key not in self._kept:
            reader = self.package.reader(reference.fileName)
            blob = reader.read(reference.offset)
            self._kept[key] = MOVED + self._blobs(reference.fileName).add(
                blob.dtype,
                blob.data,
                blob.padding_bits,
                release=lambda start, nbytes: reader.release(blob.data_offset + start, nbytes),
            )
        reference.offset = self._kept[key]

    def finish(self) -> Path:
        """Move what still refers to the source, write everything else, and rename it into place.

        Returns the folder of the finished package.
        """
        for name in self.package.source_weight_files:
            self._blobs(name)  # also where nothing is left in it: the old one is not copied then
        for value in self.package.file_values():
            self.keep(value)
        for value in self.package.file_values():
            value.blobFileValue.offset -= MOVED
        for file, blobs in self._files.values():
            blobs.finish()
            os.fsync(file.fileno())
        self._close_files()
        self._write(
            self.package.model_path, self.package.spec.SerializeToString(deterministic=True)
        )
        self._copy_others()
        self._write_manifest()
        _sync_folders(self._folder)
        self._commit()
        return self.destination

    def _blobs(self, file_name: str) -> BlobWriter:
        """Return the writer of a weight file, which is created at its first use."""
        inner = self.package.weight_path(file_name)
        if inner not in self._files:
            path = self._folder / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w+b")  # noqa: SIM115  (closed in _close_files)
            self._files[inner] = (file, BlobWriter(file))
        return self._files[inner][1]

    def _close_files(self) -> None:
        for file, _ in self._files.values():
            file.close()

    def _write(self, inner: PurePosixPath, content: bytes) -> None:
        path = self._folder / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _copy_others(self) -> None:
        """Copy every file of the source that has no new form, byte for byte."""
        root = self.package.path
        for folder, subfolders, names in os.walk(root, followlinks=True):
            subfolders.sort()
            target = self._folder / Path(folder).relative_to(root)
            target.mkdir(parents=True, exist_ok=True)
            for name in sorted(names):
                if not (target / name).exists():
                    shutil.copyfile(Path(folder, name), target / name)
                    _sync(target / name)

    def _write_manifest(self) -> None:
        """Enter a weights folder into the copied manifest where the source had none."""
        path = self._folder / "Manifest.json"
        manifest = json.loads(path.read_bytes())
        entries = manifest["itemInfoEntries"]
        for inner in self._files:
            folder = PurePosixPath(*inner.parts[1:]).parent
            known = {entry.get("path") for entry in entries.values() if isinstance(entry, dict)}
            if str(folder) in known or any(str(parent) in known for parent in folder.parents):
                continue
            identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, str(folder))).upper()
            entries[identifier] = {
                "author": "com.apple.CoreML",
                "description": "CoreML Model Weights",
                "name": folder.name,
                "path": str(folder),
            }
            self._write(PurePosixPath("Manifest.json"), json.dumps(manifest, indent=4).encode())

    def _commit(self) -> None:
        """Rename the finished folder to the destination, whose old content goes last."""
        old = self.destination.with_name(f".{self.destination.name}.{self._token}.old")
        replacing = self.destination.exists()
        try:
            if replacing:
                self.destination.rename(old)
            self._folder.rename(self.destination)
        except BaseException:
            # Also for an interrupt that arrived after the last rename: then nothing is left to
            # restore.
            if old.exists() and not self.destination.exists():
                old.rename(self.destination)
            raise
        finally:
            if old.exists() and self.destination.exists():
                shutil.rmtree(old, ignore_errors=True)
        _sync(self.destination.parent)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))
