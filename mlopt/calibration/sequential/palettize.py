"""``palettize_sequentially``: weights in program order, each for what those before it leave."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.calibration.losses import Loss, loss_name
from mlopt.calibration.programs import checked_sample, program_of
from mlopt.calibration.readers import Reader
from mlopt.calibration.samples import numbered_samples
from mlopt.calibration.sequential.corrections import Results, correction
from mlopt.calibration.sequential.factors import Factors, factors_of
from mlopt.calibration.sequential.lockstep import Lockstep, Pair
from mlopt.calibration.sequential.sites import Site, sites_of
from mlopt.calibration.sequential.targets import Part, Target
from mlopt.choices import Method
from mlopt.coreml.biases import BiasPlace, NewBias, corrected
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.execution import Computed, compute
from mlopt.coreml.joint import Clustered
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.palettize import Job, PalettizationResult, prepare
from mlopt.coreml.progress import Progress
from mlopt.errors import ConfigError, InputError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.runtime.plan import Step
from mlopt.runtime.program import Program
from mlopt.statistics import Calibration
from mlopt.statistics.guidance import UNGUIDED, CalibrationSource, Guidance, Guides, decibels


def palettize_sequentially(  # noqa: PLR0913 - those of palettize, and what is its own
    source: ModelSource,
    config: OptimizationConfig,
    samples: Iterable[Mapping[str, Any]],
    *,
    calibration: CalibrationSource,
    output: str | os.PathLike[str] | None = None,
    minimum_deployment_target: TargetName | None = None,
    strict: bool = False,
    joint_compression: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    method: Method = "auto",
    correct_biases: bool = True,
    alpha: float = 0.5,
    loss: Loss | None = None,
    function: str | None = None,
    device: str | torch.device = "cpu",
) -> PalettizationResult:
    """Palettize a model, and have each weight make up for errors of those before it.

    The model runs on all samples twice, in step: as it is, and with the weights that are palettized
    so far. A weight is fitted to the inputs that it then gets, and aims, as far as ``alpha`` says,
    at the outputs of the float model and at its residual stream: where the result of an operation
    is added to another tensor, the error of that tensor too.

    Parameters
    ----------
    samples
        Inputs by name, as for :func:`mlopt.calibration.calibrate`: those of the calibration, or
        others of the kind that the model will get. They are held in memory, and of each the values
        between two operations, twice, while weights there are fitted; with a guided calibration
        two bytes for each position of an operation.
    calibration
        As for :func:`mlopt.coreml.palettize`. Its statistics serve the weights that are not fitted
        in sequence: those that several operations read or that are looked up, such as embeddings,
        those in nested blocks and recurrent operations, and those of other functions. Where it is
        guided, positions are weighted by a gradient for each sample, as there.
    alpha
        From 0 (the errors before a weight are not made up for) to 1 (as far as that holds on the
        samples that are kept for a check, every fourth one).
    loss
        What gradients are those of, with a guided calibration; None: its own. One that was made
        with a function needs that again.
    function
        The function of a model that has several; the others' own weights are palettized as without
        samples.
    device
        The torch device that the model runs on.
    source, config, output, minimum_deployment_target, strict, joint_compression, workers, progress,
    method, correct_biases
        As for :func:`mlopt.coreml.palettize`.

    Returns
    -------
    PalettizationResult
        The method of its report's rows is ``"sequential"`` for the weights fitted in sequence, and
        the signal-to-noise ratio of their outputs the one between the two runs: it has the errors
        of all weights before.

    Raises
    ------
    ConfigError, TargetError, ModelFormatError
        As for :func:`mlopt.coreml.palettize`, and where the model is a pipeline, or an input of a
        weight is NaN or infinite.
    InputError, RunError
        As for :func:`mlopt.calibration.calibrate`.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must be from 0 to 1, got {alpha}; 0.5 serves most models")
    chosen = _checked(samples)
    known = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    job = prepare(
        source,
        config,
        output=output,
        minimum_deployment_target=minimum_deployment_target,
        strict=strict,
        joint_compression=joint_compression,
        workers=workers,
        calibration=known,
        method=method,
        correct_biases=correct_biases,
    )
    program = program_of(source, function, device)
    nodes = [node for each in job.package.programs for node in each.nodes()]
    sites = sites_of(program, nodes, job.plan.decisions, job.guides)
    sizes = [d.weight.size for d in job.plan.decisions if isinstance(d.result, PaletteSpec)]
    told = _Told(progress, sum(sizes))
    factors: Factors = {}
    if known.statistics == "guided":
        factors = factors_of(program, sites, chosen, _loss(loss, known), told.gradient)
    sequence = _Sequence(job, program, chosen, factors, alpha=alpha, told=told)
    with torch.inference_mode():
        for site in sites:
            sequence.solve(site)
    computed = sequence.computed
    job = attrs.evolve(job, guides=Guides(sequence.guides, job.guides.notes))
    is_done = told.done == told.total
    return job.finish(computed=computed, progress=None if is_done else progress)


@attrs.define
class _Told:
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


class _Sequence:
    """The weights in order: what is computed for each, and how it is guided."""

    def __init__(
        self,
        job: Job,
        program: Program,
        samples: list[Mapping[str, Any]],
        factors: Factors,
        *,
        alpha: float,
        told: _Told,
    ) -> None:
        self.job, self.factors, self.alpha, self.told = job, factors, alpha, told
        self.computed: dict[int, Computed] = {}
        self.guides: dict[int, Guidance[Any]] = dict(job.guides.by_weight)
        self.runs = Lockstep(program, samples)

    def solve(self, site: Site) -> None:
        """Palettize a weight, and go on with what is stored for it."""
        weight = site.decision.weight
        self.runs.advance(site.first)
        if site.reader is None:
            clustered = self._clustered(site)
            self._replace(site, clustered)
        else:
            clustered = self._fitted(site, site.reader)
        self.computed[id(weight)] = clustered
        self.told.weight(weight.size, weight.name)

    def _clustered(self, site: Site) -> Computed:
        weight, spec = site.decision.weight, site.decision.result
        assert isinstance(spec, PaletteSpec)
        guidance = self.guides.get(id(weight), UNGUIDED)
        return compute(weight, spec, self.job.workers, guidance)

    def _replace(self, site: Site, clustered: Computed) -> None:
        """Have the compressed model compute with what is stored for a weight."""
        if isinstance(clustered, Clustered):
            # in float32, which numpy and torch both know
            values = torch.from_numpy(clustered.palette.values().astype(np.float32, copy=False))
            self.runs.replace(site.sources, values, until=site.last, widens=site.widens)

    def _fitted(self, site: Site, reader: Reader) -> Computed:
        """Fit a weight to the inputs of both models; all runs take the step that reads it."""
        weight, slot = site.decision.weight, self.runs.steps[site.first].results[0]
        before = self.guides[id(weight)]
        self.guides[id(weight)], wanted = self._guidance(site, reader, before)
        clustered = self._clustered(site)
        self._replace(site, clustered)
        for pair in self.runs.pairs:
            self.runs.take(pair, pair.compressed)
        self.runs.position += 1
        if not isinstance(clustered, Clustered):
            return clustered
        if before.bias is not None:
            bias = self._corrected(site, reader, before.bias, wanted)
            clustered = attrs.evolve(clustered, bias=bias)
        power = noise = 0.0
        for pair, reference in zip(self.runs.pairs, wanted, strict=True):
            power += float(reference.double().square().sum())
            noise += float((pair.compressed.value(slot).double() - reference).square().sum())
        return attrs.evolve(clustered, output_snr_db=decibels(power, noise))

    def _guidance(
        self, site: Site, reader: Reader, before: Guidance[Any]
    ) -> tuple[Guidance[Any], list[Tensor]]:
        """Return what the inputs of both models ask for, and the results in the float one.

        The runs of the float model take the step.
        """
        step, weight = self.runs.steps[site.first], site.decision.weight
        target, scale = Target(reader), self._scale(site)
        wanted = []
        for pair in self.runs.pairs:
            inputs = pair.reference.inputs_of(step)
            self.runs.take(pair, pair.reference)
            wanted.append(pair.reference.value(step.results[0]))
            target.add(self._parts(site, reader, pair, inputs, scale), pair.number)
        guidance = target.guidance(weight.value(), before, alpha=self.alpha, title=step.title)
        return guidance, wanted

    def _parts(
        self,
        site: Site,
        reader: Reader,
        pair: Pair,
        before: Mapping[str, Any],
        scale: float,
    ) -> Iterator[Part]:
        """Yield what the operation is given for a sample; ``before``: in the float model."""
        assert reader.inputs is not None
        assert reader.outputs is not None
        step = self.runs.steps[site.first]
        given = pair.compressed.inputs_of(step)
        stream = _stream_error(site, pair, pair.reference.value(step.results[0]))
        streams = repeat(None) if stream is None else reader.outputs(given, stream)
        counts = self._counts(site, pair, scale)
        inputs, others = reader.inputs(given, ()), reader.inputs(before, ())
        for parts in zip(inputs, others, streams, counts, strict=False):
            yield Part(*parts)

    def _counts(self, site: Site, pair: Pair, scale: float) -> Iterable[Tensor | None]:
        """Return what the positions of a sample count, by part."""
        factors = self.factors.get((site.first, pair.number))
        return repeat(None) if factors is None else (part.float() * scale for part in factors)

    def _scale(self, site: Site) -> float:
        """Return what makes the mean of a site's factors 1: they may be tiny."""
        parts = [
            part.double().mean()
            for pair in self.runs.pairs
            for part in self.factors.get((site.first, pair.number), ())
        ]
        mean = float(torch.stack(parts).mean()) if parts else 0.0
        return 1.0 / mean if mean else 1.0

    def _corrected(
        self, site: Site, reader: Reader, place: BiasPlace, wanted: list[Tensor]
    ) -> NewBias | None:
        """Correct the bias of a step that all runs have taken, and its results."""
        assert reader.outputs is not None
        of_parts, step, scale = reader.outputs, self.runs.steps[site.first], self._scale(site)
        slot = step.results[0]

        def results() -> Iterator[Results]:
            for pair, result in zip(self.runs.pairs, wanted, strict=True):
                stream = _stream_error(site, pair, result)
                aim = result if stream is None else result.float() + stream
                given = pair.compressed.value(slot)
                # of operations with biases, parts of results do not depend on arguments
                parts = of_parts({}, aim), of_parts({}, given), self._counts(site, pair, scale)
                for each in zip(*parts, strict=False):
                    yield Results(*each)

        activation = site.activation
        function = None
        if activation is not None:
            function = partial(_applied, activation)
        bias = corrected(place, correction(results, function))
        if bias is not None:
            axis = -1 if step.node.op_type == "linear" else 1
            change = _change(bias)
            for pair in self.runs.pairs:
                moved = _with_bias(pair.compressed.value(slot), change, axis)
                pair.compressed.replace(slot, moved)
        return bias


def _loss(loss: Loss | None, calibration: Calibration) -> Loss:
    if loss is None and calibration.loss == "custom":
        raise ConfigError(
            "the calibration was made with a loss of your own; give the function again, as loss="
        )
    given: Any = calibration.loss if loss is None else loss
    loss_name(given)
    chosen: Loss = given
    return chosen


def _checked(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    numbered, _ = numbered_samples(samples, None)
    chosen = [checked_sample(sample, number) for number, sample in numbered]
    if not chosen:
        raise InputError("there are no samples; give one or more, a few dozen are useful")
    return chosen


def _stream_error(site: Site, pair: Pair, result: Tensor) -> Tensor | None:
    """Return the error of the stream that the result is added to; None where there is none."""
    if site.stream is None:
        return None
    wanted: Tensor = pair.reference.value(site.stream)
    given: Tensor = pair.compressed.value(site.stream)
    return wanted.float() - given.float() if wanted.shape == result.shape else None


def _change(bias: NewBias) -> Tensor:
    """Return a new bias less the one before."""
    before = 0.0 if bias.place.bias is None else np.asarray(bias.place.bias.value(), np.float32)
    return torch.from_numpy(np.asarray(bias.values.astype(np.float32) - before))


def _applied(step: Step, values: Tensor) -> Tensor:
    """Return the results of an elementwise operation for values of any shape, in their dtype."""
    result: Tensor = step.operation.function(x=values, **step.fixed)
    return result


def _with_bias(result: Tensor, change: Tensor, axis: int) -> Tensor:
    shape = [1] * result.dim()
    shape[axis] = -1
    return (result.float() + change.to(result.device).reshape(shape)).to(result.dtype)
