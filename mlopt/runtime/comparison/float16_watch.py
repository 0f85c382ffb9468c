"""A program run in float32 and as declared, step by step side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.runtime.comparison.answers import pixels_of_anything
from mlopt.runtime.comparison.float16_rows import Float16Row
from mlopt.runtime.comparison.inside import largest_inside
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.rounding import Rounded
from mlopt.runtime.element_types import NARROW
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Body, Step
from mlopt.runtime.program import Program

_ROUNDED_DB = 70.0
"""About the ratio of numbers rounded to float16 once: if a result has it, arguments with a better
one have lost nothing."""
_NEAR = 0.98
"""The share of the largest number up to which an element counts as fitting."""
_SPREADING = 2.0
"""The factor by which the share of zeros must grow to count as new ones."""


@attrs.define
class Value:
    """Knowledge about a value in the sample that is running.

    overflows: whether elements are infinite for its type, and finite in float32; vanished: the
    share of elements that are zero for its type only; is_broken: whether elements are not finite as
    declared, but finite in float32; snr_db: of the value as declared.
    """

    overflows: bool = False
    vanished: float = 0.0
    is_broken: bool = False
    snr_db: float = math.inf


@attrs.define(eq=False)
class Watched:
    """An output of a declared narrow type, with its row and the sample where it lost most."""

    row: Float16Row
    slot: int
    dtype: torch.dtype
    worst_sample: int = 0
    most_lost: float = -1.0


@attrs.define(eq=False)
class Watch:
    """Both programs, and each output of a declared narrow type, by its slot.

    partners: the step of the narrow program for each in the wide program's own block.
    """

    wide: Program
    narrow: Program
    watched: dict[int, Watched] = attrs.Factory(dict)
    partners: dict[int, Step] = attrs.Factory(dict)
    values: dict[int, Value] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        # both were made from one program, so they have the same steps in the same order
        pairs = zip(self.wide.plan.body.steps, self.narrow.plan.body.steps, strict=True)
        self.partners = {id(first): second for first, second in pairs}

    def run(self, sample: Mapping[str, Any], number: int, seed: int) -> None:
        """Run both on a sample, and add the measurements."""
        self.values = {}
        with pixels_of_anything(), torch.inference_mode():
            shadow = self.narrow.begin(sample, self.narrow.make_state(), seed=seed)

        def watch(
            execution: Execution, step: Step, arguments: Mapping[str, Any], results: tuple[Any, ...]
        ) -> None:
            partner = self.partners.get(id(step))
            declared = [None] * len(results) if partner is None else shadow.advance(partner)
            for index, result in enumerate(results):
                if isinstance(result, Tensor) and result.is_floating_point():
                    self._add(step, index, arguments, result.float(), declared[index], number)

        with pixels_of_anything():
            self.wide.run(sample, self.wide.make_state(), observer=watch, seed=seed)

    def _add(
        self,
        step: Step,
        index: int,
        arguments: Mapping[str, Any],
        result: Tensor,
        declared: Any,
        number: int,
    ) -> None:
        """Add one result of a step: in float32, and as declared (None in nested blocks)."""
        before, after = self._before(step), Value()
        so_far = None
        if isinstance(declared, Tensor) and declared.shape == result.shape:
            declared, so_far = declared.float(), Distance()
            so_far.add(result, declared)
            after.is_broken = so_far.mismatched > 0
            after.snr_db = so_far.snr_db if so_far.status == "different" else math.inf
        self.values[step.results[index]] = after
        dtype = NARROW.get(step.outputs[index].dtype)
        if dtype is None:
            return
        watched = self._watched(step, index, dtype)
        rounded = Rounded.of(result, dtype)
        after.overflows = rounded.overflowed > 0
        after.vanished = rounded.vanished / max(result.numel(), 1)
        _add_range(watched.row, rounded, result.numel())
        if so_far is not None:
            watched.row.so_far.add(result, declared)
            _add_lost(watched.row, before, after)
        # operations that move elements, or run blocks, add no error of their own
        if not step.operation.moves_only and not step.blocks:
            lost = _add_entering(watched.row, result, declared, rounded, before)
            if lost > watched.most_lost:
                watched.most_lost, watched.worst_sample = lost, number
            limit = torch.finfo(dtype).max
            inside = largest_inside(step.node.op_type, arguments, result, limit)
            watched.row.inside = max(filter(None, (inside, watched.row.inside)), default=None)

    def _before(self, step: Step) -> list[Value]:
        """Return the knowledge about those arguments of a step that are not weights."""
        return [
            self.values[source]
            for _, sources in step.arguments
            for source in sources
            if isinstance(source, int) and source in self.values
        ]

    def _watched(self, step: Step, index: int, dtype: torch.dtype) -> Watched:
        slot = step.results[index]
        if slot not in self.watched:
            node = step.node
            kind = step.outputs[index].dtype
            row = Float16Row(node.name, node.op_type, node.outputs[index].name, kind)
            self.watched[slot] = Watched(row, slot, dtype)
        return self.watched[slot]


def declares_narrow(body: Body) -> bool:
    """Return whether any result in a body, nested blocks included, has a declared narrow type."""
    return any(
        any(output.dtype in NARROW for output in step.outputs)
        or any(declares_narrow(block) for block in step.blocks)
        for step in body.steps
    )


def _add_range(row: Float16Row, rounded: Rounded, elements: int) -> None:
    row.elements += elements
    # the number, if one of the two is NaN
    row.least = min(rounded.least, row.least) if row.least == row.least else rounded.least
    row.greatest = max(rounded.greatest, row.greatest)
    if row.greatest != row.greatest:
        row.greatest = rounded.greatest


def _add_lost(row: Float16Row, before: list[Value], after: Value) -> None:
    """Return how much lower the ratio is than in the worst argument, if all are finite."""
    if not before or after.is_broken or any(value.is_broken for value in before):
        return
    worst = min(_ROUNDED_DB, *(value.snr_db for value in before))
    row.lost_db = max(row.lost_db, worst - after.snr_db)


def _add_entering(
    row: Float16Row, result: Tensor, declared: Any, rounded: Rounded, before: list[Value]
) -> float:
    """Count what enters here; return how much that is, for comparing samples."""
    if any(value.overflows for value in before):
        row.carried += rounded.overflowed
        return 0.0
    row.overflowed += rounded.overflowed
    row.subnormal += rounded.subnormal
    worst = max((value.vanished for value in before), default=0.0)
    share = rounded.vanished / max(result.numel(), 1)
    vanished = rounded.vanished if share > _SPREADING * worst else 0
    row.vanished += vanished
    if vanished or not rounded.vanished:
        row.entering.add(result, rounded.values)
    if isinstance(declared, Tensor) and not any(value.is_broken for value in before):
        # close to the limit the errors of arguments decide whether a number is beyond it
        fits = result.abs() < _NEAR * torch.finfo(NARROW[row.dtype]).max
        broken = ~declared.isfinite() & fits
        row.not_finite += int(broken.sum())
    return 2.0 * rounded.overflowed + vanished + rounded.subnormal / 2
