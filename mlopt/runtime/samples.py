"""Inputs to compare models on: from a file, or drawn at random as the model describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlopt.errors import InputError
from mlopt.runtime.constants import Held
from mlopt.runtime.features import ArrayFeature, ImageFeature
from mlopt.runtime.program import Pipeline, Program

_OTHER_INTEGERS = 2
"""Below which integers are drawn that index nothing: flags and masks."""


def random_samples(model: Program | Pipeline, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw inputs at their default shapes, the same for the same seed.

    Floats are normal, images uniform. Integers that look rows of a table up are below its length,
    others are 0 or 1.
    """
    if count < 1:
        raise InputError(f"at least one sample has to be drawn, got {count}")
    random = np.random.default_rng(seed)
    limits = _lengths_of_tables(model)
    return [
        {name: _drawn(feature, random, limits) for name, feature in model.inputs.items()}
        for _ in range(count)
    ]


def split_samples(
    model: Program | Pipeline, arrays: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Make samples of arrays that hold all of them.

    An array has the shape of the input, for one sample; or one more axis in front; or, where the
    input's first axis has length 1, several there.
    """
    unknown = [name for name in arrays if name not in model.inputs]
    if unknown:
        raise InputError(
            f"the model has no input {', '.join(map(repr, unknown))}; its inputs are "
            f"{', '.join(map(repr, model.inputs))}"
        )
    parts = {name: _split(model.inputs[name], array) for name, array in arrays.items()}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs hold different numbers of samples: {counts}")
    return [
        {name: part[index] for name, part in parts.items()}
        for index in range(next(iter(counts.values()), 0))
    ]


def _drawn(feature: Any, random: np.random.Generator, limits: Mapping[str, int]) -> Any:
    if isinstance(feature, ImageFeature):
        channels = 3 if feature.space in ("RGB", "BGR") else 1
        shape = (1, channels, feature.height, feature.width)
        return random.integers(0, 256, shape).astype(np.float32)
    if not isinstance(feature, ArrayFeature):
        return "" if feature.kind == "stringType" else 0
    if np.dtype(feature.dtype).kind in "iu":
        limit = limits.get(feature.name, _OTHER_INTEGERS)
        return random.integers(0, limit, feature.shape).astype(feature.dtype)
    return random.standard_normal(feature.shape).astype(feature.dtype)


def _lengths_of_tables(model: Program | Pipeline) -> dict[str, int]:
    """For inputs that are indices of ``gather``, the length of what they index."""
    found: dict[str, int] = {}
    programs = model.programs if isinstance(model, Pipeline) else (model,)
    for program in programs:
        plan = program.plan
        names = {place: name for name, place in plan.inputs.items()}
        aliases = dict(names)
        for step in plan.body.steps:
            sources = {parameter.name: s for parameter, s in step.arguments}
            if step.node.op_type in ("cast", "identity") and len(step.results) == 1:
                (source,) = sources.get("x", (None,))
                if source in aliases:
                    aliases[step.results[0]] = aliases[source]
            if not step.node.op_type.startswith("gather"):
                continue
            (indices,) = sources.get("indices", (None,))
            length = _length(step, sources.get("x", (None,))[0])
            if indices in aliases and length is not None:
                name = aliases[indices]
                found[name] = min(found.get(name, length), length)
    return found


def _length(step: Any, table: Any) -> int | None:
    axis = int(step.fixed.get("axis", 0))
    shape = table.shape if isinstance(table, Held) else None
    if shape is None and not isinstance(table, int | None):
        shape = table.step.outputs[table.index].shape
    if not shape:
        return None
    length = shape[axis]
    return None if length is None else int(length)


def _split(feature: Any, array: np.ndarray) -> list[Any]:
    if isinstance(feature, ArrayFeature):
        if feature.takes(array.shape):
            return [array]
        if array.ndim and feature.takes(array.shape[1:]):
            return list(array)
        if array.ndim and feature.takes((1, *array.shape[1:])):
            return list(array[:, None])
        raise InputError(
            f"input {feature.name!r} has shape {list(array.shape)}; one sample has "
            f"{feature.described_shapes()}, and several one more axis in front"
        )
    if isinstance(feature, ImageFeature):
        return [image[None] if image.ndim == 3 else image for image in np.atleast_3d(array)]
    return [value.item() for value in np.atleast_1d(array)]
