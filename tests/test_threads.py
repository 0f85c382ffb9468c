"""Results come in order, and jobs run ahead of them only so far."""

import threading

import pytest

from mlopt import threads
from mlopt.threads import done_ahead, for_each


def test_results_come_in_the_order_of_jobs_and_none_for_none():
    jobs = [None if i % 3 == 0 else (1, lambda i=i: i) for i in range(20)]
    expected = [None if i % 3 == 0 else i for i in range(20)]
    assert list(done_ahead(jobs, 3)) == expected


def asked_for(sizes, workers):
    """How many jobs are asked for before the first result comes."""
    asked = []

    def jobs():
        for place, size in enumerate(sizes):
            asked.append(place)
            yield size, lambda: None

    results = done_ahead(jobs(), workers)
    next(results)
    count = len(asked)
    results.close()
    return count


def test_large_jobs_run_a_few_ahead():
    assert asked_for([threads.HELD + 1] * 50, workers=2) == 4


def test_small_jobs_run_on_behind_a_large_one():
    small = threads.HELD // 10
    assert asked_for([100 * threads.HELD] + [small] * 50, workers=2) == 1 + 11
    assert asked_for([1] * 50, workers=2) == 50


def test_no_thread_waits_for_a_large_job_while_small_ones_are_left():
    others_are_done = threading.Event()

    def large():
        assert others_are_done.wait(timeout=60)
        return "large"

    def small(i):
        if i == 29:
            others_are_done.set()
        return i

    jobs = [(10, large)] + [(1, lambda i=i: small(i)) for i in range(30)]
    assert list(done_ahead(jobs, 2)) == ["large", *range(30)]


@pytest.mark.parametrize("workers", [1, 3])
def test_each_item_has_its_result(workers):
    assert list(for_each(range(20), str, workers)) == [str(i) for i in range(20)]


@pytest.mark.parametrize("workers", [1, 3])
def test_few_items_are_held(workers):
    asked = []
    results = for_each((asked.append(i) for i in range(50)), str, workers)
    next(results)
    assert len(asked) == (1 if workers == 1 else 2 * workers + 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_a_job_is_raised_where_its_result_would_be(workers):
    results = for_each([1, 0, 2], lambda number: 1 / number, workers)
    assert next(results) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(results)
