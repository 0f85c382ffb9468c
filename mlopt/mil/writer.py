"""Writing a package: streamed to a folder next to its destination, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

from google.protobuf.message import EncodeError

from mlopt.errors import DestinationError, ModelFormatError
from mlopt.mil.blob import BlobWriter
from mlopt.mil.dtypes import DType
from mlopt.mil.edited import EditedPackage
from mlopt.mil.files import open_regular, resolved
from mlopt.mil.interrupts import interrupts_wait
from mlopt.mil.misplaced import MANIFEST
from mlopt.mil.package import Package
from mlopt.mil.staging import Staging, restore

_CHUNK = 4 << 20  # bytes of a file that are copied at a time


def check_destination(destination: str | os.PathLike[str]) -> Path:
    """Return the folder that a package written to ``destination`` will be; nothing is written.

    A missing extension is appended. A link is followed, so that it keeps pointing at the package.
    An earlier package that a killed run had moved aside is put back.

    Raises
    ------
    DestinationError
        The extension is not ``.mlpackage``, the parent folder is missing or cannot be written to,
        or something other than a model package is in the way.
    """
    path = Path(os.fspath(destination)).expanduser()
    if path.suffix == "":
        path = path.with_name(path.name + ".mlpackage")
    if path.suffix != ".mlpackage":
        raise DestinationError(
            f"{path}: a package's name must end in .mlpackage, not {path.suffix!r}"
        )
    try:
        return _checked(Path(os.path.realpath(path)))
    except OSError as error:
        raise cannot_write(path, error) from error
    except ValueError as error:
        if isinstance(error, DestinationError):
            raise
        raise DestinationError(f"{path}: a file cannot have that name: {error}") from None


def _checked(path: Path) -> Path:
    """Return ``path``, links resolved, once a package can be written there."""
    if not path.parent.is_dir():
        raise DestinationError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_symlink():
        raise DestinationError(f"{path}: the link leads in a circle; remove it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DestinationError(
            f"{path}: the folder {path.parent} cannot be written to; allow it, or choose another "
            "folder"
        )
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # refuses a name that is too long
    restore(path)
    if path.exists() and not (path / MANIFEST).is_file() and not _is_empty_folder(path):
        raise DestinationError(
            f"{path}: something other than a model package is in the way; remove it, or choose "
            "another name"
        )
    return path


class PackageWriter(EditedPackage):
    """Writer of an edited package to a destination; used as a context manager.

    While it is open, the messages of ``package.spec`` are edited in place: new values come from
    ``add_value`` or ``add_blob``, values that stay may be moved with ``keep``, and ``finish`` moves
    all others. A reference to a stored blob carries a mark in its offset until ``finish`` removes
    it, to distinguish it from references into the source. Leaving the context without ``finish``
    removes everything.

    The destination appears with ``finish``, complete, in one step; a package that was there before
    is removed afterwards. It may be the source itself. What a killed run left is removed by the
    next one to the same destination, see ``staging``. Several runs may write to one destination at
    once: each is complete, and the last one stays.

    Parameters
    ----------
    package
        The opened source. Its messages belong to the output afterwards: it can be written once.
    destination
        See ``check_destination``.

    Raises
    ------
    DestinationError
        See ``check_destination``; from every method: the output cannot be written, the disk is
        full. From ``finish`` on, an earlier output is as it was.
    ModelFormatError
        The source holds something that cannot be copied, or (``finish``) has changed meanwhile.
    """

    def __init__(self, package: Package, destination: str | os.PathLike[str]) -> None:
        super().__init__(package)
        self.destination = check_destination(destination)
        root = Path(os.path.realpath(package.path))
        if root in self.destination.parents or self.destination in root.parents:
            raise DestinationError(
                f"{self.destination}: the output and its source {root} lie inside each other; "
                "choose another folder"
            )
        self._staging = Staging(self.destination)
        self._check_links()
        # By path: a model may spell a file's name in two ways.
        self._files: dict[PurePosixPath, tuple[BinaryIO, BlobWriter]] = {}

    def __enter__(self) -> PackageWriter:
        self.package.written = True
        try:
            with interrupts_wait(), self._writing():
                self._staging.begin()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._clean_up()
        finally:
            # Again: an interrupt may have come before it was made to wait.
            self._clean_up()

    def finish(self) -> Path:
        """Move what still refers to the source, write everything else, and rename it into place.

        Returns the folder of the finished package.
        """
        self._move_values()
        with self._writing():
            for file, blobs in self._files.values():
                blobs.finish()
                _sync_file(file)
                file.close()
        self._write(self.package.model_path, self._message())
        self._copy_others()
        self._write_manifest()
        self._commit()
        return self.destination

    def _add(
        self,
        file_name: str,
        dtype: str | DType,
        data: Any,
        padding_bits: int,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        with self._writing():
            return super()._add(file_name, dtype, data, padding_bits, release)

    def _blobs(self, file_name: str) -> BlobWriter:
        inner = self.package.files.path_of(file_name)
        if inner not in self._files:
            with self._writing():
                file = self._create(inner, "w+b")
                self._files[inner] = (file, BlobWriter(file))
        return self._files[inner][1]

    def _check_links(self) -> None:
        """Check that no file of the source lies in the package that the output replaces.

        The link in the source would lead to another file afterwards.
        """
        for inner, real in self.package.links.items():
            if self.destination in real.parents:
                raise DestinationError(
                    f"{self.destination}: {self.package.path / inner} is a link to {real}, which "
                    "the output would replace; choose another name"
                )

    def _message(self) -> bytes:
        try:
            return bytes(self.package.spec.SerializeToString(deterministic=True))
        except (EncodeError, ValueError) as error:
            raise ModelFormatError(
                f"{self.package.path / self.package.model_path}: the model cannot be written as a "
                f"message: {error}"
            ) from error

    def _create(self, inner: PurePosixPath, mode: str = "wb") -> Any:
        """Open a new file of the output."""
        path = self._staging.folder / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, mode)

    def _write(self, inner: PurePosixPath, content: bytes) -> None:
        with self._writing(), self._create(inner) as file:
            file.write(content)
            _sync_file(file)

    def _copy_others(self) -> None:
        """Copy every file of the source that has no new version, byte for byte."""
        with self._writing():
            for inner in self._source_folders:
                (self._staging.folder / inner).mkdir(parents=True, exist_ok=True)
        for inner in self._other_files(self._files):
            self._copy(inner)

    def _copy(self, inner: PurePosixPath) -> None:
        path, _ = resolved(self.package.path, inner)
        try:
            source, state = open_regular(path)
            with source:
                parts = (source.read(_CHUNK) for _ in range(0, state.size, _CHUNK))
                self._write_parts(inner, parts)
        except OSError as error:
            raise ModelFormatError(f"{path}: the file cannot be read: {error}") from error

    def _write_parts(self, inner: PurePosixPath, parts: Iterator[bytes]) -> None:
        with self._writing():
            file = self._create(inner)
        try:
            for part in parts:
                with self._writing():
                    file.write(part)
            with self._writing():
                _sync_file(file)
        finally:
            with contextlib.suppress(OSError):  # what a full disk did not take
                file.close()

    def _write_manifest(self) -> None:
        """Add an entry for a weights folder to the copied manifest if the source had none."""
        content = self._manifest(self._files)
        if content is not None:
            self._write(PurePosixPath(MANIFEST), content)

    def _commit(self) -> None:
        """Rename the finished folder to the destination."""
        _sync_folders(self._staging.folder)
        self.package.check_unchanged()
        check_destination(self.destination)  # again: much time may have passed
        with interrupts_wait(), self._writing():
            self._staging.commit()
        _sync(self.destination.parent)

    def _clean_up(self) -> None:
        """Remove what is not, or is no longer, the output. It can be called twice."""
        with interrupts_wait():
            for file, _ in self._files.values():
                with contextlib.suppress(OSError):  # what a full disk did not take
                    file.close()
            self._staging.end()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert the system's errors while writing into ``DestinationError``."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.destination, error) from error


def cannot_write(destination: Path, error: OSError) -> DestinationError:
    """Return the error to raise when the system refuses to write at or near ``destination``."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
    return DestinationError(
        f"{destination}: the output cannot be written ({error.strerror or error}); {remedy}. "
        "An earlier output there is as it was."
    )


_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or choose another folder",
    errno.EDQUOT: "make room within the quota, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files, or choose another file system",
    errno.EACCES: "allow writing there, or choose another folder",
    errno.EPERM: "allow writing there, or choose another folder",
    errno.EROFS: "make it writable, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EBUSY: "other runs keep replacing it; let them finish first",
}


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sync_file(file: BinaryIO) -> None:
    """Flush a file to the disk. Some file systems report only now that there is no room."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def _sync(path: Path) -> None:
    """Flush a folder to the disk, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))
