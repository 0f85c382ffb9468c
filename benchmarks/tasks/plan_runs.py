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
from benchmarks.tasks.plan_trials import PLANNED
from mlopt.choices import LossName
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig
from mlopt.planning.recipe import Recipe

Kind: TypeAlias = Literal["data-free", "calibrated"]
Row: TypeAlias = "dict[str, Any]"

PLAN, SEQUENTIAL = "plan", "plan, sequential"
METHODS = (PLAN, SEQUENTIAL, *RULES)
KINDS: tuple[Kind, ...] = ("data-free", "calibrated")
"""Tables fitted to weights and losses for random inputs; or both with the samples of the trial."""


@attrs.frozen(eq=False)
class Subject:
    """A model, the samples that it is calibrated with, and who judges packages."""

    path: str
    samples: Sequence[Sample]
    ask: Ask
    calibration: Any = None  # a mlopt.statistics.Calibration; None: data-free

    def judged(self, config: OptimizationConfig, *, in_sequence: bool = False) -> Row:
        """What applying a request takes, and what comes of it."""
        from mlopt.calibration import palettize_sequentially
        from mlopt.coreml import palettize

        row: Row = {}
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "palettized.mlpackage"
            given: Row = {"output": output, "calibration": self.calibration}
            with _measuring(row):
                if in_sequence:
                    palettize_sequentially(self.path, config, self.samples, **given)
                else:
                    palettize(self.path, config, **given)
            return row | {"bytes": package_bytes(output), **self.ask(str(output))}

    def planned(self, budget: int, *, costs: str, count: int, loss: LossName) -> Recipe:
        """The plan for a package of so many bytes."""
        from mlopt.planning.plan import plan

        given: Row = {"budget": budget, "costs": costs, "loss": loss}
        if self.calibration is None:
            return plan(self.path, random=count, **given)
        spread = [self.samples[i * len(self.samples) // count] for i in range(count)]
        return plan(self.path, samples=spread, calibration=self.calibration, **given)


def measure(
    model: str,
    path: str,
    kind: Kind,
    widths: Sequence[int],
    methods: Sequence[str],
    costs: str,
    count: int,
) -> list[Row]:
    """A row for each width and method, one for calibrating, one for each plan (in a child).

    costs: which losses are measured; count: the samples for that.
    """
    trial = PLANNED[model]
    samples, ask = trial.judge(path)
    subject = Subject(path, samples, ask)
    rows = []
    if kind == "calibrated":
        from mlopt.calibration import calibrate

        row = _row(model, kind, None, "calibrating")
        with _measuring(row):
            calibration = calibrate(path, samples, statistics=trial.statistics)
        subject = attrs.evolve(subject, calibration=calibration)
        rows.append(_told(row))
    for width in sorted(widths):
        rows += _at_width(subject, trial, methods, _row(model, kind, width, ""), costs, count)
    return rows


def _at_width(
    subject: Subject, trial: Trial, methods: Sequence[str], named: Row, costs: str, count: int
) -> list[Row]:
    """The rows of the methods within the bytes of one width; equal choices are applied once."""
    width = named["width"]
    alike = subject.judged(OptimizationConfig(global_config=OpPalettizerConfig(nbits=width)))
    limit = alike["bytes"]
    row = named | {"method": "planning", "limit": limit}
    with _measuring(row):
        recipe = subject.planned(limit, costs=costs, count=count, loss=trial.loss)
    rows = [_told(row | {"measured": measured_share(recipe)})]
    applied = {_forms(of_one_width(recipe, width)): alike}
    for method in methods:
        in_sequence = method == SEQUENTIAL
        if in_sequence and subject.calibration is None:
            continue
        row = named | {"method": method, "limit": limit, "gap": recipe.gap}
        chosen: Recipe | None = recipe
        if method in RULES:
            del row["gap"]
            chosen = choose(method, recipe, limit)
        if chosen is not None:
            forms = _forms(chosen, in_sequence=in_sequence)
            if forms not in applied:
                applied[forms] = subject.judged(chosen.to_config(), in_sequence=in_sequence)
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
