"""``palettize_sequentially``: weights in program order, each for what those before it leave."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch

from mlopt.calibration.losses import Loss, loss_name
from mlopt.calibration.programs import checked_samples, program_of
from mlopt.calibration.sequential.factors import Factors, factors_of
from mlopt.calibration.sequential.sequence import Sequence, Told
from mlopt.calibration.sequential.sites import sites_of
from mlopt.choices import LOSSES, Method
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.palettize import PalettizationResult, prepare
from mlopt.coreml.progress import Progress
from mlopt.errors import ConfigError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.checked import word
from mlopt.statistics import Calibration
from mlopt.statistics.guidance import CalibrationSource, Guides, calibration_of


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
    chosen = checked_samples(samples)
    known = calibration_of(calibration)
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
    program = program_of(source, function, device, job="palettize_sequentially")
    nodes = [node for each in job.package.programs for node in each.nodes()]
    sites = sites_of(program, nodes, job.plan.decisions, job.guides)
    sizes = [d.weight.size for d in job.plan.decisions if isinstance(d.result, PaletteSpec)]
    told = Told(progress, sum(sizes))
    factors: Factors = {}
    if known.statistics == "guided":
        factors = factors_of(program, sites, chosen, _loss(loss, known), told.gradient)
    with torch.inference_mode():
        sequence = Sequence(job, program, chosen, factors, alpha=alpha, told=told)
        for site in sites:
            sequence.solve(site)
    computed = sequence.computed
    job = attrs.evolve(job, guides=Guides(sequence.guides, job.guides.notes))
    is_done = told.done == told.total
    return job.finish(computed=computed, progress=None if is_done else progress)


def _loss(loss: Loss | None, calibration: Calibration) -> Loss:
    if loss is not None:
        loss_name(loss)
        return loss
    if calibration.loss == "custom":
        raise ConfigError(
            "the calibration was made with a loss of your own; give the function again, as loss="
        )
    return word(calibration.loss, "loss", LOSSES)
