"""``plan``: the form of every weight, for a size or for a quality of the answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import torch

from mlopt.calibration.programs import checked_sample, program_of
from mlopt.calibration.samples import NoSamplesError, digest_after, numbered_samples
from mlopt.calibration.sequential.sites import Site, sites_of
from mlopt.calibration.tuning.runner import Runner
from mlopt.choices import COSTS, DEVICES, LOSSES, Costs, Device, LossName, Method
from mlopt.coreml.inspection import package_bytes
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Node
from mlopt.planning.cache import Cache, digest
from mlopt.planning.candidates import Candidates, candidates_of, without_choice
from mlopt.planning.limits import Budget, Quality, budget_in_bytes, most_loss
from mlopt.planning.losses import KnownLosses
from mlopt.planning.metrics import Metric, checked_metric
from mlopt.planning.packages import Packages
from mlopt.planning.planner import Planned, Planner
from mlopt.planning.recipe import Recipe, RecipeWeight, Tried
from mlopt.planning.trials import Trials
from mlopt.requests.checked import word
from mlopt.requests.lookahead import processors
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.runtime.program import Program
from mlopt.statistics import Calibration, content_of
from mlopt.statistics.guidance import CalibrationSource, Guides

PlanProgress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; a stage is a few words, with a total of its own."""

_FRONT = 24


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
        3 and 4 bits in groups of 16 channels, as far as the target has them. Each weight may also
        stay as it is.
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
        Threads for clustering; None: one per processor.
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
    if (budget is None) == (quality is None):
        given = "neither" if budget is None else "both"
        raise ConfigError(f"give either a budget or a quality, got {given}")
    loss, costs = word(loss, "loss", LOSSES), word(costs, "costs", COSTS)
    known = calibration
    if calibration is not None and not isinstance(calibration, Calibration):
        known = Calibration.load(calibration)
    assert known is None or isinstance(known, Calibration)
    package = open_package(source)
    found = candidates_of(
        package,
        candidates,
        target=minimum_deployment_target,
        pinned=pinned or {},
        calibration=known,
        method=method,
        devices=[word(each, "devices", DEVICES) for each in devices],
        joint_compression=joint_compression,
    )
    program = program_of(source, function, device, job="plan")
    given_samples = _samples(samples, program, random, seed)
    nodes = [node for each in package.programs for node in each.nodes()]
    found, sites = _with_sites(found, program, nodes)
    before = package_bytes(package.path)
    elements = sum(each.weight.size for each in found.weights)
    limit = most = None
    if budget is not None:
        limit = budget_in_bytes(budget, before=before, elements=elements)
    elif quality is not None and metric is None:
        most = most_loss(quality, loss)
    elif isinstance(quality, str):
        raise ConfigError(f"with a metric, a quality is a number that it has, got {quality!r}")

    runner = Runner(program, keeps_weights=True)
    trials = Trials(
        runner,
        runner.loss(loss, program.plan.outputs),
        given_samples,
        identity=_identity(package, found, given_samples, (loss, program.function)),
    )
    threads = processors() if workers is None else workers
    losses = KnownLosses(
        found.weights,
        sites,
        trials,
        threads,
        progress or (lambda *_: None),
        None if cache is None else Cache(cache),
    )
    packages = Packages(
        source,
        found,
        target=minimum_deployment_target,
        calibration=known,
        method=method,
        workers=workers,
        joint_compression=joint_compression,
    )
    judge = None
    if metric is not None:
        judge = partial(packages.judged, losses=losses, metric=checked_metric(metric))
    planner = Planner(found, losses, packages.size_of, costs, judge)
    planner.survey(8 * (limit or before // 4) / elements)
    if limit is not None:
        planned = planner.for_size(limit)
    elif judge is not None and quality is not None:
        planned = planner.for_metric(float(quality))
    else:
        planned = planner.for_loss(most or 0.0)
    result = packages.written(planned.forms, losses, output)
    return Recipe(
        weights=tuple(_weights(found, losses, planned)),
        target=str(result.report.target_after),
        loss=loss,
        samples=len(given_samples),
        are_random=samples is None,
        nbytes=package_bytes(result.path),
        nbytes_before=before,
        limit=limit,
        most_loss=most,
        expected=planned.expected,
        measured=planned.measured,
        metric=planned.metric,
        least_metric=None if judge is None or quality is None else float(quality),
        gap=planned.gap,
        joint_compression=joint_compression,
        calibration=None if known is None else known.identity,
        points=(planned.point("plan"), *planner.rivals, *planner.front(_FRONT)),
        notes=found.notes,
    )


def _samples(
    samples: Iterable[Mapping[str, Any]] | None, program: Program, count: int, seed: int
) -> list[Mapping[str, Any]]:
    if samples is None:
        return [*random_samples(program, count, seed)]
    numbered, _ = numbered_samples(samples, None)
    chosen = [checked_sample(sample, number) for number, sample in numbered]
    if not chosen:
        raise NoSamplesError
    return chosen


def _identity(
    package: Package,
    found: Candidates,
    samples: Sequence[Mapping[str, Any]],
    others: Sequence[Any],
) -> str:
    """Return what losses depend on beside the weight that is palettized."""
    known = b""
    for sample in samples:
        known = digest_after(known, sample)
    weights = [content_of(each.weight.value()) for each in found.weights]
    for each in found.weights:
        each.weight.release()
    text = hashlib.blake2b(package.spec.SerializeToString(deterministic=True)).hexdigest()
    return digest([text, weights, known.hex(), *others])


def _with_sites(
    found: Candidates, program: Program, nodes: Sequence[Node]
) -> tuple[Candidates, list[Site | None]]:
    """Return where the weights that have palettes are read; the others have nothing to choose."""
    decisions = [
        next((form.decision for form in each.forms if form.config is not None), None)
        for each in found.weights
    ]
    wanted = [decision for decision in decisions if decision is not None]
    by_weight = {
        id(site.decision.weight): site for site in sites_of(program, nodes, wanted, Guides())
    }
    sites = [None if d is None else by_weight.get(id(d.weight)) for d in decisions]
    reason = f"function {program.function!r}, which the plan is made with, does not read it"
    weights = tuple(
        without_choice(each, reason) if decision is not None and site is None else each
        for each, decision, site in zip(found.weights, decisions, sites, strict=True)
    )
    if not any(sites):
        raise ConfigError(
            "there is nothing to choose: no weight can be palettized. "
            + "; ".join(sorted({each.reason for each in weights if each.reason})[:3])
        )
    return attrs.evolve(found, weights=weights), sites


def _weights(found: Candidates, losses: KnownLosses, planned: Planned) -> Iterator[RecipeWeight]:
    for i, each in enumerate(found.weights):
        tried = []
        for n, form in enumerate(each.forms):
            loss, known = losses.loss(i, n)
            tried.append(Tried(config=form.config, nbytes=form.nbytes, loss=loss, known=known))
        weight = each.weight
        yield RecipeWeight(
            name=weight.name,
            shape=weight.shape,
            dtype=weight.dtype,
            content=content_of(weight.value()),
            chosen=tried[planned.forms[i]],
            tried=tuple(tried),
            reason=each.reason,
        )
        weight.release()
