"""``tune``: gradient steps on what a compressed package stores in floats."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mlopt.calibration.answers.losses import (
    Loss,
    LossFunction,
    SquaredError,
)
from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.programs import program_of
from mlopt.calibration.tuning.account import notes_of, tuned_constants, without_gradient
from mlopt.calibration.tuning.arguments import checked_values, checked_what, number_up_to
from mlopt.calibration.tuning.descent import Schedule, Tuning, descend
from mlopt.calibration.tuning.pairing import check_interfaces, check_weights
from mlopt.calibration.tuning.parameters import Parameter, with_units
from mlopt.calibration.tuning.reading import divided, read_samples
from mlopt.calibration.tuning.result import TuningResult
from mlopt.calibration.tuning.store import Store
from mlopt.calibration.tuning.substitutes import Substitutes
from mlopt.calibration.tuning.tunables import Tunable, tunables_of
from mlopt.calibration.tuning.writing import write_tuned
from mlopt.choices import TUNED, LossName, Tuned
from mlopt.coreml.links import link_notes
from mlopt.coreml.models import ModelSource, destination_or_temporary
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.writer import check_destination
from mlopt.requests.checked import integer
from mlopt.runtime import Program


def tune(
    compressed: ModelSource,
    original: ModelSource,
    samples: Iterable[Any],
    *,
    output: str | os.PathLike[str] | None = None,
    loss: LossName | LossFunction = "squared",
    values: Collection[str] | None = None,
    what: Collection[str] = TUNED,
    steps: int = 150,
    learning_rate: float | None = None,
    batch: int = 4,
    held_out: float = 0.2,
    function: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TuningResult:
    """Tune what a compressed package stores in floats, so that it answers as the original does.

    Indices, masks and integers stay as they are, bit for bit, and so does the size. Gradients of
    the loss go through the whole program; the steps are those of Adam, each a share of the size of
    the numbers. What counts are the numbers as they are stored, so that the loss is of the package
    that is written. It has the state that was best on samples held out, perhaps the first one.

    Memory holds, in float32, all weights of the function, the gradients of the compressed ones, and
    what the operations compute for one sample. The samples and the original's outputs for them are
    in a temporary file, so that ``samples`` is read once.

    Parameters
    ----------
    compressed
        The path of an ``.mlpackage``, or an ``MLModel``, of one ML program, palettized or otherwise
        compressed by any tool. It is not changed.
    original
        The float model that it was made from.
    samples
        Inputs by name, as for :func:`mlopt.calibration.calibrate`; the same samples will do.
    output
        Where to write the package; it appears complete or not at all, and may replace
        ``compressed``. None: a temporary package behind ``result.model``.
    loss
        ``"squared"``: the squared error of each output of floats, relative to its mean square, the
        mean over outputs. ``"kl"``: the divergence of classes or next tokens, from a softmax over
        the last axis; of a classifier, that of its probabilities, otherwise of all outputs. Or a
        function of the outputs of both models, tensors by name, that returns a scalar tensor.
    values
        The names of the outputs that the loss compares, or of intermediate values, which both
        programs have under one name. None: all outputs of floats.
    what
        Some of ``"tables"`` (in 16 or 32 bits; 8-bit tables stay, their scale is tuned),
        ``"scales"`` of weights, ``"biases"`` of linear layers and convolutions, and ``"norms"``:
        factors and offsets of normalizations. A constant that is stored once is tuned once, for all
        that read it, also in other functions.
    steps, learning_rate
        How many steps, and the length of the first, relative to the root mean square of each
        constant; the later ones are shorter, along half a cosine. None: 0.006 times the root of the
        relative squared error of the outputs at first, such as 0.003 at 6 dB and 0.0003 at 26 dB.
    batch
        The samples whose gradients are added up for a step.
    held_out
        The share of the samples that is held out, more than 0 and at most 0.5: every fifth for 0.2.
    function
        The function of a model that has several.
    device
        The torch device that computes, such as ``"cuda"``; None: the CPU.
    seed
        Of the order of the samples. On one machine's CPU, equal arguments give equal results.
    progress
        Called after each step with the steps done, and how many there are.

    Raises
    ------
    ConfigError
        An argument is not one of those allowed, a model is a pipeline, nothing can be tuned, the
        original has other inputs, outputs or weights, or an output or the loss is NaN or infinite.
    InputError
        A sample does not fit the models, or none is left to train on or to hold out.
    RunError
        An operation failed.
    ModelFormatError
        A model is damaged, or has operations that cannot be run.
    DestinationError
        ``output``, or the temporary file, cannot be written.
    """
    chosen, names = checked_what(what), checked_values(values)
    share = number_up_to(held_out, "held_out", most=0.5)
    schedule = Schedule(
        steps=integer(steps, "steps", minimum=1),
        learning_rate=None
        if learning_rate is None
        else number_up_to(learning_rate, "learning_rate", most=1.0),
        batch=integer(batch, "batch", minimum=1),
        seed=integer(seed, "seed", minimum=0),
    )
    if output is not None:
        check_destination(output)
    place = torch.device("cpu") if device is None else device
    programs = tuple(
        program_of(each, function, place, job="tune") for each in (compressed, original)
    )
    check_interfaces(*programs)
    package = open_package(compressed)
    weights, (nodes,) = weights_of(package)
    if not any(weight.is_compressed for weight in weights):
        raise ConfigError(
            f"{package.path}: the model to tune has no compressed weights; palettize it first, and "
            "give the float model as the original"
        )
    tunables, left = tunables_of(nodes, programs[0].function, chosen)
    notes = check_weights(weights, weights_of(open_package(original))[0])
    substitutes = _substitutes(programs[0], tunables, left, chosen)

    runner = Runner(programs[0], keeps_weights=True, values=names)
    squares = SquaredError()
    judge = runner.loss(loss, names or programs[1].plan.outputs)
    with contextlib.closing(Store(programs[0].device)) as store:
        original_runner = Runner(programs[1], keeps_weights=False, values=names)
        read_samples(samples, runner, original_runner, store, (squares, judge))
        trained, kept = divided(len(store), share)
        tuning = Tuning(
            runner=runner, substitutes=substitutes, store=store, loss=judge, squares=squares
        )
        outcome = descend(
            tuning,
            schedule,
            trained=trained,
            held_out=kept,
            progress=progress or (lambda done, total: None),
        )
        original_loss = _own_loss(judge, store, kept)
    path = _written(package, output, substitutes if outcome.best_step else None)
    return TuningResult(
        path=path,
        before=outcome.before,
        after=outcome.after,
        original_loss=original_loss,
        steps=outcome.steps,
        learning_rate=outcome.learning_rate,
        best_step=outcome.best_step,
        trained_samples=len(trained),
        held_out_samples=len(kept),
        tuned=tuned_constants(substitutes, outcome),
        left=left | without_gradient(substitutes, outcome),
        notes=(*link_notes(package), *notes, *notes_of(outcome, trained)),
        source=compressed if hasattr(compressed, "get_spec") else None,
        is_temporary=output is None,
    )


def _substitutes(
    program: Program, tunables: Sequence[Tunable], left: dict[str, str], what: Collection[Tuned]
) -> Substitutes:
    """Return the places of all that is tuned, and note in ``left`` what is not."""
    parameters, without = with_units(Parameter(each, program.device) for each in tunables)
    for each in without:
        left[each.tunable.name] = "its numbers are all 0, which gives steps no length"
    substitutes = Substitutes(program, {each.tunable.key: each for each in parameters})
    for each in parameters:
        if each.tunable.key not in substitutes.parameters:
            left[each.tunable.name] = f"no operation of function {program.function!r} reads it"
    kinds = {each.tunable.kind for each in substitutes.parameters.values()}
    if not kinds:
        reasons = [f"{name}: {reason}" for name, reason in list(left.items())[:5]]
        raise ConfigError(
            f"the compressed model has none of the {', '.join(sorted(what))} to tune"
            + (f": {'; '.join(reasons)}" if reasons else "")
        )
    return substitutes


def _own_loss(loss: Loss, store: Store, numbers: Sequence[int]) -> float:
    """Return the loss of the original's own outputs."""
    losses = []
    for number in numbers:
        _, originals = store.sample(number)
        losses.append(float(loss(originals, originals)))
    return math.fsum(losses) / len(losses)


def _written(
    package: Package, output: str | os.PathLike[str] | None, substitutes: Substitutes | None
) -> Path:
    parameters = {} if substitutes is None else substitutes.parameters
    values = {key: each.array() for key, each in parameters.items()}
    with destination_or_temporary(output) as path:
        return write_tuned(package, path, values)
