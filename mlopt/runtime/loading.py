"""Making a model runnable."""

from __future__ import annotations

from typing import Any

import torch

from mlopt.errors import ConfigError, ModelFormatError
from mlopt.mil.package import open_package
from mlopt.runtime.element_types import ElementTypes, Precision
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program


def load(
    model_or_path: Any,
    function: str | None = None,
    *,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    keep_weights: bool = False,
) -> Program | Pipeline:
    """Make a model runnable, on any machine.

    Parameters
    ----------
    model_or_path
        The path of an ``.mlpackage``, or an ``MLModel``: an ML program, or a pipeline of them.
    function
        Which function of a model that has several; None: the one that an ``MLModel`` was made for,
        else the default one.
    precision
        ``"float32"``: everything that is declared in a narrower float is computed in float32.
        ``"as_declared"``: float16 is computed in float16, operation by operation.
    device
        Where tensors are computed, of torch.
    keep_weights
        Keep weights as they are computed with, decompressed and widened. False: each use makes them
        from the file and drops them, so that memory follows what is live. The weight file is mapped
        into memory: the package may be deleted or replaced meanwhile, but not be cut in place.

    Raises
    ------
    ModelFormatError
        The model is damaged, no ML program, or has operations that cannot be run: all are named.
    ConfigError
        An argument is none of those allowed, or the model has no such function.
    """
    package = open_package(model_or_path)
    types, place = ElementTypes(precision), _device(device)
    if function is None and package.spec.description.functions:
        function = getattr(model_or_path, "function_name", None)
    with torch.inference_mode(False):  # else constants could have no part in gradients
        programs = [
            Program(program, function, types, place, keep_weights=keep_weights)
            for program in package.programs
        ]
    root = package.spec
    if root.WhichOneof("Type") == "mlProgram":
        return programs[0]
    _check_pipeline(root, str(package.path))
    if function is not None:
        raise ConfigError(f"the model is a pipeline, which has no function {function!r}")
    return Pipeline(root, programs, str(package.path))


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device has to be one that torch has here, such as 'cpu', got {device!r}: {error}"
        ) from None
    return place


def _check_pipeline(model: Any, where: str) -> None:
    kind = model.WhichOneof("Type")
    pipeline = model.pipeline if kind == "pipeline" else getattr(model, kind).pipeline
    others = {inner.WhichOneof("Type") for inner in pipeline.models} - {"mlProgram"}
    if others:
        raise ModelFormatError(
            f"{where}: the pipeline has models of type {', '.join(sorted(map(str, others)))}; only "
            "ML programs can be run"
        )
