"""``plan_together``: several packages under one budget, such as the chunks of a language model."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch

from mlopt.calibration.programs import checked_sample
from mlopt.choices import Costs, Device, LossName, Method
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.planning.candidates import check_pinned
from mlopt.planning.goals import Goal, check_goal
from mlopt.planning.limits import Budget, Quality
from mlopt.planning.losses import Pair, PlanProgress
from mlopt.planning.planner import Planned, Planner
from mlopt.planning.recipe import Known, Recipe
from mlopt.planning.subjects import Options, Subject, check_choice
from mlopt.runtime.program import Program
from mlopt.statistics.guidance import CalibrationSource
from mlopt.text.words import counted, human_bytes


def plan_together(  # noqa: PLR0913 - those of plan, for several models
    sources: Sequence[ModelSource],
    *,
    budget: Budget | None = None,
    quality: Quality | None = None,
    samples: Iterable[Mapping[str, Any]] | None = None,
    calibrations: Sequence[CalibrationSource] | None = None,
    candidates: Sequence[OpPalettizerConfig] | None = None,
    minimum_deployment_target: TargetName | None = None,
    pinned: Mapping[str, OpPalettizerConfig | None] | None = None,
    devices: Collection[Device] = (),
    joint_compression: bool = False,
    method: Method = "auto",
    loss: LossName = "squared",
    costs: Costs = "near",
    cache: str | os.PathLike[str] | None = None,
    random: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: PlanProgress | None = None,
) -> list[Recipe]:
    """Choose the forms of the weights of several packages for one budget, or one quality.

    Each package is run on its own, and what its outputs lose counts as much as what those of the
    others lose. A weight that is worth more bits gets them, in whichever package it is.

    Parameters
    ----------
    sources
        The packages, in the order in which they run.
    budget, quality
        As for :func:`plan`, of all packages together: their bytes, and the sum of their losses.
    samples
        Inputs by name, for all packages. Where a sample lacks an input, that is the output of this
        name of an earlier package. None: random inputs for each package.
    calibrations
        One for each package, in order; None: none.
    pinned
        As for :func:`plan`, in all packages; a name or glob has to match in one of them.
    candidates, minimum_deployment_target, devices, joint_compression, method, loss, costs, cache,
    random, seed, device, workers, progress
        As for :func:`plan`.

    Returns
    -------
    A recipe for each package, in order. Their notes say that they belong together.

    Raises
    ------
    ConfigError
        There are fewer or more calibrations than packages; and as for :func:`plan`.
    TargetError, ModelFormatError, InputError, RunError
        As for :func:`plan`.
    """
    check_goal(budget, quality)
    if not sources:
        raise ConfigError("there are no packages to plan; give one or more")
    if calibrations is not None and len(calibrations) != len(sources):
        raise ConfigError(
            f"there must be a calibration for each of the {counted(len(sources), 'package')}, in "
            f"order, or none at all, got {len(calibrations)}"
        )
    options = Options(
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
        function=None,
        device=device,
        workers=workers,
        cache=cache,
        progress=progress,
        are_shared=True,
    )
    given = None if samples is None else [dict(checked_sample(s, i)) for i, s in enumerate(samples)]
    subjects = []
    for source, calibration in itertools.zip_longest(sources, calibrations or ()):
        subjects.append(Subject.prepared(source, given, calibration, options))
        if given is not None:
            _add_outputs(subjects[-1].program, given)
    found = [subject.found for subject in subjects]
    check_pinned(found)
    check_choice(found)
    goal = Goal.of(budget, quality, subjects, loss=options.loss)
    joint = _Joint(subjects)
    weights = [weight for subject in subjects for weight in subject.weights]
    planned = goal.planned(Planner(weights, joint, joint.size_of, options.costs))
    return _recipes(joint, planned, goal)


def _add_outputs(program: Program, samples: Sequence[dict[str, Any]]) -> None:
    """Add the outputs of a package to the samples, for later packages."""
    for number, sample in enumerate(samples):
        inputs = {name: sample[name] for name in program.inputs if name in sample}
        outputs = program.predict(inputs, program.make_state(), seed=number)
        for name, value in outputs.items():
            sample.setdefault(name, value)


class _Joint:
    """The losses and sizes of several subjects, as those of one; weights are numbered on."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = subjects
        self._owners = [
            (number, i) for number, each in enumerate(subjects) for i in range(len(each.weights))
        ]

    def parts(self, chosen: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the numbers of forms for each subject."""
        numbers = iter(chosen)
        return [tuple(itertools.islice(numbers, len(s.weights))) for s in self.subjects]

    def size_of(self, chosen: Sequence[int]) -> int:
        """Return the bytes of all packages."""
        parts = zip(self.subjects, self.parts(chosen), strict=True)
        return sum(subject.packages.size_of(part) for subject, part in parts)

    def measure(self, pairs: Iterable[Pair], *, are_quick: bool = False) -> None:
        """Run the models with forms of weights, each alone."""
        by_subject: dict[int, list[Pair]] = {}
        for i, n in pairs:
            number, own = self._owners[i]
            by_subject.setdefault(number, []).append((own, n))
        for number, own_pairs in by_subject.items():
            self.subjects[number].losses.measure(own_pairs, are_quick=are_quick)

    def is_measured(self, pair: Pair) -> bool:
        """Whether that was done."""
        number, own = self._owners[pair[0]]
        return self.subjects[number].losses.is_measured((own, pair[1]))

    def loss(self, i: int, n: int) -> tuple[float, Known]:
        """Return the loss of a weight in a form, and how it is known."""
        number, own = self._owners[i]
        return self.subjects[number].losses.loss(own, n)

    def together(self, chosen: Sequence[int]) -> float:
        """Return the sum of the losses of the packages as they run."""
        parts = zip(self.subjects, self.parts(chosen), strict=True)
        return math.fsum(subject.losses.together(part) for subject, part in parts)


def _recipes(joint: _Joint, planned: Planned, goal: Goal) -> list[Recipe]:
    recipes = []
    count = len(joint.subjects)
    note = (
        f"Planned together with {counted(count - 1, 'other package')}, for "
        f"{human_bytes(planned.nbytes)} in all."
    )
    own_goal = attrs.evolve(goal, limit=None)
    for subject, forms in zip(joint.subjects, joint.parts(planned.forms), strict=True):
        is_run = planned.measured is not None
        part = attrs.evolve(
            planned,
            forms=forms,
            nbytes=subject.packages.size_of(forms),
            expected=math.fsum(subject.losses.loss(i, n)[0] for i, n in enumerate(forms)),
            measured=subject.losses.together(forms) if is_run else None,
        )
        recipe = subject.recipe(part, own_goal, output=None, points=[part.point("plan")])
        notes = (*recipe.notes, note) if count > 1 else recipe.notes
        recipes.append(attrs.evolve(recipe, notes=notes))
    return recipes
