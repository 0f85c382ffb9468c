"""Outputs as they are compared: images as tensors, and which outputs are of classes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mlopt.errors import MlOptError
from mlopt.runtime.features.images import ImageFeature
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.plan import Step
from mlopt.runtime.program import Program

_SCORING = {"softmax", "sigmoid", "linear", "matmul", "conv"}
"""Operations whose results can be scores of classes."""

_PASSING = {"cast", "identity", "reshape", "squeeze", "expand_dims", "transpose", "log"}
"""Operations that may follow them, since they keep the order of the scores."""


def answer(model: Program | Pipeline, data: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Return outputs by name, as ``predict`` does, from a new state.

    Images of a program are the tensors before they are rounded to pixels, which still show NaN and
    values beyond 255. Those of a pipeline are images.
    """
    with pixels_of_anything():
        if isinstance(model, Program):
            images = [n for n, f in model.outputs.items() if isinstance(f, ImageFeature)]
            run = model.run(data, model.make_state(), taps=images, seed=seed)
            return run.outputs | run.taps
        outputs = model.predict(data, model.make_state(), seed=seed)
    assert isinstance(outputs, dict)
    return outputs


def label_names(model: Program | Pipeline) -> frozenset[str]:
    """Return the outputs that are labels of classes, strings or integers."""
    return frozenset(
        step.node.outputs[0].name
        for program in programs_of(model)
        for step in program.plan.body.steps
        if step.node.op_type == "classify"
    )


def score_names(model: Program | Pipeline) -> frozenset[str]:
    """Return outputs that can be scores of classes: of a softmax, sigmoid, or last layer's sums.

    Vectors that end in a normalization or a pooling, as embeddings do, are not.
    """
    names: set[str] = set()
    for program in programs_of(model):
        makers = makers_of(program)
        outputs = zip(program.plan.outputs, program.plan.body.outputs, strict=True)
        names.update(name for name, source in outputs if _is_scored(source, makers))
    return frozenset(names)


def probability_names(model: Program | Pipeline) -> frozenset[str]:
    """Return the outputs that are the result of a softmax."""
    names: set[str] = set()
    for program in programs_of(model):
        makers = makers_of(program)
        for name, source in zip(program.plan.outputs, program.plan.body.outputs, strict=True):
            step = _maker(source, makers, _PASSING - {"log"})
            if step is not None and step.node.op_type == "softmax":
                names.add(name)
    return frozenset(names)


@contextlib.contextmanager
def blamed(model: str) -> Iterator[None]:
    """Name in errors of the block the model that they are about."""
    try:
        yield
    except MlOptError as error:
        raise type(error)(f"the {model}: {error}") from error


def pixels_of_anything() -> Any:
    """Suppress the warning when images are made of NaN: those images are not compared."""
    return np.errstate(invalid="ignore")


def colours(image: Any) -> np.ndarray:
    """Return the pixels of a ``PIL.Image`` as float64 [height, width, ...], without alpha."""
    pixels = np.asarray(image, np.float64)
    return pixels[..., :-1] if image.mode in ("RGBA", "LA") else pixels


def is_image(value: Any) -> bool:
    """Return whether a value is a ``PIL.Image``."""
    return hasattr(value, "mode") and hasattr(value, "getbands")


def is_one_row(value: Any) -> bool:
    """Return whether an output is one row of several floats."""
    if isinstance(value, Tensor):
        return False  # an image
    array = np.asarray(value)
    rows = array.size // array.shape[-1] if array.ndim and array.shape[-1] else 0
    return array.dtype.kind == "f" and rows == 1 and array.ndim <= 2 and array.shape[-1] > 1


def programs_of(model: Program | Pipeline) -> tuple[Program, ...]:
    """Return the programs of a model in order."""
    return model.programs if isinstance(model, Pipeline) else (model,)


def makers_of(program: Program) -> dict[int, Step]:
    """Return the step that writes each slot of a program's own block."""
    return {slot: step for step in program.plan.body.steps for slot in step.results}


def _is_scored(source: Any, makers: Mapping[int, Step]) -> bool:
    step = _maker(source, makers, _PASSING)
    return step is not None and step.node.op_type in _SCORING


def _maker(source: Any, makers: Mapping[int, Step], passing: Collection[str]) -> Step | None:
    """Return the step that makes a value, in front of those that only pass it on."""
    while isinstance(source, int) and source in makers:
        step = makers[source]
        given = {parameter.name: sources for parameter, sources in step.arguments}
        if step.node.op_type not in passing or "x" not in given:
            return step
        (source,) = given["x"]
    return None
