"""Bounded look-ahead thread pool: results in order, a few jobs ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def done_ahead(
    jobs: Iterable[Callable[[], Result] | None], workers: int
) -> Generator[Result | None, None, None]:
    """The results of jobs in their order; None for those that are None.

    Only a few more jobs than ``workers`` are in progress at a time, because their data are held in
    memory. Close the generator to cancel the unfinished ones.
    """
    waiting: deque[Future[Result] | None] = deque()
    ahead = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for job in jobs:
            waiting.append(None if job is None else pool.submit(job))
            ahead += job is not None
            while ahead > workers + 1:
                first = waiting.popleft()
                ahead -= first is not None
                yield None if first is None else first.result()
        while waiting:
            first = waiting.popleft()
            yield None if first is None else first.result()
    finally:
        # not waited for: after an interrupt, a large weight may take long and nobody wants it
        pool.shutdown(wait=False, cancel_futures=True)


def done_together(
    jobs: Sequence[Callable[[], Result] | None], sizes: Sequence[int], workers: int
) -> Generator[Result | None, None, None]:
    """The results of jobs in their order, as from ``done_ahead``, with the largest job done first.

    This way no thread waits for a large one at the end. All results may be held at once, so use it
    only for data that are in memory anyway.
    """
    pool = ThreadPoolExecutor(workers)
    futures: dict[int, Future[Result]] = {}
    try:
        for index in sorted(range(len(jobs)), key=lambda i: -sizes[i]):
            job = jobs[index]
            if job is not None:
                futures[index] = pool.submit(job)
        for index in range(len(jobs)):
            yield futures.pop(index).result() if index in futures else None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def share_of(size: int, workers: int) -> int:
    """Threads for one weight of ``size`` elements: all of them for a very large one, else 1."""
    return workers if size >= 1 << 22 else 1


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
