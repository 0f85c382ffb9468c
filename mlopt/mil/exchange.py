"""Atomic exchange of two folders' names, where operating system and file system support it.

This protects a process that loads the destination while it is replaced: with two renames there is a
moment at which nothing has its name, and a kill at that moment leaves it so until the next run.
Python has no function for it, so the system call is made through ``ctypes``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux: renameat2
_RENAME_SWAP = 2  # macOS: renamex_np
#: The system call is not there, or not on this file system.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def exchange(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Exchange the names of two existing files or folders on one file system.

    Returns False, having done nothing, if that cannot be done in one step.

    Raises
    ------
    OSError
        One of them is missing, or may not be renamed.
    """
    function = _system_call()
    if function is None:
        return False
    if function(os.fsencode(first), os.fsencode(second)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), os.fspath(first), None, os.fspath(second))


@cache
def _system_call() -> Any:
    """Return a function of two names as bytes that gives 0 or sets errno; None without one."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
            return lambda first, second: swap(first, second, _RENAME_SWAP)
        rename = library.renameat2
    except (OSError, TypeError, AttributeError):  # Windows, or an old C library
        return None
    text = ctypes.c_char_p
    rename.argtypes = [ctypes.c_int, text, ctypes.c_int, text, ctypes.c_uint]
    return lambda first, second: rename(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
