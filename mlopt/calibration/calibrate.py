"""``calibrate``: run a model on samples, and sum moments of what its weights multiply."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mlopt.calibration.feeds import Feed, Feeds, feeds_of
from mlopt.calibration.samples import check_sample, digest_after, numbered_samples
from mlopt.calibration.sums import Sums, open_sums
from mlopt.calibration.updates import update_of
from mlopt.choices import STATISTICS, Statistics
from mlopt.coreml.models import ModelSource
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError, InputError, RunError
from mlopt.mil.opening import open_package
from mlopt.runtime import Pipeline, Program, load
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Step
from mlopt.statistics import Calibration
from mlopt.text.names import shortlist

Progress = Callable[[int, int | None], None]
"""A function that is called with the samples done, and how many there are if that is known."""


def calibrate(
    model: ModelSource,
    samples: Iterable[Mapping[str, Any]],
    *,
    statistics: Statistics = "hessian",
    output: str | os.PathLike[str] | None = None,
    function: str | None = None,
    device: str | torch.device = "cpu",
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run a model on samples, and return statistics of what each of its weights multiplies.

    The sums of one sample are computed in float32. Over samples, matrices are summed in float32,
    means and mean squares in float64. Memory holds the model, and three matrices of the widest
    input; with ``output`` all sums are in a file of about the size of the result.

    Parameters
    ----------
    model
        The path of an ``.mlpackage``, or an ``MLModel``, of one ML program.
    samples
        Inputs by name, as ``predict`` takes them. A few dozen of the kind that the model will get
        are useful. A model with states has new ones for each sample.
    statistics
        ``"hessian"``: the means of all products of two inputs, which takes 4 bytes for each pair;
        ``"diagonal"``: the mean squares alone.
    output
        A file for the result, which appears when it is complete. Until then the sums are in
        ``output + ".partial"``: an interrupted run with the same arguments and samples goes on
        there. None: the result is kept in memory.
    function
        The function of a model that has several.
    device
        The torch device that computes, such as ``"cuda"``.
    part
        ``(i, n)``: take every n-th sample from the i-th on, counted from 1. The calibrations of all
        n parts are merged by :func:`mlopt.statistics.merge`.
    progress
        Called after each sample.

    Raises
    ------
    ConfigError
        An argument is not one of those allowed, the model is a pipeline or has no weight that
        inputs are multiplied by, an input of a weight is NaN or infinite, or the unfinished file is
        of another calibration.
    InputError
        There are no samples, or one does not fit the model; the message has its number.
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
    chosen, total = numbered_samples(samples, part)
    program = _program(model, function, device)
    weights, nodes_of_programs = weights_of(open_package(model))
    feeds = feeds_of(program, weights, nodes_of_programs[0], statistics)
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
    )
    identity = f"{empty.identity} {program.function} {part}"
    sums = open_sums(feeds, empty, None if output is None else Path(output), identity)
    with contextlib.closing(sums):
        for number, sample in _remaining(chosen, sums):
            _add_sample(program, sample, number, feeds, sums)
            if progress is not None:
                progress(sums.samples, total)
        if not sums.samples:
            raise InputError("there are no samples; give one or more, a few dozen are useful")
        return sums.finish()


def _program(model: ModelSource, function: str | None, device: str | torch.device) -> Program:
    program = load(model, function, device=device)
    if isinstance(program, Pipeline):
        raise ConfigError(
            "calibrate takes a model of one ML program, and this is a pipeline; calibrate its "
            "models one by one, each as a package of its own"
        )
    return program


def _remaining(
    samples: Iterator[tuple[int, Any]], sums: Sums
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the samples that are not summed; those that are must be the same as then."""
    done, digest, given = sums.samples, bytes(32), 0
    for given, (number, sample) in enumerate(samples, start=1):
        check_sample(sample, number)
        if given > done:
            yield number, sample
            continue
        digest = digest_after(digest, sample)
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


def _add_sample(
    program: Program, sample: Mapping[str, Any], number: int, feeds: Feeds, sums: Sums
) -> None:
    def observe(
        execution: Execution, step: Step, arguments: Mapping[str, Any], results: tuple[Any, ...]
    ) -> None:
        for feed in feeds.by_node.get(id(step.node), ()):
            if sums.expects(feed.moments):
                _add(feed, step, arguments, results)

    def _add(
        feed: Feed, step: Step, arguments: Mapping[str, Any], results: tuple[Any, ...]
    ) -> None:
        update = update_of(feed.reader, feeds.moments[feed.moments], arguments, results)
        if not bool(torch.isfinite(update.firsts).all()):
            raise ConfigError(
                f"sample {number}: an input of {step.title} has NaN or infinite elements, or such "
                "whose squares are; leave the sample out, or mend the model"
            )
        sums.add(feed.moments, update, feed.times)

    sums.begin_sample()
    try:
        program.run(sample, program.make_state(), observer=observe, seed=number)
    except (InputError, RunError) as error:
        raise type(error)(f"sample {number}: {error}") from error
    sums.end_sample(digest_after(sums.digest, sample))
