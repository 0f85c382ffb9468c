"""Loading of models to run them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mlopt.choices import Precision
from mlopt.coreml.models import ModelSource
from mlopt.errors import ConfigError
from mlopt.mil.opening import open_package
from mlopt.mil.program import Program as MILProgram
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.features.described import features_of
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program
from mlopt.runtime.stages import Stage, check_can_run, chosen, stage_of
from mlopt.runtime.suppression import Suppression


def load(
    model_or_path: ModelSource,
    function: str | None = None,
    *,
    stage: int | str | None = None,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    keep_weights: bool = False,
) -> Program | Pipeline:
    """Load a model to run it, on any machine.

    Parameters
    ----------
    model_or_path
        The path of an ``.mlpackage``, or an ``MLModel``: an ML program, a non-maximum suppression,
        or a pipeline of them.
    function
        Which function of a model that has several; None: the one that an ``MLModel`` was made for,
        otherwise the default one.
    stage
        One model of a pipeline alone, by its position from 0 or by its name (``"outer/inner"`` in a
        pipeline of a pipeline), so that its programs can be run even if others of its models
        cannot.
    precision
        ``"float32"``: everything that is declared in a narrower float is computed in float32.
        ``"as_declared"``: the result of each operation is rounded to float16 where the program says
        so, and is infinite beyond its range. On the CPU operations compute in float32 within.
    device
        The torch device that computes.
    keep_weights
        Keep weights decompressed and widened, as they are used. False: each use makes them from the
        file and drops them, so that memory holds only what is live. The weight file is mapped into
        memory: the package may be deleted or replaced meanwhile, but not truncated in place.

    Raises
    ------
    ModelFormatError
        The model is damaged, or has operations, or models of a pipeline, that cannot be run: all
        are named.
    ConfigError
        An argument is not one of those allowed, or the model has no such function or stage.
    """
    types, place = ElementTypes(precision), _device(device)
    package = open_package(model_or_path, without_programs=True)
    where = str(package.path)
    root = stage_of(package.spec, iter(package.programs))
    wanted = root if stage is None else chosen(root, stage, where)
    check_can_run(wanted, where)
    if wanted.program is None and function is not None:
        raise ConfigError(
            f"the model is a {wanted.kind}, which has no function {function!r}; leave it out"
        )
    if function is None and package.spec.description.functions:
        function = getattr(model_or_path, "function_name", None)

    def program_of(message: MILProgram) -> Program:
        return Program(message, function, types, place, keep_weights=keep_weights)

    with torch.inference_mode(False):  # otherwise constants could not take part in gradients
        made = _made(wanted, program_of, where)
    if isinstance(made, Suppression):
        return Pipeline(made.inputs, made.outputs, [made])
    return made


def _made(
    stage: Stage, program_of: Callable[[MILProgram], Program], where: str
) -> Program | Suppression | Pipeline:
    """Return the object that runs a model."""
    if stage.program is not None:
        return program_of(stage.program)
    if not stage.is_pipeline:
        return Suppression(stage.message, where)
    description = stage.message.description
    parts = [_made(part, program_of, where) for part in stage.parts]
    return Pipeline(
        features_of(description.input, where), features_of(description.output, where), parts
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device must be available to torch here, such as 'cpu', got {device!r}: {error}"
        ) from None
    return place
