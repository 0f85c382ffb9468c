"""A line on the terminal when kernels are compiled, which takes a while the first time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

MESSAGE = (
    "Compiling kernels for this machine, which can take a minute; later runs load what is compiled."
)

_told = threading.Event()


@contextlib.contextmanager
def compilation_told(tell: Callable[[str], object]) -> Iterator[None]:
    """Call ``tell`` with a message when a kernel is compiled while the block runs.

    Once in a process, in the thread that compiles. Nothing is told of kernels that numba has in its
    cache. It loads numba, so it is for blocks that need it anyway.
    """
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, started: event.Event) -> None:
            if not _told.is_set():
                _told.set()
                tell(MESSAGE)

        def on_end(self, ended: event.Event) -> None:
            """Nothing is told of the end: a bar shows that work goes on."""

    listener = Listener()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
