"""Execution of a function's steps: values in a frame, dropped after their last use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.errors import MlOptError, RunError
from mlopt.runtime.call import Call
from mlopt.runtime.element_types import NARROW, ElementTypes
from mlopt.runtime.plan import Body, FunctionPlan, Lazy, Source, Step
from mlopt.runtime.registry import InputSpec
from mlopt.runtime.state import StateTensor
from mlopt.runtime.weights.constants import Held
from mlopt.runtime.weights.packed import Packed
from mlopt.runtime.weights.row_selection import Rows
from mlopt.runtime.weights.scratch import Scratch

Observer = Callable[["Execution", Step, Mapping[str, Any], tuple[Any, ...]], None]
"""A function called after each step with its arguments by parameter, and its results."""


class _Observed(Mapping[str, Any]):
    """The arguments of a step as an observer gets them, while it runs.

    Weights are copied when they are asked for: they may be the mapped file, or kept for other runs.
    """

    def __init__(self, step: Step, arguments: Mapping[str, Any]) -> None:
        self._step, self._arguments = step, arguments

    def __getitem__(self, name: str) -> Any:
        value = self._arguments[name]
        value = value.whole() if isinstance(value, Rows) else value
        sources = next((s for spec, s in self._step.arguments if spec.name == name), ())
        return value if all(isinstance(s, int) for s in sources) else copied(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)


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
            self.kept[key] = _widened(computed) if widens else computed
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
        if isinstance(source, Held) and step.operation.keeps_nothing and self._reuses_memory():
            return source.converted(self._scratch, widens=step.widens)
        if isinstance(source, Lazy) and parameter.takes_rows and self.kept is None:
            return self._rows(source) or self.value(source)
        if step.is_weight:
            return self._computed(source)  # of weights that are kept, only the last form is
        return self.value(source, widens=step.widens)

    def _tensor(self, parameter: InputSpec, sources: tuple[Source, ...]) -> Tensor | None:
        """Return an argument that is a tensor of the frame as it is; None for all others.

        Most are, and in small networks the work around operations takes as long as these.
        """
        if parameter.takes_several or not parameter.takes_tensor or len(sources) != 1:
            return None
        (source,) = sources
        value = self._frame[source] if isinstance(source, int) else None
        return value if isinstance(value, Tensor) else None

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
        frame = [_forked(value, copies) for value in self._frame]
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
        self._shared = {}
        results = self._results(step)
        for slot, value in zip(step.results, results, strict=True):
            if slot in self.replaced:
                value = self.replaced[slot](value)
            self._frame[slot] = value
            self._tap(slot, value)
        for slot in step.released:
            self._frame[slot] = None
        self._shared = None
        self._scratch.release()
        return results

    def _run(self, body: Body, first: int = 0) -> tuple[Any, ...]:
        for step in itertools.islice(body.steps, first, None):
            self.advance(step)
        return tuple(self.value(source) for source in body.outputs)

    def _tap(self, slot: int, value: Any) -> None:
        if slot in self.tapped:
            self.taps[slot] = value

    def _results(self, step: Step) -> tuple[Any, ...]:
        arguments = dict(step.fixed)
        try:
            for parameter, sources in step.arguments:
                value = self._tensor(parameter, sources)
                if value is None:
                    values = tuple(self._argument(step, parameter, source) for source in sources)
                    value = parameter.coerce(values)
                arguments[parameter.name] = value
            results = self.called(step, arguments)
        except MlOptError:
            raise
        except Exception as error:
            raise RunError(
                f"{step.title} failed: {type(error).__name__}: {error}\nIt was given "
                f"{_described(arguments)}"
            ) from error
        if self.observer is not None:
            self.observer(self, step, _Observed(step, arguments), results)
        return results

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
        returned = self._called(step, dict(arguments))
        results = returned if isinstance(returned, tuple) else (returned,)
        if len(results) != len(step.outputs):
            raise RunError(f"{step.title} has {len(results)} results, not {len(step.outputs)}")
        return tuple(
            self._as_declared(step, number, result) for number, result in enumerate(results)
        )

    def _called(self, step: Step, arguments: dict[str, Any]) -> Any:
        operation = step.operation
        if step.widens:
            arguments = {name: _widened(value) for name, value in arguments.items()}
        if operation.call_parameter is not None:
            arguments[operation.call_parameter] = self._call(step)
        try:
            return operation.function(**arguments)
        except (RuntimeError, NotImplementedError) as error:
            # torch lacks some functions for half precision on some devices
            is_lacking = "not implemented for" in str(error) and not isinstance(error, RunError)
            if not is_lacking or self.types.precision == "float32":
                raise
            return operation.function(**{n: _widened(v) for n, v in arguments.items()})

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
        declared, dtype = step.outputs[number], step.dtypes[number]
        if isinstance(result, Tensor) and result.dtype == dtype and result.shape == declared.shape:
            return result  # as most are
        if not isinstance(result, Tensor) or dtype is None:
            return result
        shape = declared.shape
        if shape is not None and not _fits(tuple(result.shape), shape):
            self._shapes_differ |= step.operation.declared_loosely
            if not self._shapes_differ:
                raise RunError(
                    f"{step.title} gave shape {list(result.shape)} where the program declares "
                    f"{_shown(shape)}; it was given inputs that contradict the program, or the "
                    "program contradicts itself"
                )
        elif shape is not None and len(shape) != result.dim():
            result = result.reshape(()) if shape == () else result.reshape(1)
        return result if result.dtype == dtype else result.to(dtype)


def _forked(value: Any, copies: dict[int, StateTensor]) -> Any:
    """Return a value of a frame for another run; copies: of the states that were met before."""
    if not isinstance(value, StateTensor):
        return value
    return copies.setdefault(id(value), StateTensor(value.value.clone()))


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    if len(shape) != len(declared):
        # coremltools declares scalars that are tensors of one element, and vice versa
        return shape in ((), (1,)) and declared in ((), (1,))
    return all(a == b or b is None for a, b in zip(shape, declared, strict=True))


def _shown(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in shape) + "]"


def copied(value: Any) -> Any:
    """Return tensors, including those in a tuple, copied; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_widened(item) for item in value)
    if isinstance(value, Tensor) and value.dtype in NARROW.values():
        return value.float()
    return value


def _described(arguments: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{name}: {_describe(value)}" for name, value in arguments.items()) or "nothing"
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
