"""Work that is divided among threads: all of it once, errors, and forked processes."""

from __future__ import annotations

import os
import threading
import time
import warnings

import pytest

from mlopt.torch.soft_kmeans import workers


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_results_stand_in_order(count: int, threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return number * number

    assert workers.each(work, count, threads) == [number**2 for number in range(count)]
    assert sorted(done) == list(range(count))


def test_threads_work_at_the_same_time() -> None:
    # either waits until the other has come
    meeting = threading.Barrier(2, timeout=20)
    assert workers.each(lambda number: meeting.wait() >= 0, 2, 2) == [True, True]


def test_a_busy_pool_is_not_waited_for() -> None:
    release = threading.Event()
    pool = workers._shared_pool()
    blockers = [pool.submit(release.wait, 20) for _ in range(os.cpu_count() or 1)]
    try:
        assert workers.each(lambda number: number, 3, 2) == [0, 1, 2]
        assert not release.is_set()
        assert any(not blocker.done() for blocker in blockers)
    finally:
        release.set()


@pytest.mark.parametrize("is_callers", [True, False])
def test_an_error_ends_the_work(is_callers: bool) -> None:
    caller = threading.get_ident()
    meeting = threading.Barrier(2, timeout=20)
    done: list[int] = []

    def work(number: int) -> None:
        if number < 2:
            meeting.wait()
            if (threading.get_ident() == caller) == is_callers:
                raise ValueError("no")
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(ValueError, match="no"):
        workers.each(work, 100, 2)
    assert len(done) < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_pool_of_its_own() -> None:
    workers.each(lambda number: number, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        meeting = threading.Barrier(2, timeout=10)
        try:
            os._exit(0 if workers.each(lambda _: meeting.wait() >= 0, 2, 2) == [True, True] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
