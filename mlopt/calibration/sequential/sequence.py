"""``Sequence``: the weights of a function, palettized in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch

from mlopt.calibration.readers import Reader
from mlopt.calibration.sequential.corrections import correction
from mlopt.calibration.sequential.factors import Factors
from mlopt.calibration.sequential.lockstep import Lockstep
from mlopt.calibration.sequential.sites import Site
from mlopt.calibration.sequential.targets import Target
from mlopt.calibration.sequential.visit import Visit
from mlopt.coreml.biases import BiasPlace, NewBias, corrected
from mlopt.coreml.execution import Computed, compute
from mlopt.coreml.joint import Clustered
from mlopt.coreml.palettize import Job
from mlopt.coreml.progress import Progress
from mlopt.palette.value.spec import PaletteSpec
from mlopt.runtime.program import Program
from mlopt.statistics.guidance import UNGUIDED, Guidance


@attrs.define
class Told:
    """What a progress callback is told: elements done of all, and of what."""

    progress: Progress | None
    total: int
    done: int = 0

    def gradient(self, number: int, samples: int) -> None:
        """A gradient is done; no weight is."""
        if self.progress is not None:
            self.progress(0, self.total, f"gradient {number} of {samples}")

    def weight(self, size: int, name: str) -> None:
        """A weight is done."""
        self.done += size
        if self.progress is not None:
            self.progress(self.done, self.total, name)


class Sequence:
    """The weights in order: what is computed for each, and how it is guided.

    computed, guides: by the identity of the weights. In ``torch.inference_mode()``.
    """

    def __init__(
        self,
        job: Job,
        program: Program,
        samples: list[Mapping[str, Any]],
        factors: Factors,
        *,
        alpha: float,
        told: Told,
    ) -> None:
        self.computed: dict[int, Computed] = {}
        self.guides: dict[int, Guidance[Any]] = dict(job.guides.by_weight)
        self._job, self._factors, self._alpha, self._told = job, factors, alpha, told
        self._runs = Lockstep(program, samples)

    def solve(self, site: Site) -> None:
        """Palettize a weight, and go on with what is stored for it."""
        weight = site.decision.weight
        self._runs.advance(site.first)
        if site.reader is None:
            clustered = self._clustered(site, self.guides.get(id(weight), UNGUIDED))
            self._replace(site, clustered)
        else:
            clustered = self._fitted(site, site.reader)
        self.computed[id(weight)] = clustered
        self._told.weight(weight.size, weight.name)

    def _clustered(self, site: Site, guidance: Guidance[Any]) -> Computed:
        weight, spec = site.decision.weight, site.decision.result
        assert isinstance(spec, PaletteSpec)
        return compute(weight, spec, self._job.workers, guidance)

    def _replace(self, site: Site, clustered: Computed) -> None:
        """Have the compressed model compute with what is stored for a weight."""
        if isinstance(clustered, Clustered):
            # in float32, which numpy and torch both know
            values = torch.from_numpy(clustered.palette.values().astype(np.float32, copy=False))
            self._runs.replace(site.sources, values, until=site.last, widens=site.widens)

    def _fitted(self, site: Site, reader: Reader) -> Computed:
        """Fit a weight to the inputs of both models; all runs take the step that reads it."""
        weight = site.decision.weight
        before = self.guides[id(weight)]
        visit, target = Visit(site, reader, self._runs, self._factors), Target(reader)
        for number, parts in visit.inputs():
            target.add(parts, number)
        guidance = target.guidance(
            weight.value(), before, alpha=self._alpha, title=visit.step.title
        )
        del target
        clustered = self._clustered(site, guidance)
        # without the moments, which are of no more use
        self.guides[id(weight)] = Guidance(guidance.method, notes=guidance.notes)
        self._replace(site, clustered)
        visit.leave()
        if not isinstance(clustered, Clustered):
            return clustered
        bias = self._corrected(visit, before.bias) if before.bias is not None else None
        return attrs.evolve(clustered, bias=bias, output_snr_db=visit.ratio())

    def _corrected(self, visit: Visit, place: BiasPlace) -> NewBias | None:
        """Correct the bias of a step that all runs have taken, and its results."""
        bias = corrected(place, correction(visit.results, visit.activation))
        if bias is not None:
            visit.move(torch.from_numpy(bias.change()))
        return bias
