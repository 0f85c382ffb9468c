"""``calibrate``: run a model on samples, and sum moments of what its weights multiply."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from mlopt.calibration.distributed import calibrate_together, is_distributed
from mlopt.calibration.feeds import Feed
from mlopt.calibration.losses import Loss, loss_name
from mlopt.calibration.modules import ModuleRun
from mlopt.calibration.programs import ProgramRun
from mlopt.calibration.readers.reader import Arguments
from mlopt.calibration.runs import Factors, Run
from mlopt.calibration.samples import (
    NoSamplesError,
    digest_after,
    errors_of_sample,
    mark_of,
    numbered_samples,
)
from mlopt.calibration.sums import Sums, open_sums
from mlopt.calibration.updates import Update, update_of
from mlopt.choices import STATISTICS, Statistics
from mlopt.coreml.models import ModelSource
from mlopt.errors import ConfigError
from mlopt.statistics import Calibration
from mlopt.statistics.notes import FEWEST_SAMPLES
from mlopt.text.names import shortlist

Progress = Callable[[int, int | None], None]
"""A function that is called with the samples done, and how many there are if that is known."""

_MARKED = 32  # samples that the result recognizes: the header of its file has room for notes


def calibrate(
    model: ModelSource | nn.Module,
    samples: Iterable[Any],
    *,
    statistics: Statistics = "hessian",
    loss: Loss = "squared",
    output: str | os.PathLike[str] | None = None,
    function: str | None = None,
    device: str | torch.device | None = None,
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run a model on samples, and return statistics of what each of its weights multiplies.

    The sums of one sample are computed in float32. Over samples, matrices are summed in float32,
    means and mean squares in float64. Memory holds the model, and four matrices of the widest
    input; with ``output`` all sums are in a file of about the size of the result.

    The last sample shows whether there were enough: what tables fitted to those before it would
    gain on these, and on it (:attr:`Calibration.held_out`; the notes say where that is much less).
    Where the number of samples is not known before, it is the last of 8, 16, 32 and so on. A check
    takes a third of n^3 operations for a weight of n columns, about as much as a sample.

    Parameters
    ----------
    model
        The path of an ``.mlpackage``, or an ``MLModel``: an ML program, or a pipeline, whose ML
        programs are all calibrated; or a ``torch.nn.Module``, which runs in eval mode without
        gradients and is left as it was.
    samples
        Inputs by name, as ``predict`` takes them; for a module its arguments: a tensor, a tuple of
        positional arguments, or a dictionary of keyword arguments. A few dozen of the kind that
        the model will get are useful. A model with states has new ones for each sample.
    statistics
        ``"hessian"``: the means of all products of two inputs, which takes 4 bytes for each pair;
        ``"diagonal"``: the mean squares alone. ``"guided"``, of programs: as ``"hessian"``, with
        each position weighted by how much a loss of the model's outputs depends on what the
        operation computes there: the mean squared gradient (GuidedQuant, arXiv 2505.07004). It
        takes two to three times the time, memory for what all operations compute for a sample and
        for all weights in the numbers that are computed with, and weights that share an input have
        matrices of their own. Weights that no gradient reaches have the statistics of ``"hessian"``
        and are named in the notes.
    loss
        Of guided statistics. ``"squared"``: the squared error of all outputs of floats, each
        relative to its sum of squares. ``"kl"``: the divergence of the classes or next tokens that
        the last axis of an output has scores or probabilities of. Both are random, with the number
        of the sample as the seed, and need no labels. Or a function from the outputs, tensors by
        name, to a scalar tensor, such as one with labels.
    output
        A file for the result, which appears when it is complete. Until then the sums are in
        ``output + ".partial"``: an interrupted run with the same arguments and samples goes on
        there. None: the result is kept in memory.
    function
        The function of a model that has several.
    device
        The torch device that computes, such as ``"cuda"``; None: the CPU. A module runs where its
        parameters are, and its samples are moved there.
    part
        ``(i, n)``: take every n-th sample from the i-th on, counted from 1. The calibrations of all
        n parts are merged by :func:`mlopt.statistics.merge`. None: all samples; in processes of
        ``torch.distributed``, such as those of ``torchrun``, each takes its part, and all get the
        merged result. Samples are then to be the same ones in all of them, and ``output`` on a file
        system that they share.
    progress
        Called after each sample.

    Raises
    ------
    ConfigError
        An argument is not one of those allowed, the model has no weight that inputs are multiplied
        by, an input of a weight is NaN or infinite, or the unfinished file is of another
        calibration. With ``"guided"`` also: the model is a module or a pipeline, an output or a
        gradient is NaN or infinite, or no gradient reaches any weight.
    InputError
        There are no samples, or one does not fit the model, or a module raised an error; the
        message has its number.
    RunError
        An operation failed.
    ModelFormatError
        The model is damaged, or has operations that cannot be run.
    DestinationError
        ``output`` cannot be written.
    """
    if statistics not in STATISTICS:
        allowed = " or ".join(map(repr, STATISTICS))
        raise ConfigError(f"statistics must be {allowed}, got {statistics!r}")
    if part is None and is_distributed():
        of_part = partial(
            calibrate,
            model,
            samples,
            statistics=statistics,
            loss=loss,
            function=function,
            device=device,
            progress=progress,
        )
        return calibrate_together(of_part, output)
    name = loss_name(loss)
    if statistics != "guided" and name != "squared":
        raise ConfigError(
            f"loss {name!r} is for guided statistics, got {statistics!r}; leave it out, or use "
            "statistics='guided'"
        )
    chosen, total = numbered_samples(samples, part)
    run = _run_of(model, function, statistics, device, loss)
    feeds = run.feeds
    if not feeds.weights:
        raise ConfigError(
            "the model has no weight that inputs are multiplied by; its weights are "
            f"{shortlist(list(feeds.without)) or 'none'}"
        )
    empty = Calibration(
        statistics=statistics,
        samples=0,
        weights=feeds.weights,
        moments={},
        without=feeds.without,
        remarks=feeds.remarks,
        loss=name,
    )
    identity = f"{empty.identity} {run.identity} {part}"
    sums = open_sums(feeds, empty, None if output is None else Path(output), identity)
    marks: list[str] = []
    with contextlib.closing(sums):
        for number, inputs in _remaining(run, chosen, sums, marks):
            sums.begin_sample(is_held_out=_is_held_out(sums.samples + 1, total))
            _add_sample(run, inputs, number, sums)
            if progress is not None:
                progress(sums.samples, total)
        if not sums.samples:
            sums.discard()
            raise NoSamplesError
        remarks = (*sums.empty.remarks, *run.remarks())
        sums.empty = attrs.evolve(sums.empty, remarks=remarks, marks=tuple(marks))
        return sums.finish()


def _run_of(
    model: ModelSource | nn.Module,
    function: str | None,
    statistics: Statistics,
    device: str | torch.device | None,
    loss: Loss,
) -> Run:
    if not isinstance(model, nn.Module):
        return ProgramRun(model, function, statistics, "cpu" if device is None else device, loss)
    if function is not None:
        raise ConfigError(
            f"function must be None for a module, got {function!r}; modules have no functions"
        )
    if device is not None:
        raise ConfigError(
            f"device must be None for a module, which runs where its parameters are, got "
            f"{str(device)!r}; move the module there with .to(device) before"
        )
    return ModuleRun(model, statistics)


def _remaining(
    run: Run, samples: Iterator[tuple[int, Any]], sums: Sums, marks: list[str]
) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    """Return the inputs that are not summed; those that are must be the same as then.

    marks: gets what the first samples are recognized by.
    """
    done, digest, given = sums.samples, bytes(32), 0
    for given, (number, sample) in enumerate(samples, start=1):
        inputs = run.inputs(sample, number)
        if given <= _MARKED:
            marks.append(mark_of(inputs))
        if given > done:
            yield number, inputs
            continue
        digest = digest_after(digest, inputs)
        if given == done and digest != sums.digest:
            raise ConfigError(
                f"the unfinished calibration has summed {done} samples, and they are not the first "
                "ones of these; give the same samples, or delete the .partial file"
            )
    if given < done:
        raise ConfigError(
            f"the unfinished calibration has summed {done} samples, and only {given} are given; "
            "give the same samples, or delete the .partial file"
        )


def _is_held_out(count: int, total: int | None) -> bool:
    """Whether the moments of the sample of that count are compared with those before it.

    It is the last one; where their number is not known, the eighth and each at which it doubles.
    """
    if total is not None:
        return 1 < count == total
    return count >= FEWEST_SAMPLES and count.bit_count() == 1


def _add_sample(run: Run, inputs: Mapping[Any, Any], number: int, sums: Sums) -> None:
    feeds = run.feeds

    last: dict[Hashable, Update] = {}

    def observe(
        feed: Feed,
        title: str,
        arguments: Arguments,
        results: tuple[Any, ...],
        factors: Factors,
        *,
        inputs: Hashable = None,
    ) -> None:
        moments, geometry = feeds.moments[feed.moments], feed.reader.geometry
        same = (inputs, geometry) if inputs is not None and geometry else None
        if same is None or same not in last:
            last.clear()
            last[same] = update_of(feed.reader, moments, arguments, results, factors)
        update = last[same]
        # only now: inputs that do not fit raise an error above, and are not counted
        sums.sharing.give(feed.moments, None if same is None else (same, feed.times))
        if not sums.expects(feed.moments):
            return
        if not bool(torch.isfinite(update.firsts).all()):
            raise ConfigError(
                f"sample {number}: an input of {title} has NaN or infinite elements, or such "
                "whose squares are; leave the sample out, or mend the model"
            )
        sums.add(feed.moments, update, feed.times)

    with errors_of_sample(number):
        run.run(inputs, number, observe)
    sums.end_sample(digest_after(sums.digest, inputs))
