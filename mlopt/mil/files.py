"""Guarded access to the files of an untrusted package: inside it, regular, unchanged.

A package may come from anywhere, and a name in it may lead anywhere. coremltools makes none of
these checks; each one prevents some harm that a package can do when it is opened, copied or shared:

- ``open_regular``: a pipe never answers, so the run hangs; opening a device may do something.
- ``read_regular``: a manifest or model of a hundred gigabytes fills the memory, and so does a file
  that grows while it is read.
- ``tree``: a link to a folder above itself, or a tree that links make huge, is copied until the
  disk is full; a link out of the package puts a private file of this machine into an output that
  is passed on.
- ``FileState``: a source that is written to meanwhile, by a training run or a download, gives an
  output made of two models.
- ``check_name``: the system refuses some names with errors that say nothing of the package.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import attrs

from mlopt.errors import ModelFormatError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
#: In a package. Real ones have three.
_MOST_FILES = 10_000


@attrs.frozen
class FileState:
    """Identity of a file that was read: its inode, size and modification time."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state in a result of ``os.stat`` or ``os.fstat``."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def open_regular(path: str | os.PathLike[str]) -> tuple[BinaryIO, FileState]:
    """Open a regular file for reading; its state is that of what was opened.

    Raises
    ------
    ModelFormatError
        It is something else: a folder, a pipe, a device.
    OSError
        It cannot be opened.
    """
    # Looked at before it is opened: opening a pipe waits, and opening a device may do something.
    _check_regular(path, os.stat(path).st_mode)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")  # noqa: SIM115  (the caller's to close)
    try:
        status = os.fstat(file.fileno())
        _check_regular(path, status.st_mode)
    except BaseException:
        file.close()
        raise
    return file, FileState.of(status)


def read_regular(path: str | os.PathLike[str], limit: int) -> tuple[bytes, FileState]:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises
    ------
    ModelFormatError
        It is larger, or not a regular file.
    OSError
        It cannot be read.
    """
    file, state = open_regular(path)
    with file:
        if state.size > limit:
            raise ModelFormatError(
                f"{os.fspath(path)}: the file has {state.size} bytes; at most {limit} can be "
                "read. It is damaged, or not part of a model."
            )
        # Not up to the end of the file: it may be growing.
        return file.read(state.size), state


def resolved(root: Path, inner: PurePosixPath) -> tuple[Path, Path | None]:
    """Return ``root / inner``, and the target of links if they lead out of the package.

    The target is None for a file in the package, and for a file of a download cache, which has
    files in a folder ``blobs`` and packages that link there in a folder ``snapshots`` next to it.
    """
    path = root / inner
    home = Path(os.path.realpath(root))
    allowed = [home, *(p.parent / "blobs" for p in home.parents if p.name == "snapshots")]
    real = Path(os.path.realpath(path))
    inside = any(real.is_relative_to(folder) for folder in allowed)
    return path, None if inside else real


def tree(
    root: Path, parts: Collection[PurePosixPath] = ()
) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Return the folders and files below ``root``, relative to it; links are followed.

    Folders come before what they hold, names in order.

    Parameters
    ----------
    parts
        Files that are read by name: the model, the manifest, weight files. They may be links that
        lead out of the package, or lie in folders that are; such a folder is neither followed nor
        returned, and neither is what it holds.

    Raises
    ------
    ModelFormatError
        Something else leads out of the package (harm: a copy would disclose files from elsewhere)
        or in a circle, is neither file nor folder, or cannot be read; or there are too many.
    """
    folders: list[PurePosixPath] = []
    files: list[PurePosixPath] = []
    # With the real folders above each: a folder below itself has no end.
    waiting: list[tuple[PurePosixPath, tuple[str, ...]]] = [(PurePosixPath(), ())]
    while waiting:
        inner, above = waiting.pop()
        path = root / inner
        try:
            real = os.path.realpath(path)
            if real in above:
                raise ModelFormatError(f"{path}: a link leads in a circle, to {real}")
            names = sorted(os.listdir(path))
        except OSError as error:
            raise ModelFormatError(f"{path}: the folder cannot be read: {error}") from error
        if inner.parts:
            folders.append(inner)
        below = []
        for name in names:
            if _leads_out(root, inner / name, parts):
                continue
            try:
                mode = os.stat(path / name).st_mode
            except OSError as error:
                raise ModelFormatError(f"{path / name}: it cannot be read: {error}") from error
            if stat.S_ISDIR(mode):
                below.append((inner / name, (*above, real)))
            else:
                _check_regular(path / name, mode)
                files.append(inner / name)
        waiting += reversed(below)
        if len(folders) + len(files) + len(waiting) > _MOST_FILES:
            raise ModelFormatError(
                f"{root}: the package has more than {_MOST_FILES} files and folders, counting "
                "what links lead to; it is damaged, or not a model package"
            )
    return folders, files


def _leads_out(root: Path, inner: PurePosixPath, parts: Collection[PurePosixPath]) -> bool:
    """Return whether it is a folder outside the package that holds some of the parts.

    Raises
    ------
    ModelFormatError
        It leads out, and is neither such a folder nor one of the parts.
    """
    path, real = resolved(root, inner)
    if real is None or inner in parts:
        return False
    if any(inner in part.parents for part in parts):
        return True
    raise ModelFormatError(
        f"{path}: a link leads out of the package, to {real}; allowed are links to what is inside, "
        "and links in place of the model and of weight files. Copy the package with its links "
        "resolved if you trust what they lead to."
    )


def check_name(name: str) -> None:
    """Check that ``name`` can be passed to the file system.

    Raises
    ------
    ValueError
        It holds a null character, or characters that cannot be encoded.
    """
    if "\0" in name:
        raise ValueError("a null character in a name")
    os.fsencode(name)


def _check_regular(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((what for is_kind, what in _KINDS if is_kind(mode)), "something else")
        link = f"a link to {os.path.realpath(path)}, " if os.path.islink(path) else ""
        raise ModelFormatError(f"{os.fspath(path)}: it is {link}{kind} where a file is expected")
