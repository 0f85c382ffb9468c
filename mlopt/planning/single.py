"""``plan``: the form of every weight, for a size or for a quality of the answers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mlopt.choices import Costs, Device, LossName, Method
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.planning.goals import Goal, check_goal
from mlopt.planning.limits import Budget, Quality
from mlopt.planning.losses import PlanProgress
from mlopt.planning.metrics import Metric, checked_metric
from mlopt.planning.planner import Planner
from mlopt.planning.recipe import Recipe
from mlopt.planning.subjects import Options, Subject
from mlopt.statistics.guidance import CalibrationSource


def plan(  # noqa: PLR0913 - what is asked for, what is known, and how it is found out
    source: ModelSource,
    *,
    budget: Budget | None = None,
    quality: Quality | None = None,
    samples: Iterable[Mapping[str, Any]] | None = None,
    calibration: CalibrationSource | None = None,
    candidates: Sequence[OpPalettizerConfig] | None = None,
    minimum_deployment_target: TargetName | None = None,
    pinned: Mapping[str, OpPalettizerConfig | None] | None = None,
    metric: Metric | None = None,
    devices: Collection[Device] = (),
    joint_compression: bool = False,
    method: Method = "auto",
    loss: LossName = "squared",
    costs: Costs = "near",
    output: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    random: int = 8,
    seed: int = 0,
    function: str | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: PlanProgress | None = None,
) -> Recipe:
    """Choose a form for every weight, so that the package is small and answers as the model does.

    The model runs on the samples with one weight in one form at a time. What the answers lose by
    that is set against the bytes that the form takes, and the best choice for all weights is
    computed, by integer programming. It is never made by the errors of the weights themselves: on
    a transformer that was worse than one width for all.

    Memory holds the weights in float32 twice, the outputs for all samples, the values between two
    steps for all samples, and, without a ``cache``, all palettes that were tried.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel``. It is not changed.
    budget
        What the package may take: bytes, ``"12MB"``, ``"4.2 bits"`` (for each element of the
        weights, everything in the package counted), ``"4x"`` (times smaller). The answers are then
        as good as they can be.
    quality
        How far its answers may be off: a signal-to-noise ratio in dB such as ``30`` or
        ``"30 dB"``; with loss kl in nats. The package is then as small as it can be. Give either a
        budget or a quality.
    samples
        Inputs by name, as for :func:`mlopt.calibration.calibrate`; a few dozen. They and the
        outputs for all of them are held in memory. None: ``random`` inputs are drawn as the model
        declares them, with ``seed``; what real ones need may differ.
    calibration
        Statistics that tables are fitted with: see :func:`mlopt.coreml.palettize`.
    candidates
        The forms to choose from. None: 1, 2, 3, 4, 6 and 8 bits with one table for a weight, and 2,
        3 and 4 bits in groups of 16 channels; from 3 bits on, and in groups, also with a scale for
        each channel; as far as the target has them. Each weight may also stay as it is.
    minimum_deployment_target
        The newest target that the result may need. None: as for :func:`mlopt.coreml.palettize`.
    pinned
        Forms by the name of a weight or of an operation, or a glob over names, that are not up for
        choice; None leaves the weight alone.
    metric
        A function of the path of a package that returns a number, of which more is better, such as
        the accuracy on a test set; :func:`metric_of_command` makes one of a command. With a budget
        it decides between the package of least loss and the best one with equal forms for all
        weights. ``quality`` is what it is to be at least: eight packages are tried, on the front of
        size against loss.
    devices
        ``("neural-engine",)``: only forms of which no rule of the lint says that they run
        elsewhere.
    joint_compression, method
        As for :func:`mlopt.coreml.palettize`.
    loss
        ``"squared"``: the squared error of each output relative to its mean square, averaged over
        the outputs. ``"kl"``: the divergence of the distribution of classes or next tokens.
    costs
        ``"measured"``: the model is run with every form of every weight. ``"near"``: with one form
        of each, then with those that are chosen, until all of these were run; what others lose is
        predicted from these. ``"predicted"``: with one form of each weight, clustered by mean
        squares alone, and nothing is checked.
    output
        Where to write the palettized package, with the tables that the plan has already clustered.
    cache
        A folder for what is clustered and measured: an interrupted plan goes on from it, and other
        plans and :func:`apply_recipe` take from it what is the same. See ``Cache``.
    random, seed
        How many inputs are drawn, where no samples are given.
    function
        The function of a model that has several; weights that it does not read stay as they are.
    device
        The torch device that the model runs on.
    workers
        Threads for clustering, and samples that run at a time; None: one per processor.
    progress
        See ``PlanProgress``.

    Returns
    -------
    Recipe
        With all forms that were considered, and what each is known to lose.

    Raises
    ------
    ConfigError
        Neither a budget nor a quality is given, or both, or it cannot be reached; the model is a
        pipeline; weights share a name; nothing is left to choose.
    TargetError, ModelFormatError
        As for :func:`mlopt.coreml.palettize`.
    InputError, RunError
        As for :func:`mlopt.calibration.calibrate`.
    """
    check_goal(budget, quality)
    subject = Subject.prepared(
        source,
        samples,
        calibration,
        Options(
            candidates=candidates,
            target=minimum_deployment_target,
            pinned=pinned or {},
            devices=devices,
            joint_compression=joint_compression,
            method=method,
            loss=loss,
            costs=costs,
            random=random,
            seed=seed,
            function=function,
            device=device,
            workers=workers,
            cache=cache,
            progress=progress,
        ),
    )
    options, has_metric = subject.options, metric is not None
    goal = Goal.of(budget, quality, [subject], loss=options.loss, has_metric=has_metric)
    judge = None
    if metric is not None:
        losses, checked = subject.losses, checked_metric(metric)
        judge = partial(subject.packages.judged, losses=losses, metric=checked)
    size_of = subject.packages.size_of
    planner = Planner(subject.weights, subject.losses, size_of, options.costs, judge)
    planned = goal.planned(planner)
    return subject.recipe(planned, goal, output=output, points=planner.points(planned))
