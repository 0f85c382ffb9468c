"""Interrupts deferred while files are in an intermediate state.

An interrupt is an exception at any point of the main thread: between two renames, or after a folder
is made and before its name is stored. The cleanup would then be cut short itself, and leave a moved
package or gigabytes behind. The blocks that wait take milliseconds, apart from the removal of
folders.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Defer Ctrl-C and requests to terminate until the block has ended.

    This concerns signals that Python code handles, by an exception at any point of the main thread.
    In another thread nothing is changed: no exception arrives there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    handlers: dict[int, Any] = {n: h for n in numbers if callable(h := signal.getsignal(n))}
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            handlers[number](number, frame)
