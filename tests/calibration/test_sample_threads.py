"""SampleThreads: results in the order of samples, errors that name them, nothing left changed."""

import threading

import pytest
import torch

from mlopt.calibration.answers.sample_threads import sample_threads
from mlopt.errors import RunError

CPU = torch.device("cpu")


def test_samples_run_at_the_same_time_and_come_in_order():
    meeting = threading.Barrier(2)

    def run(number):
        meeting.wait(timeout=20)  # nobody passes alone
        assert not torch.ones(1, requires_grad=True).mul(2).requires_grad
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    with sample_threads(6, 2, CPU) as threads:
        assert threads.each(6, run) == [(number, 1) for number in range(6)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_in_the_order_of_samples_names_its_sample(workers):
    def run(number):
        if number in (1, 3):
            raise RunError("the output overflows")

    before = torch.get_num_threads()
    with sample_threads(4, workers, CPU) as threads, pytest.raises(RunError) as caught:
        threads.each(4, run)
    assert str(caught.value) == "sample 1: the output overflows"
    assert torch.get_num_threads() == before


def test_fewer_samples_than_workers_share_them():
    with sample_threads(2, 8, CPU) as threads:
        assert threads.each(2, lambda number: torch.get_num_threads()) == [4, 4]
