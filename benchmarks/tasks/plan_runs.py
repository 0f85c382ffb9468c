"""Plans and what other rules choose, for one model: applied, and judged.

All choose from the same forms, whose losses are known from the same measurement, and within the
bytes of the package that has one width for all weights.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.progress import say
from benchmarks.lib.sizes import package_bytes
from benchmarks.tasks.answer_forms import Trial
from benchmarks.tasks.answer_trials import Ask, Sample
from benchmarks.tasks.plan_choices import choose, measured_share, of_one_width
from benchmarks.tasks.plan_rules import RULES
from benchmarks.tasks.plan_trials import PLANNED, SMALLEST
from mlopt.calibration import calibrate
from mlopt.choices import Costs, LossName
from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    foreseen_package_bytes,
)
from mlopt.planning import Recipe, apply_recipe, candidates_over, plan

Kind: TypeAlias = Literal["data-free", "calibrated"]
Row: TypeAlias = "dict[str, Any]"

PLAN, SEQUENTIAL = "plan", "plan, sequential"
METHODS = (PLAN, SEQUENTIAL, *RULES)
KINDS: tuple[Kind, ...] = ("data-free", "calibrated")
"""Tables fitted to weights and losses for random inputs; or both with samples of the trial."""


@attrs.frozen(eq=False)
class Subject:
    """A model, who judges packages, and the samples of its calibration and of losses.

    These are others: tables that are fitted to a few samples lose far less on them than elsewhere,
    and a plan would choose what fits them best.
    """

    path: str
    ask: Ask
    samples: Sequence[Sample]
    tried_on: Sequence[Sample]
    cache: str  # the folder of what is clustered and measured
    smallest: int | None = None  # weights of more elements are palettized; None: the default
    calibration: Any = None  # a mlopt.statistics.Calibration; None: data-free

    def planned(self, budget: int, *, costs: Costs, loss: LossName) -> Recipe:
        """The plan for a package of so many bytes."""
        given: Row = {"budget": budget, "costs": costs, "loss": loss, "cache": self.cache}
        given["candidates"] = candidates_over(self.smallest)
        if self.calibration is None:
            return plan(self.path, random=len(self.tried_on), **given)
        return plan(self.path, samples=self.tried_on, calibration=self.calibration, **given)

    def judged(self, recipe: Recipe, *, in_sequence: bool = False) -> Row:
        """What applying a recipe takes, and what comes of it."""
        given: Row = {"samples": self.samples} if in_sequence else {"cache": self.cache}
        row: Row = {}
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "palettized.mlpackage"
            with _measuring(row):
                apply_recipe(
                    recipe, self.path, output=output, calibration=self.calibration, **given
                )
            return row | {"bytes": package_bytes(output), **self.ask(str(output))}

    def size_of(self, config: OptimizationConfig) -> int:
        """The bytes of the package, before it is written."""
        return foreseen_package_bytes(self.path, config, calibration=self.calibration)


def measure(
    model: str,
    path: str,
    kind: Kind,
    widths: Sequence[int],
    methods: Sequence[str],
    costs: Costs,
    count: int,
    cache: str,
) -> list[Row]:
    """A row for each width and method, one for calibrating, one for each plan (in a child).

    costs: which losses are measured; count: on how many samples, a quarter of them at most;
    cache: the folder of what is clustered and measured.
    """
    trial = PLANNED[model]
    samples, ask = trial.judge(path)
    subject = Subject(path, ask, *split(samples, count), cache, SMALLEST.get(model))
    rows = []
    if kind == "calibrated":
        row = _row(model, kind, None, "calibrating")
        with _measuring(row):
            calibration = calibrate(path, subject.samples, statistics=trial.statistics)
        subject = attrs.evolve(subject, calibration=calibration)
        rows.append(_told(row))
    for width in sorted(widths):
        rows += _at_width(subject, trial, methods, _row(model, kind, width, ""), costs)
    return rows


def split(samples: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """The samples without ``count`` of them, a quarter at most, and these, spread evenly."""
    count = min(count, len(samples) // 4)
    apart = {i * len(samples) // count for i in range(count)}
    parts: tuple[list[Sample], list[Sample]] = [], []
    for number, sample in enumerate(samples):
        parts[number in apart].append(sample)
    return parts


def _at_width(
    subject: Subject, trial: Trial, methods: Sequence[str], named: Row, costs: Costs
) -> list[Row]:
    """The rows of the methods within the bytes of one width; equal choices are applied once."""
    width = named["width"]
    alike = OpPalettizerConfig(nbits=width, weight_threshold=subject.smallest)
    limit = subject.size_of(OptimizationConfig(global_config=alike))
    row = named | {"method": "planning", "limit": limit}
    with _measuring(row):
        recipe = subject.planned(limit, costs=costs, loss=trial.loss)
    rows = [_told(row | {"measured": measured_share(recipe)})]

    def size_of(chosen: Recipe) -> int:
        return subject.size_of(chosen.to_config())

    # so that the rules begin with what is right for one width
    known = of_one_width(recipe, width, size_of)
    applied: dict[Hashable, Row] = {}
    for method in methods:
        in_sequence = method == SEQUENTIAL
        if in_sequence and subject.calibration is None:
            continue
        row = named | {"method": method, "limit": limit, "gap": recipe.gap}
        chosen: Recipe | None = recipe
        if method in RULES:
            del row["gap"]
            chosen = choose(method, known, limit, size_of)
        if chosen is not None:
            forms = _forms(chosen, in_sequence=in_sequence)
            if forms not in applied:
                applied[forms] = subject.judged(chosen, in_sequence=in_sequence)
            row |= {"planned": chosen.nbytes, "expected": chosen.expected, **applied[forms]}
            row["bits"] = 8 * row["bytes"] / sum(weight.size for weight in recipe.weights)
        rows.append(_told(row))
    return rows


def _forms(recipe: Recipe, *, in_sequence: bool = False) -> Hashable:
    return in_sequence, *(weight.chosen for weight in recipe.weights)


def _row(model: str, kind: str, width: int | None, method: str) -> Row:
    return {"model": model, "kind": kind, "width": width, "method": method}


def _told(row: Row) -> Row:
    say(str(row))
    return row


@contextlib.contextmanager
def _measuring(row: Row) -> Iterator[None]:
    """The seconds, and the peak of the memory that the whole process has meanwhile."""
    memory, began = PeakMemory(), time.perf_counter()
    yield
    row["seconds"] = time.perf_counter() - began
    row["peak_bytes"] = memory.start_bytes + memory.above_start_bytes()
