"""``Packages``: the package with a form of every weight, its exact size, and the file itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from mlopt.choices import Method
from mlopt.coreml.biases import BiasPlace, NewBias
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.execution import Computed
from mlopt.coreml.foreseen import bytes_of_plan
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.palettize import Job, PalettizationResult, prepare
from mlopt.palette.palettize import NoPaletteError
from mlopt.planning.candidates import Candidates
from mlopt.planning.losses import KnownLosses
from mlopt.planning.metrics import Metric
from mlopt.statistics import Calibration


@attrs.frozen(eq=False)
class Packages:
    """The packages that palettizing a model can give; parameters as for :func:`plan`."""

    source: ModelSource
    candidates: Candidates
    target: TargetName | None
    calibration: Calibration | None
    method: Method
    workers: int | None
    joint_compression: bool = False
    _sizes: dict[tuple[int, ...], int] = attrs.Factory(dict)

    def size_of(self, chosen: Sequence[int]) -> int:
        """Return the bytes of the package with a form of every weight, to the byte."""
        key = tuple(chosen)
        if key not in self._sizes:
            job = self._job(chosen, None)
            self._sizes[key] = bytes_of_plan(
                job.package, job.plan, job.guides, workers=self.workers
            )
        return self._sizes[key]

    def target_of(self, chosen: Sequence[int]) -> str:
        """Return the oldest deployment target of the package."""
        return str(self._job(chosen, None).plan.target_after)

    def written(
        self, chosen: Sequence[int], losses: KnownLosses, output: str | os.PathLike[str]
    ) -> PalettizationResult:
        """Write the package; what has been clustered for a form is not clustered again."""
        job = self._job(chosen, output)
        numbers = {each.weight.name: i for i, each in enumerate(self.candidates.weights)}
        computed = {}
        for decision in job.plan.decisions:
            i = numbers[decision.weight.name]
            if self.candidates.weights[i].forms[chosen[i]].config is not None:
                place = job.guides.of(decision.weight).bias
                computed[id(decision.weight)] = _placed(losses.computed(i, chosen[i]), place)
        return job.finish(computed=computed)

    def judged(self, chosen: Sequence[int], *, losses: KnownLosses, metric: Metric) -> float:
        """Return what a metric says of the package, which is written for it."""
        with tempfile.TemporaryDirectory(prefix="mlopt-plan-") as folder:
            path = Path(folder, "planned.mlpackage")
            self.written(chosen, losses, path)
            return metric(path)

    def _job(self, chosen: Sequence[int], output: str | os.PathLike[str] | None) -> Job:
        forms = {
            each.weight.name: each.forms[n]
            for each, n in zip(self.candidates.weights, chosen, strict=True)
        }
        rules = {name: form.config for name, form in forms.items()}
        # where nothing that is palettized has statistics, a calibration would be refused
        is_guided = any(form.guidance.moments is not None for form in forms.values())
        return prepare(
            self.source,
            OptimizationConfig(op_name_configs=rules),
            output=output,
            minimum_deployment_target=self.target,
            strict=False,
            joint_compression=self.joint_compression,
            workers=self.workers,
            calibration=self.calibration if is_guided else None,
            method=self.method if is_guided else "auto",
            correct_biases=True,
        )


def _placed(computed: Computed, place: BiasPlace | None) -> Computed:
    """Return what was clustered in one opening of a package for the same weight in another."""
    if isinstance(computed, NoPaletteError) or computed.bias is None or place is None:
        return computed
    return attrs.evolve(computed, bias=NewBias(place, computed.bias.values))
