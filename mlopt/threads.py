"""Work in threads: results in the order of the jobs, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

HELD = 1 << 24
"""Elements whose results may wait for the one before them, however many jobs that are."""


def for_each(
    items: Iterable[Item], job: Callable[[Item], Result], workers: int
) -> Iterator[Result]:
    """Yield the result of a job for each item, in their order.

    With one worker, each is computed when it is asked for. With more, threads are at most twice as
    many items ahead, and no more than that are held. Items are asked for in the calling thread.
    """
    if workers <= 1:
        yield from map(job, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(job, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error, what has not begun is left
            for future in waiting:
                future.cancel()


def done_ahead(
    jobs: Iterable[tuple[int, Callable[[], Result]] | None],
    workers: int,
    *,
    ahead_of_use: int | None = None,
) -> Generator[Result | None, None, None]:
    """The results of jobs in their order; None for those that are None.

    jobs: the number of elements of its data, and what is to be called.

    Only a few jobs are ``ahead_of_use`` at a time, one more than ``workers`` if that is None,
    because their data are held in memory; more of them where they are small, so that no thread
    waits while another one has a large job. Close the generator to cancel the unfinished ones.
    """
    most_ahead = workers + 1 if ahead_of_use is None else ahead_of_use
    waiting: deque[tuple[int, Future[Result]] | None] = deque()
    ahead = held = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for job in jobs:
            if job is None:
                waiting.append(None)
            else:
                size, call = job
                waiting.append((size, pool.submit(call)))
                ahead, held = ahead + 1, held + size
            while waiting and (
                waiting[0] is None or (ahead > most_ahead and held - waiting[0][0] > HELD)
            ):
                first = waiting.popleft()
                if first is None:
                    yield None
                    continue
                ahead, held = ahead - 1, held - first[0]
                yield first[1].result()
        while waiting:
            first = waiting.popleft()
            yield None if first is None else first[1].result()
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
