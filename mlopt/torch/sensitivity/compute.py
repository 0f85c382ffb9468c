"""``compute_sensitivities``: in one process, on threads, or over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity.calibration import Calibration, LossFunction
from mlopt.torch.sensitivity.choice import Choice, choose
from mlopt.torch.sensitivity.ranks import Ranks, current_ranks
from mlopt.torch.sensitivity.replicas import RandomState, add_on_replicas, is_autocasting
from mlopt.torch.sensitivity.replicated import add_over_ranks
from mlopt.torch.sensitivity.restore import left_as_it_was
from mlopt.torch.sensitivity.sensitivities import Sensitivities
from mlopt.torch.sensitivity.sharded import ShardedSums, is_sharded, named_whole
from mlopt.torch.sensitivity.squares import SquareSums, Total


def compute_sensitivities(
    model: nn.Module,
    dataloader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    nsamples: int = 128,
    names: Iterable[str] | None = None,
    workers: int = 1,
    samples_are_sharded: bool = False,
    rank0_only: bool = False,
) -> Sensitivities:
    """Compute how much the loss of a model depends on each weight: the diagonal Fisher information.

    It is the mean over samples of the squared gradient of each sample's loss (SqueezeLLM,
    arXiv 2306.07629), accumulated in float32 whatever the parameter's dtype.

    Parameters
    ----------
    model
        Runs as it is: in training or evaluation mode, on its device, under the caller's autocast.
        Afterwards it is as before, even if ``loss_fn`` raises: see ``left_as_it_was``.
    dataloader
        Yields samples: anything that ``loss_fn`` understands. A batch counts as one sample, and
        its mean gradient is squared. At most ``nsamples`` are drawn.
    loss_fn
        Called with the model and a sample; returns the loss, a tensor of one element. Of a
        ``DistributedDataParallel`` model it gets the module inside.
    nsamples
        How many samples to take, at least 1. Fewer are fine; the result tells.
    names
        The parameters wanted, as in ``model.named_parameters()``; any name of a tied one. None for
        all of floating point, each under its first name. A frozen parameter has a sensitivity
        like any other: freezing says how a model is trained, not what its loss depends on.
        Names inside ``DistributedDataParallel`` and ``FullyShardedDataParallel`` are those of the
        model before it was wrapped; for the former ``module.`` may precede them.
    workers
        Samples to work on at a time, each on a thread with a replica of the model: on the CPU or
        one CUDA device with the same memory for the weights, else spread over the CUDA devices.
        The result is that of one worker, bit for bit, if the loss of a sample does not depend on
        buffers that samples before it changed. To keep it so, one worker goes on alone under the
        caller's autocast, and with a model that draws random numbers for the first sample (dropout
        in training mode). Where ``loss_fn`` autocasts itself, weights that are used several times
        may differ in their last bits. Under ``torch.distributed`` the ranks are the workers, and
        this has no effect.
    samples_are_sharded
        Under ``torch.distributed``: False means that every rank has the same loader. Rank r of W
        takes samples r, r + W, ... of the first ``nsamples``; a sharded model takes all of rank
        0's. True means that each has samples of its own, as with a ``DistributedSampler``, and
        takes its part of ``nsamples`` of them.
    rank0_only
        Under ``torch.distributed``: on other ranks ``values`` and ``without_gradient`` are empty.

    Returns
    -------
    The values, and the parameters without any; the same on every rank.

    Raises
    ------
    ConfigError
        An argument is not as described, there is no sample, the loss is not a scalar or depends on
        no parameter, or a gradient is not finite. The message names the parameter and the sample.
    MlOptError
        Another rank failed. Exceptions inside a sharded model's own communication cannot be
        passed on: the other ranks then wait for the process group's timeout.

    Notes
    -----
    Memory besides the model: one float32 per element of the parameters, what a forward and backward
    pass needs, and one gradient at a time, since each is squared and freed inside the backward
    pass. Each worker after the first adds one float32 per element and a pass of its own, and its
    weights where they are on another device.

    Ranks of a plain or ``DistributedDataParallel`` model share the samples out. For parameters
    sharded by ``FullyShardedDataParallel``, ``fully_shard`` or as other ``DTensor``s, all ranks
    work on the same sample at the same time, because these average gradients before a square
    could be taken: they make room, not speed. Samples travel between ranks as pickles. Each rank
    has the gradients and sums of its shards; at the end the values are gathered for the CPU, one
    parameter at a time, of ``FullyShardedDataParallel`` one wrapped unit at a time.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    calibration = Calibration(
        dataloader=dataloader,
        loss_fn=loss_fn,
        nsamples=nsamples,
        workers=workers,
        samples_are_sharded=samples_are_sharded,
        rank0_only=rank0_only,
    )
    calibration.check()
    prefix = ""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model, prefix = model.module, "module."
    ranks = current_ranks()
    if ranks is None and is_sharded(model):
        raise ConfigError(
            "the model's parameters are sharded, and torch.distributed is not initialised: compute "
            "the sensitivities in the job that shards the model"
        )
    choice = choose(named_whole(model), names, prefix=prefix)
    if not choice.parameters:
        return _result(choice, iter(()), 0, nsamples)
    with torch.inference_mode(False), torch.enable_grad():
        if ranks is not None and is_sharded(model):
            count, totals = _sharded_totals(model, choice, calibration, ranks)
        else:
            count, totals = _whole_totals(model, choice, calibration, ranks)
        if not count:
            raise ConfigError(
                "the dataloader yields no samples, and sensitivities need at least one: check that "
                "it is not a generator that has been used up"
            )
        result = _result(choice, totals, count, nsamples)
    if _is_kept(calibration, ranks):
        return result
    return Sensitivities({}, count, nsamples, {}, choice.aliases)


def _is_kept(calibration: Calibration, ranks: Ranks | None) -> bool:
    """Whether this rank gets the values."""
    return not calibration.rank0_only or ranks is None or ranks.rank == 0


def _whole_totals(
    model: nn.Module, choice: Choice, calibration: Calibration, ranks: Ranks | None
) -> tuple[int, Iterator[Total]]:
    """Return the number of samples, and the totals of a model that is whole on every rank."""
    sums = SquareSums(choice.parameters)
    with left_as_it_was(model, choice.parameters.values()), sums.hooked():
        if ranks is None or ranks.size == 1:
            count = _add_here(sums, model, calibration)
        else:
            count = add_over_ranks(sums, model, calibration, ranks)
    return count, _popped(sums)


def _sharded_totals(
    model: nn.Module, choice: Choice, calibration: Calibration, ranks: Ranks
) -> tuple[int, Iterator[Total]]:
    """Return the number of samples, and the totals of a model that is sharded over ranks."""
    sums = ShardedSums(model, choice.parameters)
    with left_as_it_was(model, sums.parameters.values()):
        count = sums.add_samples(calibration, ranks)
    is_kept = _is_kept(calibration, ranks)
    return count, sums.whole(is_kept=is_kept, rank0_only=calibration.rank0_only)


def _add_here(sums: SquareSums, model: nn.Module, calibration: Calibration) -> int:
    """Add all samples in this process; returns how many there were."""
    samples = enumerate(islice(calibration.dataloader, calibration.nsamples))
    count, has_drawn = 0, False
    for index, sample in islice(samples, 1):
        before = RandomState(model)
        sums.add_sample(model, sample, calibration.loss_fn, index)
        count += 1
        has_drawn = not RandomState(model).is_as_in(before)
    # the order of the draws is part of the result
    if calibration.workers > 1 and not has_drawn and not is_autocasting():
        second = list(islice(samples, 1))  # no replicas for one sample
        if second:
            count += add_on_replicas(sums, model, chain(second, samples), calibration)
        return count
    for index, sample in samples:
        sums.add_sample(model, sample, calibration.loss_fn, index)
        count += 1
    return count


def _result(choice: Choice, totals: Iterator[Total], count: int, nsamples: int) -> Sensitivities:
    """Return the means over ``count`` samples, and why some parameters have none."""
    values: dict[str, Tensor] = {}
    reasons = dict(choice.impossible)
    for name in choice.parameters:
        reasons[name] = "no gradient: the loss does not depend on it"
    for name, total, peak in list(totals):  # collective: finished before anything is raised
        if name not in choice.parameters:
            continue
        mean = total.div_(count).contiguous()
        largest = float(mean.max())
        if not math.isfinite(largest):
            raise ConfigError(
                f"the sum of the squared gradients of {name!r} does not fit float32: scale the "
                f"loss down"
            )
        if largest > 0:
            values[name] = mean
            del reasons[name]
        elif peak > 0:
            reasons[name] = (
                f"its gradient, at most {peak:.3g}, is so small that float32 cannot hold its "
                f"square: scale the loss up"
            )
        else:
            reasons[name] = "its gradient is zero everywhere"
    reported = choice.reported
    return Sensitivities(
        values={name: values[t] for t in reported if t in values for name in reported[t]},
        samples=count,
        requested=nsamples,
        without_gradient={
            name: reasons[t] for t in reported if t in reasons for name in reported[t]
        },
        aliases=choice.aliases,
    )


def _popped(sums: SquareSums) -> Iterator[Total]:
    """Yield the parameters that had a gradient, on the CPU, freeing the sums on the way."""
    for name in list(sums.sums):
        total = sums.sums.pop(name)
        if name in sums.largest:
            yield name, total.cpu(), sums.largest[name]
