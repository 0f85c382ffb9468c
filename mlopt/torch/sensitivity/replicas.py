"""Replicas of a model, one per thread, that work on several samples at a time."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity.calibration import Calibration, LossFunction
from mlopt.torch.sensitivity.samples import from_bytes, to_bytes
from mlopt.torch.sensitivity.squares import SquareSums


def add_on_replicas(
    sums: SquareSums,
    model: nn.Module,
    samples: Iterator[tuple[int, Any]],
    calibration: Calibration,
) -> int:
    """Add the squared gradients of samples, ``workers`` at a time; returns how many there were.

    The model itself is the first worker's, and ``sums`` takes its gradients directly; the squares
    of the others are added to it in the order of the samples, so that the sums are those of one
    worker, bit for bit. ``sums`` has had its first sample, and is hooked.
    """
    loss_fn, workers = calibration.loss_fn, calibration.workers
    if sums.in_parts is None:  # no sample has had a gradient, and from now on the sums hold squares
        sums.in_parts = frozenset()
    others = [_Replica(sums, model, device) for device in _devices(model, workers)[1:]]
    count = 0
    with contextlib.ExitStack() as stack:
        for replica in others:
            stack.enter_context(replica.sums.hooked())
        # Nothing else runs while the first replica shows that loss_fn runs the model it is given.
        for index, sample in islice(samples, 1):
            others[0].add_sample(sample, loss_fn, index)
            others[0].give(sums)
            count += 1
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        while batch := list(islice(samples, workers)):
            (index, sample), *rest = batch
            first = pool.submit(sums.add_sample, model, sample, loss_fn, index)
            futures = [
                (replica, pool.submit(replica.add_sample, sample, loss_fn, index))
                for replica, (index, sample) in zip(others, rest, strict=False)
            ]
            first.result()
            for replica, future in futures:
                future.result()
                replica.give(sums)
            count += len(batch)
    return count


def is_autocasting() -> bool:
    """Whether the caller is under autocast.

    Threads do not inherit it, and share its cache of casts: which of two uses of a weight casts it
    would depend on the other threads.
    """
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


class RandomState:
    """The state of the random generators that a loss function may draw from, for comparison."""

    def __init__(self, model: nn.Module) -> None:
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self._torch = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        self._python = random.getstate()
        self._numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002

    def is_as_in(self, other: RandomState) -> bool:
        """Whether no numbers were drawn between this state and the other."""
        return (
            all(map(torch.equal, self._torch, other._torch))
            and self._python == other._python
            and self._numpy["pos"] == other._numpy["pos"]
            and np.array_equal(self._numpy["key"], other._numpy["key"])
        )


class _Replica:
    """A thread's own copy of the model, and the squares of one sample."""

    def __init__(self, sums: SquareSums, model: nn.Module, device: torch.device | None) -> None:
        self.device = device
        self.model, parameters = _replicated(model, sums.parameters, device)
        self.sums = SquareSums(parameters, in_parts=sums.in_parts)

    def add_sample(self, sample: Any, loss_fn: LossFunction, index: int) -> None:
        for name in self.sums.latest:
            self.sums.sums[name].zero_()
        with contextlib.ExitStack() as stack:
            if self.device is not None:
                stack.enter_context(torch.cuda.device(self.device))
                sample = from_bytes(to_bytes(sample), self.device)
            has_gradient = self.sums.add_sample(self.model, sample, loss_fn, index)
        if has_gradient and not self.sums.latest:
            raise ConfigError(
                f"the loss of sample {index} does not depend on the replica of the model that a "
                f"worker has: loss_fn must run the model that it is given, and no other model; or "
                f"compute the sensitivities with one worker"
            )

    def give(self, sums: SquareSums) -> None:
        for name in self.sums.latest:
            total = sums.sums[name]
            total.add_(self.sums.sums[name].to(total.device))
            sums.largest[name] = max(sums.largest.get(name, 0.0), self.sums.largest[name])


def _replicated(
    model: nn.Module, wanted: dict[str, Tensor], device: torch.device | None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a model, on ``device`` if it is one, and its wanted parameters.

    On the same device the copy's parameters have the memory of the model's.
    """
    memo: dict[int, Any] = {}
    if device is None:
        for parameter in model.parameters():
            if type(parameter) is nn.Parameter:
                memo[id(parameter)] = nn.Parameter(
                    parameter.detach(), requires_grad=parameter.requires_grad
                )
    try:
        replica = copy.deepcopy(model, memo)
    except Exception as error:
        raise ConfigError(
            f"the model cannot be copied, and each worker needs a copy: {error}; compute the "
            f"sensitivities with one worker"
        ) from error
    if device is not None:
        replica = replica.to(device)
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    copies = dict(replica.named_parameters(remove_duplicate=False))
    return replica, {name: copies[names[id(p)]] for name, p in wanted.items()}


def _devices(model: nn.Module, workers: int) -> list[torch.device | None]:
    """Return the device of each worker's model; None is where the model is already."""
    places = {parameter.device for parameter in model.parameters()}
    place = places.pop()
    available = torch.cuda.device_count()
    if places or place.type != "cuda" or available < 2:
        return [None] * workers
    numbers = [((place.index or 0) + worker) % available for worker in range(workers)]
    return [None if n == place.index else torch.device("cuda", n) for n in numbers]
