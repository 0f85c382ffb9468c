"""One pool of threads for all passes, in which the calling thread takes part."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def each(work: Callable[[int], T], count: int, threads: int) -> list[T]:
    """Return ``work(0)`` to ``work(count - 1)``, done by at most so many threads.

    The calling thread works too, and does not wait for threads that have not begun when nothing is
    left to do: on a busy machine this takes no longer than without them. ``work`` must not call
    this. An error ends the work, and is raised when no thread works any more.
    """
    threads = min(threads, count)
    if threads <= 1:
        return [work(number) for number in range(count)]
    results: dict[int, T] = {}
    left = list(range(count))[::-1]

    def take() -> None:
        try:
            while left:
                try:
                    number = left.pop()
                except IndexError:  # another thread was faster
                    return
                results[number] = work(number)
        except BaseException:
            left.clear()
            raise

    helpers = [_shared_pool().submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error
    return [results[number] for number in range(count)]


def _shared_pool() -> ThreadPoolExecutor:
    """Return the pool, whose threads start when they are first needed."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="soft-kmeans")
        return _pool


def _forget_pool() -> None:
    """In a process that was forked there are none of its threads, and the lock may be held."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
