"""Sums over the ranks of torch.distributed, each with the whole model."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import nn

from mlopt.errors import MlOptError
from mlopt.torch.sensitivity.calibration import Calibration
from mlopt.torch.sensitivity.ranks import Ranks
from mlopt.torch.sensitivity.squares import SquareSums


def add_over_ranks(
    sums: SquareSums, model: nn.Module, calibration: Calibration, ranks: Ranks
) -> int:
    """Add the squared gradients of all ranks' samples, on every rank; returns how many there were.

    1. In each round a rank works on one sample of its share, or none if it has none left.
    2. After each round the ranks tell each other whether one has failed, and whether all are done:
       an exception on one ends all, within a sample's time.
    3. The sums are added up over the ranks, one parameter at a time.

    Raises
    ------
    MlOptError
        Another rank failed; that one raises its own error.
    """
    total, count = 0, 0
    samples = None
    while True:
        failure: Exception | None = None
        has_worked = False
        try:
            if samples is None:
                samples = _share(calibration, ranks)
            for index, sample in islice(samples, 1):
                sums.add_sample(model, sample, calibration.loss_fn, index)
                count += 1
                has_worked = True
        except Exception as error:
            failure = error
        failed, anyone = ranks.largest(0 if failure is None else ranks.rank + 1, has_worked)
        if failure is not None:
            raise failure
        if failed:
            raise MlOptError(
                f"rank {int(failed) - 1} failed to compute sensitivities; its own error says why"
            )
        if not anyone:
            break

    for name, summed in sums.sums.items():
        sums.sums[name] = ranks.sum_(summed)
    peaks = ranks.largest(*(sums.largest.get(name, -1.0) for name in sums.sums), 0.0)
    sums.largest = {
        name: peak for name, peak in zip(sums.sums, peaks[:-1], strict=True) if peak >= 0
    }
    for source in range(ranks.size):
        total += ranks.shared(count, source)
    return total


def _share(calibration: Calibration, ranks: Ranks) -> Any:
    """Return an iterator over a rank's samples, each with its number in the loader."""
    loader, nsamples = calibration.dataloader, calibration.nsamples
    if calibration.samples_are_sharded:
        return enumerate(islice(loader, fair_share(nsamples, ranks.rank, ranks.size)))
    return islice(enumerate(islice(loader, nsamples)), ranks.rank, None, ranks.size)


def fair_share(nsamples: int, rank: int, size: int) -> int:
    """Return how many of ``nsamples`` a rank takes from a loader of its own."""
    return nsamples // size + (rank < nsamples % size)
