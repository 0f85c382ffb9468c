"""``SampleThreads``: runs of a program on several samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import attrs
import torch

from mlopt.calibration.samples import errors_of_sample

Result = TypeVar("Result")


@attrs.frozen(eq=False)
class SampleThreads:
    """Threads that each run a sample, and compute with one thread of torch, or an equal share.

    Threads inside of an operation wait for each other at each of them: with small matrices, or
    beside other work, two samples at a time took half as long as one after the other. Sums have
    one order then, whatever the machine has, as long as there are as many samples as threads.
    """

    _pool: ThreadPoolExecutor

    def each(self, count: int, run: Callable[[int], Result]) -> list[Result]:
        """Return what ``run`` gives for the samples 0 to ``count - 1``, without gradients.

        Errors name their sample; the first in the order of samples is raised, and samples that no
        thread has begun are left out.
        """

        def one(number: int) -> Result:
            with torch.inference_mode(), errors_of_sample(number):
                return run(number)

        futures = [self._pool.submit(one, number) for number in range(count)]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def sample_threads(
    samples: int, workers: int, device: torch.device
) -> Generator[SampleThreads, None, None]:
    """Open threads for so many samples: up to ``workers``, and one on a device with its own queue.

    Torch counts threads for the whole process in part, so that its number is set back at the end.
    """
    threads = max(1, min(samples, workers)) if device.type == "cpu" else 1
    before = torch.get_num_threads()
    share = max(1, workers // threads) if device.type == "cpu" else before
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield SampleThreads(pool)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
