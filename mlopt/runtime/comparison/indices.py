"""Index inputs of a model: those that look up rows of tables, as tokens do, and table lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlopt.mil.raising.indices import INDEXED
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.plan import Body, Lazy, Source, Step
from mlopt.runtime.program import Program
from mlopt.runtime.weights.constants import Held

_STILL_INDICES = {
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
"""Inputs of operations whose results are indices into a table wherever these inputs are.

Results are not greater than their elements; zeros of a padding and clipped values may occur.
(The lint's intervals cover results that hold elements of their inputs and nothing else.)
"""


def lengths_of_tables(model: Program | Pipeline) -> dict[str, int]:
    """Return, for inputs that are indices, the length of what they index: the least of several."""
    lengths: dict[str, int] = {}
    names = {name: frozenset([name]) for name in model.inputs}
    for program in model.programs if isinstance(model, Pipeline) else (model,):
        plan = program.plan
        by_slot = {slot: names.get(name, frozenset()) for name, slot in plan.inputs.items()}
        shapes = {plan.inputs[name]: kind.shape for name, kind in plan.input_types.items()}
        for step in _steps(plan.body):
            shapes |= {p: o.shape for p, o in zip(step.results, step.outputs, strict=True)}
            limit = _limit(step, shapes)
            if limit is not None and limit > 0:
                for name in _origins(step, ("indices",), by_slot):
                    lengths[name] = min(lengths.get(name, limit), limit)
            kept = _origins(step, _STILL_INDICES.get(step.node.op_type, ()), by_slot)
            by_slot |= dict.fromkeys(step.results, kept)
        for name, source in zip(plan.outputs, plan.body.outputs, strict=True):
            names[name] = (
                by_slot.get(source, frozenset()) if isinstance(source, int) else frozenset()
            )
    return lengths


def _steps(body: Body) -> Iterator[Step]:
    """Yield the steps of a body and of nested ones, each after those it needs."""
    for step in body.steps:
        for block in step.blocks:
            yield from _steps(block)
        yield step


def _origins(
    step: Step, parameters: tuple[str, ...], by_slot: Mapping[int, frozenset[str]]
) -> frozenset[str]:
    """Return the model's inputs whose elements some of a step's arguments hold."""
    origins: frozenset[str] = frozenset()
    for parameter, sources in step.arguments:
        if parameter.name in parameters:
            origins = origins.union(*(by_slot.get(s, ()) for s in sources if isinstance(s, int)))
    return origins


def _limit(step: Step, shapes: Mapping[int, tuple[int | None, ...] | None]) -> int | None:
    """Return the bound that a step's indices must be below; None without indices, or if unknown."""
    op_type = step.node.op_type
    if op_type == "one_hot":
        return step.fixed.get("one_hot_vector_size")
    sources = {parameter.name: given for parameter, given in step.arguments}
    if op_type not in INDEXED or not {INDEXED[op_type], "indices"} <= sources.keys():
        return None
    shape = _shape(sources[INDEXED[op_type]][0], shapes) or ()
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
