"""Execution of a function's steps: values in a frame, dropped after their last use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.errors import MlOptError, RunError
from mlopt.runtime.call import Call
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.observing import Observed
from mlopt.runtime.plan import Body, FunctionPlan, Lazy, Source, Step
from mlopt.runtime.registry import InputSpec
from mlopt.runtime.results import as_declared
from mlopt.runtime.state import StateTensor
from mlopt.runtime.values import described, forked, widened
from mlopt.runtime.weights.constants import Held
from mlopt.runtime.weights.packed import Packed
from mlopt.runtime.weights.row_selection import Rows
from mlopt.runtime.weights.scratch import Scratch

Observer = Callable[["Execution", Step, Mapping[str, Any], tuple[Any, ...]], None]
"""A function called after each step with its arguments by parameter, and its results."""


@attrs.define(eq=False)
class Execution:
    """One run of a function; users call :class:`mlopt.runtime.program.Program`.

    types, device: of the computation; seed: of random operations; taps: the slots whose values are
    wanted; substitutes: tensors to use instead of constants and computed weights; observer: see
    ``Observer``; kept: weights computed before, as they are and widened, None to compute them at
    each use; _shared: the results of weights that have several, for the step that is running, None
    between steps; _shapes_differ: whether shapes already differ from the declared ones, for a good
    reason, so that all later ones may differ too.
    """

    plan: FunctionPlan
    types: ElementTypes
    device: torch.device
    seed: int | None = None
    tapped: frozenset[int] = frozenset()
    substitutes: Mapping[Source, Any] = attrs.Factory(dict)
    replaced: Mapping[int, Callable[[Any], Any]] = attrs.Factory(dict)
    observer: Observer | None = None
    kept: dict[tuple[Source, bool], Any] | None = None
    taps: dict[int, Any] = attrs.Factory(dict)
    _frame: list[Any] = attrs.Factory(list)
    _shared: dict[Step, tuple[Any, ...]] | None = None
    _scratch: Scratch = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: Scratch(self.plan.scratch_size), takes_self=True),
    )
    _shapes_differ: bool = False
    _generator: torch.Generator | None = None

    def run(self, inputs: dict[str, Any]) -> tuple[Any, ...]:
        """Run all steps, and return the outputs of the function in order.

        inputs: tensors and states by name. They are removed from it, so that nothing holds them
        longer than the program needs them.
        """
        self.begin(inputs)
        return self._run(self.plan.body)

    def value(self, source: Source, *, widens: bool = False) -> Any:
        """Return the value of a source; ``widens``: a weight of narrower floats in float32."""
        if isinstance(source, int):
            return self._frame[source]
        if source in self.substitutes:
            return self.substitutes[source]
        if self.kept is None:
            return self._computed(source)
        key = (source, widens)
        if key not in self.kept:
            computed = self._computed(source)
            self.kept[key] = widened(computed) if widens else computed
        return self.kept[key]

    def _computed(self, source: Held | Lazy) -> Any:
        if isinstance(source, Held):
            return source.value()
        step = source.step
        if len(step.outputs) == 1 or self._shared is None:
            return self._results(step)[source.index]
        if step not in self._shared:
            self._shared[step] = self._results(step)
        return self._shared[step][source.index]

    def _argument(self, step: Step, parameter: InputSpec, source: Source) -> Any:
        """As :meth:`value`, but converted only as far as the operation needs."""
        if isinstance(source, int) or source in self.substitutes:
            return self.value(source)
        if isinstance(source, Held) and parameter.takes_packed:
            return source.packed_value()
        if isinstance(source, Held) and step.operation.moves_only:
            return source.stored_value()
        if step.operation.keeps_nothing and self._reuses_memory():
            if isinstance(source, Held):
                return source.converted(self._scratch, widens=step.widens)
            filled = self._filled(source, widens=step.widens)
            if filled is not None:
                return filled
        if isinstance(source, Lazy) and parameter.takes_rows and self.kept is None:
            return self._rows(source) or self.value(source)
        if step.is_weight:
            return self._computed(source)  # of weights that are kept, only the last form is
        return self.value(source, widens=step.widens)

    def _filled(self, source: Lazy, *, widens: bool) -> Tensor | None:
        """Return a weight computed in memory that is reused; None where it cannot be."""
        step, shape = source.step, source.fillable_shape(widens=widens)
        fill, dtype = step.operation.fill, step.dtypes[source.index]
        if fill is None or shape is None or dtype is None:
            return None
        if self.device.type != "cpu" or self.observer is not None:
            return None
        arguments = step.ready.copy()
        try:
            self._add_arguments(step, arguments)
            memory = self._scratch.empty(shape, torch.float32)
            return memory if fill(memory, dtype, arguments) else None
        except (TypeError, ValueError):
            return None  # computing it as usual says what is wrong

    def _reuses_memory(self) -> bool:
        # a gradient needs the weights after the step that used them
        return self.kept is None and torch.is_inference_mode_enabled()

    def _rows(self, source: Lazy) -> Rows | None:
        """Return a compressed weight by its rows, if its operation can compute them."""
        shape = source.step.outputs[source.index].known_shape
        if source.step.operation.rows is None or not shape:
            return None
        return Rows(shape, partial(self.value, source), partial(self._selected, source, shape))

    def _compact(self, source: Source) -> Any:
        """Return data whose rows can be taken without computing, or unpacking, the others."""
        if isinstance(source, int) or source in self.substitutes:
            return self.value(source)
        if isinstance(source, Held):
            return source.packed_value()
        return self._rows(source) or self.value(source)

    def _selected(self, source: Lazy, shape: tuple[int, ...], index: Tensor) -> Tensor:
        """Return rows of a compressed weight of that shape, by indices."""
        step, rows, dtype = (
            source.step,
            source.step.operation.rows,
            source.step.dtypes[source.index],
        )
        assert rows is not None
        arguments = dict(step.fixed)
        for parameter, (inner,) in step.arguments:
            has_rows = parameter.name == rows.data
            read = self._compact if has_rows else partial(self._argument, step, parameter)
            arguments[parameter.name] = read(inner)
        some = rows.arguments(arguments, index, shape[0])
        if some is not None:
            for parameter, _ in step.arguments:
                value = some.get(parameter.name)
                if isinstance(value, Packed) and not parameter.takes_packed:
                    some[parameter.name] = value.unpacked()
            selected: Tensor = self._called(step, some)
            if selected.shape == (len(index), *shape[1:]):
                return selected if dtype is None else selected.to(dtype)
        whole: Tensor = self.value(source)  # or the error of computing it
        return whole.index_select(0, index)

    def begin(self, inputs: dict[str, Any]) -> None:
        """Prepare for the first step, with inputs as for :meth:`run`."""
        self._frame = [None] * self.plan.size
        for name, slot in self.plan.inputs.items():
            self._frame[slot] = inputs.pop(name)
            self._tap(slot, self._frame[slot])

    def fork(self) -> Execution:
        """Return a run that goes on from here on its own, between two steps.

        Values that are computed are shared, states copied. What is drawn at random after this is
        the same in both.
        """
        copies: dict[int, StateTensor] = {}  # several slots may have the same state
        frame = [forked(value, copies) for value in self._frame]
        other = attrs.evolve(self, taps=dict(self.taps), frame=frame)
        if self._generator is not None:
            other._generator = torch.Generator(self.device)
            other._generator.set_state(self._generator.get_state())
        return other

    def finish(self, first: int = 0) -> tuple[Any, ...]:
        """Take all steps from a number on, and return the outputs of the function in order.

        first: 0 after :meth:`begin`, and later the number of steps that were taken.
        """
        return self._run(self.plan.body, first)

    def advance(self, step: Step) -> tuple[Any, ...]:
        """Take one step, and return its results; callers take all steps of a body in order."""
        if step.others:
            self._shared = {}
        results = self._results(step)
        frame = self._frame
        if self.replaced or self.tapped:
            self._store_watched(step, results)
        else:
            for slot, value in zip(step.results, results, strict=True):
                frame[slot] = value
        for slot in step.released:
            frame[slot] = None
        if step.others:
            self._shared = None
            self._scratch.release()
        return results

    def _store_watched(self, step: Step, results: tuple[Any, ...]) -> None:
        for slot, value in zip(step.results, results, strict=True):
            if slot in self.replaced:
                value = self.replaced[slot](value)
            self._frame[slot] = value
            self._tap(slot, value)

    def _run(self, body: Body, first: int = 0) -> tuple[Any, ...]:
        for step in itertools.islice(body.steps, first, None):
            self.advance(step)
        return tuple(self.value(source) for source in body.outputs)

    def _tap(self, slot: int, value: Any) -> None:
        if slot in self.tapped:
            self.taps[slot] = value

    def _results(self, step: Step) -> tuple[Any, ...]:
        arguments = step.ready.copy()
        try:
            self._add_arguments(step, arguments)
            results = self.called(step, arguments)
        except MlOptError:
            raise
        except Exception as error:
            order = [*step.fixed, *(parameter.name for parameter, _ in step.arguments)]
            given = {name: arguments[name] for name in order if name in arguments}
            raise RunError(
                f"{step.title} failed: {type(error).__name__}: {error}\nIt was given "
                f"{described(given)}"
            ) from error
        if self.observer is not None:
            self.observer(self, step, Observed(step, arguments), results)
        return results

    def _add_arguments(self, step: Step, arguments: dict[str, Any]) -> None:
        """Add those arguments of a step that are not ready, and substitutes of those that are."""
        frame = self._frame
        for parameter, name, slot in step.slots:
            value = frame[slot]
            # most are tensors, and in small networks every call here counts
            arguments[name] = value if isinstance(value, Tensor) else parameter.coerce((value,))
        if self.substitutes:
            for name, held in step.constants:
                if held in self.substitutes:
                    arguments[name] = self.substitutes[held]
        for parameter, sources in step.others:
            values = tuple(self._argument(step, parameter, source) for source in sources)
            arguments[parameter.name] = parameter.coerce(values)

    def inputs_of(self, step: Step) -> dict[str, Any]:
        """Return the arguments of a step that are computed, as it would be given them now."""
        return {
            parameter.name: parameter.coerce(tuple(map(self.value, sources)))
            for parameter, sources in step.arguments
            if any(isinstance(source, int) for source in sources)
        }

    def replace(self, slot: int, value: Any) -> None:
        """Replace a value that was computed, for the steps that follow."""
        self._frame[slot] = value

    def called(self, step: Step, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the results of a step for arguments by parameter."""
        returned = self._called(step, arguments)
        declared = step.outputs
        if (
            isinstance(returned, Tensor)
            and len(declared) == 1
            and returned.shape == declared[0].shape
            and returned.dtype == step.dtypes[0]
        ):
            return (returned,)  # as most do
        results = returned if isinstance(returned, tuple) else (returned,)
        if len(results) != len(declared):
            raise RunError(f"{step.title} has {len(results)} results, not {len(declared)}")
        return tuple(self._as_declared(step, *each) for each in enumerate(results))

    def _called(self, step: Step, arguments: Mapping[str, Any]) -> Any:
        operation = step.operation
        if step.widens:
            arguments = {name: widened(value) for name, value in arguments.items()}
        if operation.call_parameter is not None:
            arguments = {**arguments, operation.call_parameter: self._call(step)}
        try:
            return operation.function(**arguments)
        except (RuntimeError, NotImplementedError) as error:
            # torch lacks some functions for half precision on some devices
            is_lacking = "not implemented for" in str(error) and not isinstance(error, RunError)
            if not is_lacking or self.types.precision == "float32":
                raise
            return operation.function(**{n: widened(v) for n, v in arguments.items()})

    def _call(self, step: Step) -> Call:
        blocks = tuple(self._block(body) for body in step.blocks)
        return Call(self.plan.opset, step.outputs, blocks, self.types, self._random)

    def _block(self, body: Body) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        def run(values: tuple[Any, ...]) -> tuple[Any, ...]:
            for slot, value in zip(body.inputs, values, strict=True):
                self._frame[slot] = value
            results = self._run(body)
            for slot in body.inputs:
                self._frame[slot] = None
            return results

        return run

    def _random(self, seed: int | None) -> torch.Generator:
        if seed is not None and seed >= 0:
            return torch.Generator(self.device).manual_seed(seed)
        if self._generator is None:
            self._generator = torch.Generator(self.device)
            if self.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.seed)
        return self._generator

    def _as_declared(self, step: Step, number: int, result: Any) -> Any:
        """Return a result in its dtype, after checking it against the declared shape."""
        result, differs = as_declared(step, number, result, may_differ=self._shapes_differ)
        self._shapes_differ |= differs
        return result
