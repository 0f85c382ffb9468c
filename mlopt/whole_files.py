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
    has its access rights. A link is followed. What is not a regular file, such as a pipe or a
    terminal, is written to directly.

    Raises
    ------
    OSError
        It cannot be written.
    """
    # before links are followed: that of /dev/stdout names no file where it is a pipe
    if os.path.exists(path) and (not os.path.isfile(path) or _is_device(path)):
        with open(path, "wb") as direct:  # a folder is refused here
            yield direct
        return
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        file = scratch.open("xb")
    except OSError as error:  # named by the file that was asked for
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, scratch)
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


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
