"""``Subject``: a model that is planned, with all that is known of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.programs import checked_samples, program_of
from mlopt.calibration.samples import digest_after, mark_of
from mlopt.calibration.sequential.sites import Site, sites_of
from mlopt.choices import COSTS, DEVICES, LOSSES, Costs, Device, LossName, Method
from mlopt.coreml.inspection import package_bytes
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Node
from mlopt.planning.cache import Cache, digest
from mlopt.planning.candidates import (
    Candidates,
    WeightForms,
    candidates_of,
    check_pinned,
    without_choice,
)
from mlopt.planning.goals import Goal
from mlopt.planning.losses import KnownLosses, PlanProgress
from mlopt.planning.packages import Packages
from mlopt.planning.planner import Planned
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried
from mlopt.planning.trials import Trials
from mlopt.requests.checked import word
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.runtime.program import Program
from mlopt.statistics import Calibration, content_of
from mlopt.statistics.guidance import CalibrationSource, Guides, calibration_of
from mlopt.text.words import counted
from mlopt.threads import processors


def _devices(value: Collection[Device]) -> tuple[Device, ...]:
    return tuple(word(each, "devices", DEVICES) for each in value)


def _loss(value: LossName) -> LossName:
    return word(value, "loss", LOSSES)


def _costs(value: Costs) -> Costs:
    return word(value, "costs", COSTS)


def _cache(folder: str | os.PathLike[str] | None) -> Cache | None:
    return None if folder is None else Cache(folder)


def _progress(value: PlanProgress | None) -> PlanProgress:
    return value or (lambda stage, done, total: None)


@attrs.frozen(kw_only=True)
class Options:
    """How models are planned: the arguments of :func:`mlopt.planning.plan` of these names, checked.

    target: ``minimum_deployment_target``; are_shared: whether samples also have inputs of other
    models, and what is pinned may be theirs.
    """

    candidates: Sequence[OpPalettizerConfig] | None
    target: TargetName | None
    pinned: Mapping[str, OpPalettizerConfig | None]
    devices: tuple[Device, ...] = attrs.field(converter=_devices)
    joint_compression: bool
    method: Method
    loss: LossName = attrs.field(converter=_loss)
    costs: Costs = attrs.field(converter=_costs)
    random: int
    seed: int
    function: str | None
    device: str | torch.device
    workers: int | None
    cache: Cache | None = attrs.field(converter=_cache)
    progress: PlanProgress = attrs.field(converter=_progress)
    are_shared: bool = False


@attrs.frozen(eq=False, kw_only=True)
class Subject:
    """A model that is planned.

    samples: what it is run on; are_random: whether they were drawn; before: its bytes; losses,
    packages: of its weights in the forms of ``found``.
    """

    options: Options
    found: Candidates
    program: Program
    samples: list[Mapping[str, Any]]
    are_random: bool
    before: int
    calibration: Calibration | None
    losses: KnownLosses
    packages: Packages

    @classmethod
    def prepared(
        cls,
        source: ModelSource,
        samples: Iterable[Mapping[str, Any]] | None,
        calibration: CalibrationSource | None,
        options: Options,
    ) -> Subject:
        """Open a model, find out what its weights can have, and run it once.

        Errors as for :func:`mlopt.planning.plan`.
        """
        known = None if calibration is None else calibration_of(calibration)
        package = open_package(source)
        found = candidates_of(
            package,
            options.candidates,
            target=options.target,
            pinned=options.pinned,
            calibration=known,
            method=options.method,
            devices=options.devices,
            joint_compression=options.joint_compression,
        )
        if not options.are_shared:
            check_pinned([found])
        program = program_of(source, options.function, options.device, job="plan")
        chosen = _samples(samples, program, options)
        nodes = [node for each in package.programs for node in each.nodes()]
        found, sites = _with_sites(found, program, nodes)
        if not options.are_shared:
            check_choice([found])
        runner = Runner(program, keeps_weights=True)
        workers = processors() if options.workers is None else options.workers
        trials = Trials(
            runner,
            runner.loss(options.loss, program.plan.outputs),
            chosen,
            identity=_identity(
                package,
                found,
                chosen,
                # devices round differently
                (options.loss, program.function, program.device.type),
            ),
            workers=workers,
        )
        return cls(
            options=options,
            found=attrs.evolve(found, notes=(*found.notes, *_notes_on_samples(chosen, known))),
            program=program,
            samples=chosen,
            are_random=samples is None,
            before=package_bytes(package.path),
            calibration=known,
            losses=KnownLosses(
                found.weights, sites, trials, workers, options.progress, options.cache
            ),
            packages=Packages(
                source,
                found,
                target=options.target,
                calibration=known,
                method=options.method,
                workers=options.workers,
                joint_compression=options.joint_compression,
            ),
        )

    @property
    def weights(self) -> Sequence[WeightForms]:
        """Its weights, and the forms that they can have."""
        return self.found.weights

    @property
    def elements(self) -> int:
        """The elements of all of its weights."""
        return sum(each.weight.size for each in self.weights)

    def recipe(
        self,
        planned: Planned,
        goal: Goal,
        *,
        output: str | os.PathLike[str] | None,
        points: Sequence[Point],
    ) -> Recipe:
        """Return the recipe of what was planned, and write the package if ``output`` says where."""
        nbytes = planned.nbytes
        if output is not None:
            nbytes = package_bytes(self.packages.written(planned.forms, self.losses, output).path)
        return Recipe(
            weights=tuple(self._weights(planned)),
            target=self.packages.target_of(planned.forms),
            loss=self.options.loss,
            samples=len(self.samples),
            are_random=self.are_random,
            nbytes=nbytes,
            nbytes_before=self.before,
            limit=goal.limit,
            most_loss=goal.most_loss,
            expected=planned.expected,
            measured=planned.measured,
            metric=planned.metric,
            least_metric=goal.least_metric,
            gap=planned.gap,
            joint_compression=self.options.joint_compression,
            calibration=None if self.calibration is None else self.calibration.identity,
            points=tuple(points),
            notes=self.found.notes,
        )

    def _weights(self, planned: Planned) -> Iterator[RecipeWeight]:
        for i, each in enumerate(self.weights):
            tried = []
            for n, form in enumerate(each.forms):
                loss, known = self.losses.loss(i, n)
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


def _samples(
    samples: Iterable[Mapping[str, Any]] | None, program: Program, options: Options
) -> list[Mapping[str, Any]]:
    if samples is None:
        return [*random_samples(program, options.random, options.seed)]
    chosen = checked_samples(samples)
    if options.are_shared:
        return [{n: sample[n] for n in program.inputs if n in sample} for sample in chosen]
    return chosen


def _notes_on_samples(
    samples: Sequence[Mapping[str, Any]], calibration: Calibration | None
) -> tuple[str, ...]:
    """Return a note if samples are those that tables are fitted to."""
    marks = set() if calibration is None else set(calibration.marks)
    count = sum(mark_of(sample) in marks for sample in samples) if marks else 0
    if not count:
        return ()
    verb = "is" if count == 1 else "are"
    return (
        f"{count} of {counted(len(samples), 'sample')} {verb} also in the calibration: with tables "
        "that are fitted to them, the model loses less there than elsewhere. Plan with others.",
    )


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
    return attrs.evolve(found, weights=weights), sites


def check_choice(found: Sequence[Candidates]) -> None:
    """Refuse models of which no weight can be palettized.

    Raises
    ------
    ConfigError
        No weight has a palette to choose, in any of them.
    """
    weights = [each for candidates in found for each in candidates.weights]
    if not any(form.config is not None for each in weights for form in each.forms):
        raise ConfigError(
            "there is nothing to choose: no weight can be palettized. "
            + "; ".join(sorted({each.reason for each in weights if each.reason})[:3])
        )
