"""Inputs to compare models on: from a file, or drawn at random as the model describes them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlopt.errors import InputError
from mlopt.runtime.constants import Held
from mlopt.runtime.features import ArrayFeature, ImageFeature
from mlopt.runtime.plan import Body, Lazy, Source, Step
from mlopt.runtime.program import Pipeline, Program

_OTHER_INTEGERS = 2
"""Below which integers are drawn that index nothing: flags and masks."""

_SEEDS = 1 << 64
"""How many seeds torch knows."""

_KEEPING = {
    # rearranged
    **dict.fromkeys(("cast", "identity", "reshape", "reshape_like", "flatten2d"), ("x",)),
    **dict.fromkeys(("expand_dims", "squeeze", "transpose", "reverse"), ("x",)),
    **dict.fromkeys(("reverse_sequence", "tile", "pad", "band_part", "sliding_windows"), ("x",)),
    **dict.fromkeys(("depth_to_space", "space_to_depth", "pixel_shuffle"), ("x",)),
    **dict.fromkeys(("pixel_unshuffle", "space_to_batch", "batch_to_space"), ("x",)),
    # chosen
    **dict.fromkeys(("slice_by_index", "slice_by_size", "split", "crop"), ("x",)),
    **dict.fromkeys(("gather", "gather_along_axis", "gather_nd"), ("x",)),
    **dict.fromkeys(("reduce_max", "reduce_min"), ("x",)),
    # joined
    **dict.fromkeys(("concat", "stack"), ("values",)),
    **dict.fromkeys(("scatter", "scatter_along_axis", "scatter_nd"), ("data", "updates")),
    "slice_update": ("x", "update"),
    # negative indices are wrapped by select(cond=x >= 0, a=x, b=x + length) from iOS17 on
    "select": ("a", "b"),
    # not made greater, of whole numbers from 0 on
    **dict.fromkeys(("clip", "floor", "ceil", "round", "abs", "relu"), ("x",)),
    **dict.fromkeys(("maximum", "minimum"), ("x", "y")),
}
"""Inputs of operations whose results hold elements of them: no index gets out of a table there."""

_TABLES = {
    "gather": "x",
    "gather_along_axis": "x",
    "gather_nd": "x",
    "scatter": "data",
    "scatter_along_axis": "data",
    "scatter_nd": "data",
}
"""What the ``indices`` of an operation look up."""


def random_samples(model: Program | Pipeline, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw inputs at their default shapes, the same for the same seed.

    Floats are normal, images uniform. What looks rows of a table up is a whole number below its
    length, other integers are 0 or 1.
    """
    try:
        count = operator.index(count)
    except TypeError:
        raise InputError(
            f"the number of samples to draw has to be a whole number, got {count!r}"
        ) from None
    if count < 1:
        raise InputError(f"at least one sample has to be drawn, got {count}")
    random = np.random.default_rng(checked_seed(seed))
    limits = _lengths_of_tables(model)
    return [
        {name: _drawn(feature, random, limits) for name, feature in model.inputs.items()}
        for _ in range(count)
    ]


def checked_seed(seed: int) -> int:
    """A seed that both numpy and torch take; InputError for another."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < _SEEDS:
        raise InputError(f"seed has to be a whole number from 0 to 2**64 - 1, got {seed!r}")
    return number


def split_samples(
    model: Program | Pipeline, arrays: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Make samples of arrays that hold all of them.

    An array has the shape of the input, for one sample; or one more axis in front; or, where the
    input's first axis has length 1, several there. That of an image is [channels, height, width],
    and the axis of a grey one's channel may be left out.
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
        shape = (1, _channels(feature), feature.height, feature.width)
        return random.integers(0, 256, shape).astype(np.float32)
    if not isinstance(feature, ArrayFeature):
        return "" if feature.kind == "stringType" else 0
    if np.dtype(feature.dtype).kind in "iu" or feature.name in limits:
        limit = min(limits.get(feature.name, _OTHER_INTEGERS), _whole_numbers(feature.dtype))
        return random.integers(0, limit, feature.shape).astype(feature.dtype)
    return random.standard_normal(feature.shape).astype(feature.dtype)


def _whole_numbers(dtype: Any) -> int:
    """The end of the numbers from 0 on that a dtype holds all."""
    if np.dtype(dtype).kind == "f":
        return int(1 << (np.finfo(dtype).nmant + 1)) + 1
    return int(np.iinfo(dtype).max) + 1


def _lengths_of_tables(model: Program | Pipeline) -> dict[str, int]:
    """For inputs that are indices, the length of what they index: the least of several."""
    found: dict[str, int] = {}
    names = {name: frozenset([name]) for name in model.inputs}
    for program in model.programs if isinstance(model, Pipeline) else (model,):
        plan = program.plan
        places = {place: names.get(name, frozenset()) for name, place in plan.inputs.items()}
        shapes = {plan.inputs[name]: kind.shape for name, kind in plan.input_types.items()}
        for step in _steps(plan.body):
            shapes |= {p: o.shape for p, o in zip(step.results, step.outputs, strict=True)}
            limit = _limit(step, shapes)
            if limit is not None and limit > 0:
                for name in _origins(step, ("indices",), places):
                    found[name] = min(found.get(name, limit), limit)
            kept = _origins(step, _KEEPING.get(step.node.op_type, ()), places)
            places |= dict.fromkeys(step.results, kept)
        for name, source in zip(plan.outputs, plan.body.outputs, strict=True):
            names[name] = (
                places.get(source, frozenset()) if isinstance(source, int) else frozenset()
            )
    return found


def _steps(body: Body) -> Iterator[Step]:
    """The steps of a body and of those in it, each after what it needs."""
    for step in body.steps:
        for block in step.blocks:
            yield from _steps(block)
        yield step


def _origins(
    step: Step, parameters: tuple[str, ...], places: Mapping[int, frozenset[str]]
) -> frozenset[str]:
    """The model's inputs that some of a step's arguments hold elements of."""
    found: frozenset[str] = frozenset()
    for parameter, sources in step.arguments:
        if parameter.name in parameters:
            found = found.union(*(places.get(s, ()) for s in sources if isinstance(s, int)))
    return found


def _limit(step: Step, shapes: Mapping[int, tuple[int | None, ...] | None]) -> int | None:
    """Below what the indices of a step have to be; None if it has none, or that is not known."""
    op_type = step.node.op_type
    if op_type == "one_hot":
        return step.fixed.get("one_hot_vector_size")
    sources = {parameter.name: given for parameter, given in step.arguments}
    if op_type not in _TABLES or not {_TABLES[op_type], "indices"} <= sources.keys():
        return None
    shape = _shape(sources[_TABLES[op_type]][0], shapes) or ()
    if op_type.endswith("_nd"):
        # the last axis of the indices holds one for each of the table's first axes
        indices = _shape(sources["indices"][0], shapes) or ()
        first = int(step.fixed.get("batch_dims", 0))
        known = shape[first : first + (indices[-1] or 0)] if indices else ()
        return min((length for length in known if length is not None), default=None)
    axis = int(step.fixed.get("axis", 0))
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _shape(
    source: Source, shapes: Mapping[int, tuple[int | None, ...] | None]
) -> tuple[int | None, ...] | None:
    if isinstance(source, Held):
        return source.shape
    if isinstance(source, Lazy):
        return source.step.outputs[source.index].shape
    return shapes.get(source)


def _split(feature: Any, array: np.ndarray) -> list[Any]:
    if isinstance(feature, ArrayFeature):
        return _split_array(feature, array)
    if isinstance(feature, ImageFeature):
        return _split_images(feature, array)
    if array.ndim > 1:
        raise InputError(
            f"input {feature.name!r} is one value; give an array of rank 1 with one for each "
            f"sample, got shape {list(array.shape)}"
        )
    return [value.item() for value in np.atleast_1d(array)]


def _split_array(feature: ArrayFeature, array: np.ndarray) -> list[Any]:
    takes_any = feature.shape == () and not feature.allowed and not feature.ranges
    if takes_any or feature.takes(array.shape):
        return [array]
    if array.ndim and feature.takes(array.shape[1:]):
        return list(array)
    if array.ndim and feature.takes((1, *array.shape[1:])):
        return list(array[:, None])
    raise InputError(
        f"input {feature.name!r} has shape {list(array.shape)}; one sample has "
        f"{feature.described_shapes()}, and several one more axis in front"
    )


def _split_images(feature: ImageFeature, array: np.ndarray) -> list[Any]:
    """Images of [1, channels, height, width] each."""
    channels = _channels(feature)
    size, front = array.shape[-2:], array.shape[:-2]
    if channels == 1 and len(front) < 2:
        front = (*front, 1)
    # one more axis in front of [1, channels, height, width]
    is_several = len(front) == 2 or (len(front) == 3 and front[1] == 1)
    fits = len(size) == 2 and feature.takes(size[1], size[0])
    if not fits or front[-1:] != (channels,) or not (len(front) == 1 or is_several):
        shape = f"[{channels}, height, width]" + " or [height, width]" * (channels == 1)
        raise InputError(
            f"input {feature.name!r} has shape {list(array.shape)}; one image ({feature.space}) "
            f"has {shape}, of {feature.described_sizes()} (width x height), and several one more "
            "axis in front"
        )
    return list(array.reshape(-1, 1, channels, *size))


def _channels(feature: ImageFeature) -> int:
    return 3 if feature.space in ("RGB", "BGR") else 1
