"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` at the end of the block.

    Until then, and after an error in the block, an earlier file there is what it was. The new one
    has its access rights, but is another file: of its own owner, and other names of the earlier one
    stay with that. A link is followed. What cannot be replaced is written to directly: what is not
    a regular file, such as a pipe or a terminal, and a file in a folder that takes no other.

    Raises
    ------
    OSError
        It cannot be written, or the earlier file may not be.
    """
    # before links are followed: that of /dev/stdout names no file where it is a pipe
    if os.path.exists(path) and not _can_be_replaced(path):
        with open(path, "wb") as direct:  # a folder, or what may not be written, is refused here
            yield direct
        return
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with _named(path):
        file = scratch.open("xb")
    try:
        with file:
            if path.exists():  # before there is anything to be read
                with contextlib.suppress(OSError):
                    shutil.copymode(path, scratch)
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _named(path):
            os.replace(scratch, path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def _can_be_replaced(path: str | os.PathLike[str]) -> bool:
    """Whether an existing file may be written, and another one may take its place."""
    real = os.path.realpath(path)
    is_file = os.path.isfile(path) and not _is_device(path) and not os.path.ismount(real)
    return is_file and os.access(real, os.W_OK) and os.access(os.path.dirname(real), os.W_OK)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file that was asked for."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _is_device(path: str | os.PathLike[str]) -> bool:
    """Whether a path stands for an open file, such as /dev/stdout, which must not be replaced."""
    return os.path.abspath(path).startswith(("/dev/", "/proc/"))


def write_whole_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write text as UTF-8, with ``\n`` at the ends of lines, as ``whole_file`` does.

    Raises
    ------
    OSError
        It cannot be written.
    """
    with whole_file(path) as file:
        file.write(text.encode())
