"""The hidden folder that an output grows in, until it takes the destination's name.

Beside a destination ``X`` there may be ``.X.<token>.tmp``, which a run is writing or a killed one
left, and, where a file system cannot exchange two names at once, ``.X.<token>.old``: the complete
earlier package between two renames. What this guards from:

- Half an output under the final name, after a full disk or a kill: nobody can tell it from a whole
  one. Hence the folder beside it, and a rename at the end.
- The loss of the earlier output, which may be the source itself: it stays until the new one is
  complete. Between the two renames it is ``.old``, and ``restore`` puts it back after a kill.
- Disks that killed runs fill, with gigabytes each: the next run onto that destination removes what
  they left. A run holds a lock on its folder for as long as it lives, which the system drops with
  the process, so that no run takes the folder of another for a leftover.
- Two runs onto one destination: each is complete, and the last one stays.
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

#: In bytes: longer names are shortened, since hidden ones have to fit into a file system too.
_LONGEST_NAME = 120
#: How often another run may get in between two steps before this one gives up.
_ATTEMPTS = 100


class Staging:
    """One run's hidden folder beside ``destination``; every method may raise ``OSError``.

    Attributes
    ----------
    destination
        The folder that the output will be; its parent exists.
    folder
        Where the output grows, from ``begin`` on.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.folder = _hidden(destination, secrets.token_hex(4), "tmp")
        self._lock: int | None = None

    def begin(self) -> None:
        """Remove what killed runs left, and make the folder."""
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
        """Give the folder the destination's name; what was there before goes with ``end``."""
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
        """Remove the folder, or the earlier output that is in its place. It can be called twice."""
        _remove_tree(self.folder)
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    def _replace(self) -> bool:
        """Replace the destination by two renames; returns whether no other run was faster."""
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
        # Under the name of what may be removed: half of it must not be taken for a package.
        _discard(old, self.folder)
        return True

    @property
    def _token(self) -> str:
        return self.folder.name.rsplit(".", 2)[1]


def restore(destination: Path) -> None:
    """Put an earlier output back that a killed run had moved aside.

    Nothing happens where the destination is there, or the run lives that moved it.
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
    """Let what fails because a name appeared or went away meanwhile be tried again."""
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
    """Return the hidden folders of all runs onto ``destination``, those that live included."""
    pattern = re.compile(rf"\.{re.escape(_stem(destination))}\.[0-9a-f]{{8}}\.(tmp|old)")
    try:
        names = os.listdir(destination.parent)
    except PermissionError:  # of a folder that may be written to, but not be listed
        return []
    return sorted(destination.with_name(name) for name in names if pattern.fullmatch(name))


def _remove_leftover(path: Path, destination: Path) -> None:
    if path.suffix == ".old":
        # With the destination in its place, nobody will ask for it.
        if os.path.lexists(destination):
            _discard(path, _hidden(destination, secrets.token_hex(4), "tmp"))
        return
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        lock = _locked(path)
        if lock is not None:
            _remove_tree(path)
            os.close(lock)


def _discard(path: Path, aside: Path) -> None:
    """Remove a folder, under another name from the start; another run may do the same."""
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        _remove_tree(aside)


def _remove_tree(path: Path) -> None:
    """Remove a folder as far as that is possible, write-protected ones in it included."""
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
    """Return whether a run that lives has the folder, as far as that can be known."""
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
    """Return a descriptor that holds the lock of a folder; None where there are no locks.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    FileNotFoundError
        The folder is gone, or is none.
    """
    if sys.platform == "win32":
        return None  # leftovers stay: nothing tells them from the folder of a run that lives
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
