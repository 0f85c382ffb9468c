"""Staging folders: an output is written to a hidden folder, then renamed to its destination.

Next to a destination ``X`` there may be ``.X.<token>.tmp``, which a run is writing or a killed one
left, and, if the file system cannot exchange two names at once, ``.X.<token>.old``: the complete
earlier package between two renames. What this prevents:

- Half an output under the final name, after a full disk or a kill, which looks like a whole one.
  Hence the folder next to it, and a rename at the end.
- The loss of the earlier output, which may be the source itself: it stays until the new one is
  complete. Between the two renames it is ``.old``, and ``restore`` puts it back after a kill.
- Disks filled by killed runs, with gigabytes each: the next run to that destination removes what
  they left. A run holds a lock on its folder for as long as it lives, which the system drops with
  the process, so no run takes the folder of another for a leftover.
- Two runs to one destination: each output is complete, and the last one stays.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from mlopt.mil.exchange import exchange

if sys.platform != "win32":
    import fcntl

#: In bytes: longer names are shortened, since hidden ones must fit into a file system too.
_LONGEST_NAME = 120
#: How often another run may get in between two steps before this one gives up.
_ATTEMPTS = 100


class Staging:
    """One run's hidden folder next to ``destination``; every method may raise ``OSError``.

    Attributes
    ----------
    destination
        The folder that the output will be; its parent exists.
    folder
        Where the output is written, from ``begin`` on.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.folder = _hidden(destination, secrets.token_hex(4), "tmp")
        self._lock: int | None = None

    def begin(self) -> None:
        """Remove what killed runs left, and create the folder."""
        for path in _leftovers(self.destination):
            _remove_leftover(path, self.destination)
        for _ in range(_ATTEMPTS):
            self.folder.mkdir()
            # Another run may take it for a leftover before it is locked.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _locked(self.folder)
                return
            self.folder = _hidden(self.destination, secrets.token_hex(4), "tmp")
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self.destination))

    def commit(self) -> None:
        """Rename the folder to the destination; ``end`` removes what was there before."""
        for _ in range(_ATTEMPTS):
            if not os.path.lexists(self.destination):
                with _other_runs_tolerated():
                    os.rename(self.folder, self.destination)
                    return
            with _other_runs_tolerated():
                if exchange(self.folder, self.destination) or self._replace():
                    return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self.destination))

    def end(self) -> None:
        """Remove the folder, which may now hold the earlier output. It can be called twice."""
        _remove_tree(self.folder)
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    def _replace(self) -> bool:
        """Replace the destination with two renames; return whether no other run was faster."""
        token = secrets.token_hex(4)
        old = _hidden(self.destination, self._token, "old")
        os.rename(self.destination, old)
        try:
            os.rename(self.folder, self.destination)
        except BaseException as error:
            if not os.path.lexists(self.destination):
                os.rename(old, self.destination)
                raise
            _discard(old, _hidden(self.destination, token, "tmp"))
            if isinstance(error, OSError) and error.errno in _OTHER_RUN:
                return False
            raise
        # Under a name that marks it for removal: half of it must not be taken for a package.
        _discard(old, self.folder)
        return True

    @property
    def _token(self) -> str:
        return self.folder.name.rsplit(".", 2)[1]


def restore(destination: Path) -> None:
    """Put back an earlier output that a killed run had moved aside.

    Nothing happens if the destination exists, or if the run that moved it is still alive.
    """
    for path in _leftovers(destination):
        if path.suffix == ".old" and not _is_held(path.with_suffix(".tmp")):
            # Asked last: a run that is no longer there may have finished just now.
            if os.path.lexists(destination):
                return
            with contextlib.suppress(OSError):
                os.rename(path, destination)


_OTHER_RUN = frozenset({errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST})


@contextlib.contextmanager
def _other_runs_tolerated() -> Iterator[None]:
    """Suppress errors from a name that appeared or vanished meanwhile, so the caller can retry."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OTHER_RUN:
            raise


def _hidden(destination: Path, token: str, suffix: str) -> Path:
    return destination.with_name(f".{_stem(destination)}.{token}.{suffix}")


def _stem(destination: Path) -> str:
    name = os.fsencode(destination.name)
    if len(name) <= _LONGEST_NAME:
        return destination.name
    return hashlib.sha256(name).hexdigest()[:32]


def _leftovers(destination: Path) -> list[Path]:
    """Return the hidden folders of all runs to ``destination``, including live ones."""
    pattern = re.compile(rf"\.{re.escape(_stem(destination))}\.[0-9a-f]{{8}}\.(tmp|old)")
    try:
        names = os.listdir(destination.parent)
    except PermissionError:  # a folder that can be written to, but not listed
        return []
    return sorted(destination.with_name(name) for name in names if pattern.fullmatch(name))


def _remove_leftover(path: Path, destination: Path) -> None:
    if path.suffix == ".old":
        # The destination is in place, so it is no longer needed.
        if os.path.lexists(destination):
            _discard(path, _hidden(destination, secrets.token_hex(4), "tmp"))
        return
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        lock = _locked(path)
        if lock is not None:
            _remove_tree(path)
            os.close(lock)


def _discard(path: Path, aside: Path) -> None:
    """Rename a folder, then remove it; another run may do the same."""
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        _remove_tree(aside)


def _remove_tree(path: Path) -> None:
    """Remove a folder as far as possible, including write-protected folders in it."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError:
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)


def _is_held(path: Path) -> bool:
    """Return whether a live run holds the folder, as far as that can be known."""
    try:
        lock = _locked(path)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    if lock is None:
        return True
    os.close(lock)
    return False


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder; None if locks are not supported.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    FileNotFoundError
        The folder is gone, or is not a folder.
    """
    if sys.platform == "win32":
        return None  # leftovers stay: they cannot be told from a live run's folder
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise FileNotFoundError(*error.args) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed, and another made, before it was locked.
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
