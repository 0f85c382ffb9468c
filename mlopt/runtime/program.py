"""One function of an ML program that can be run, with inputs and outputs as ``MLModel.predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, overload

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import ConfigError, ModelFormatError
from mlopt.mil.dtypes import BY_NAME
from mlopt.mil.program import Function
from mlopt.mil.program import Program as MILProgram
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.execution import Execution, Observer
from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.checks import check_is_mapping, check_names, several
from mlopt.runtime.features.described import Feature, features_of, output_value
from mlopt.runtime.make_plan import plan_function
from mlopt.runtime.plan import FunctionPlan, Source
from mlopt.runtime.state import State, StateTensor, check_state, make_state
from mlopt.runtime.values import copied


@attrs.frozen(eq=False)
class Run:
    """The result of a run.

    outputs: as ``predict`` gives them; taps: copies of the tensors of the tapped names, None for a
    value of a block that did not run; the last one for a block that ran several times; the final
    value of a state.
    """

    outputs: dict[str, Any]
    taps: dict[str, Any]


class Program:
    """One function of an ML program, ready to run. Made by :func:`load`.

    Attributes
    ----------
    inputs, outputs
        The features that the model describes, by name.
    plan
        The steps that run the function.
    """

    def __init__(
        self,
        program: MILProgram,
        function: str | None,
        types: ElementTypes,
        device: torch.device,
        *,
        keep_weights: bool,
    ) -> None:
        where = str(program.files.root)
        description = program.model.description
        chosen = _function(program, function)
        self._types, self._device = types, device
        self.plan: FunctionPlan = plan_function(program, chosen, types, device)
        self._kept: dict[tuple[Source, bool], Any] | None = {} if keep_weights else None
        described = next((f for f in description.functions if f.name == chosen.name), description)
        self.inputs: dict[str, Feature] = features_of(described.input, where)
        self.outputs: dict[str, Feature] = features_of(described.output, where)
        self._check_description(where)

    @property
    def function(self) -> str:
        """The name of the function."""
        return self.plan.name

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._device

    @property
    def opset(self) -> str:
        """The opset of the function, such as ``"CoreML7"``."""
        return self.plan.opset

    @property
    def value_names(self) -> tuple[str, ...]:
        """Every name that can be tapped."""
        return tuple(self.plan.sources)

    def make_state(self) -> State:
        """Return a new state, all zeros; empty for a model without states."""
        return make_state(self.plan.state_types, self._types, self._device)

    @overload
    def predict(
        self, data: Mapping[str, Any], state: State | None = None, *, seed: int | None = None
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self, data: Sequence[Mapping[str, Any]], state: None = None, *, seed: int | None = None
    ) -> list[dict[str, Any]]: ...

    def predict(
        self,
        data: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        state: State | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Run the model, as ``MLModel.predict`` on a Mac.

        Parameters
        ----------
        data
            Inputs by name: arrays (anything numpy converts to one, or tensors), ``PIL`` images,
            numbers. Or a list of such dictionaries.
        state
            A result of ``make_state``, for a model with states; it is changed.
        seed
            Seed of random operations that have none of their own; None: a new one each time.

        Returns
        -------
        Outputs by name: arrays in the dtype that the model describes, images, and for classifiers
        the label and a dictionary of probabilities. For a list, a list.

        Raises
        ------
        InputError
            Inputs are missing, unknown, or not as the model describes them.
        RunError
            An operation failed; the message names it.
        """
        if isinstance(data, Mapping):
            return self.run(data, state, seed=seed).outputs
        return [self.run(each, seed=seed).outputs for each in several(data, state)]

    def run(
        self,
        data: Mapping[str, Any],
        state: State | None = None,
        *,
        taps: Iterable[str] = (),
        observer: Observer | None = None,
        seed: int | None = None,
    ) -> Run:
        """Run the model, and inspect intermediate values.

        Parameters
        ----------
        data, state, seed
            As for :meth:`predict`, one dictionary.
        taps
            Names in the program of intermediate values, constants or compressed weights to return
            as tensors. They are copies.
        observer
            Called after each operation with the execution, its step (``step.node``: the operation),
            its arguments by parameter, such as the input and the weight of a convolution, and its
            results. These are the run's own: copy what you change; weights are copies.
        """
        sources = self._named_sources(taps)
        with torch.inference_mode():
            execution, values = self._started(data, state, sources, seed)
            execution.observer = observer
            results = execution.run(values)
            tapped = {name: _tapped(execution, source) for name, source in sources.items()}
        # copied outside inference mode, whose tensors cannot be used in gradients
        return Run(
            self._described(results), {name: copied(value) for name, value in tapped.items()}
        )

    def gradients(
        self,
        data: Mapping[str, Any],
        loss: Callable[[dict[str, Tensor]], Tensor],
        wanted: Iterable[str],
        state: State | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the gradients of a loss with respect to weights and intermediate values.

        Parameters
        ----------
        data, state, seed
            As for :meth:`predict`, one dictionary.
        loss
            A function of the outputs, tensors by name, that returns a scalar tensor.
        wanted
            Names as for ``taps``: of values, of constants, of compressed weights (the gradient is
            with respect to what is decompressed).

        Returns
        -------
        For each name a tensor of the value's shape; zeros where the loss does not depend on it. Of
        what a block computes several times, the last one.

        Raises
        ------
        ConfigError
            A value is not a tensor of floats or was not computed, or the loss is not a scalar
            tensor.
        """
        sources = self._named_sources(wanted)
        leaves: dict[str, Tensor] = {}

        def leaf(name: str, value: Any) -> Tensor:
            _check_differentiable(value, name)
            leaves[name] = value.detach().clone().requires_grad_()
            return leaves[name]

        with torch.inference_mode(False), torch.enable_grad():
            execution, values = self._started(data, state, {}, seed)
            execution.kept = None  # what is kept does not depend on what is wanted
            inputs = {slot: name for name, slot in self.plan.inputs.items()}
            replaced: dict[int, Callable[[Any], Any]] = {}
            substitutes: dict[Source, Any] = {}
            for name, source in sources.items():
                if isinstance(source, int) and source in inputs:
                    values[inputs[source]] = leaf(name, values[inputs[source]])
                elif isinstance(source, int):
                    replaced[source] = partial(_kept_gradient, name=name, leaves=leaves)
                else:
                    substitutes[source] = leaf(name, execution.value(source))
            execution.replaced, execution.substitutes = replaced, substitutes
            self._propagate(execution, values, loss, state)
        _check_computed(sources, leaves)
        return {
            name: torch.zeros_like(leaves[name])
            if leaves[name].grad is None
            else torch.as_tensor(leaves[name].grad)
            for name in sources
        }

    def backpropagate(
        self,
        data: Mapping[str, Any],
        loss: Callable[[dict[str, Tensor]], Tensor],
        replaced: Mapping[int, Callable[[Any], Any]],
        state: State | None = None,
        *,
        observer: Observer | None = None,
        seed: int | None = None,
    ) -> None:
        """Run the model with autograd, and propagate the gradient of a loss back.

        Parameters
        ----------
        data, state, observer, seed
            As for :meth:`run`.
        loss
            As for :meth:`gradients`. One that depends on nothing that requires a gradient has none.
        replaced
            Functions by slot, from a value as it is computed to the one to go on with. They may
            make it a leaf that requires a gradient, or add hooks. Nothing else requires one.

        Raises
        ------
        ConfigError
            The loss is not a scalar tensor.
        """
        with torch.inference_mode(False), torch.enable_grad():
            execution, values = self._started(data, state, {}, seed)
            execution.kept = None
            execution.observer, execution.replaced = observer, replaced
            self._propagate(execution, values, loss, state)

    def _propagate(
        self,
        execution: Execution,
        values: dict[str, Any],
        loss: Callable[[dict[str, Tensor]], Tensor],
        state: State | None,
    ) -> None:
        """Take all steps, and propagate the gradient of a loss of the outputs back."""
        try:
            outputs = dict(zip(self.plan.outputs, execution.run(values), strict=True))
            value = loss(outputs)
            check_loss(value)
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
        finally:
            if state is not None:
                state.detach()

    def execution(self, seed: int | None = None) -> Execution:
        """Return the execution of the plan, for callers that run the steps themselves."""
        return Execution(self.plan, self._types, self._device, seed=seed, kept=self._kept)

    def converted(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs as :meth:`Execution.run` takes them, without states.

        data: as for :meth:`predict`, one dictionary, and its errors.
        """
        return self._converted(data)

    def begin(
        self, data: Mapping[str, Any], state: State | None = None, *, seed: int | None = None
    ) -> Execution:
        """Return a run before its first step, for callers that take the steps themselves.

        data, state, seed: as for :meth:`predict`, one dictionary. In ``torch.inference_mode()``.
        """
        execution, values = self._started(data, state, {}, seed)
        execution.begin(values)
        return execution

    def _started(
        self,
        data: Mapping[str, Any],
        state: State | None,
        sources: Mapping[str, Source],
        seed: int | None,
    ) -> tuple[Execution, dict[str, Any]]:
        values: dict[str, Any] = self._converted(data)
        check_state(state, self.plan.state_types, self._types)
        if state is not None:
            values |= state.tensors
        tapped = frozenset(source for source in sources.values() if isinstance(source, int))
        execution = self.execution(seed)
        execution.tapped = tapped
        return execution, values

    def _converted(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs as tensors in the dtype that the program computes with."""
        check_is_mapping(data)
        check_names(data, self.inputs, "input")
        values = {}
        for name, feature in self.inputs.items():
            tensor = feature.tensor(data[name]) if name in data else feature.default_tensor()
            kind = self.plan.input_types[name]
            if isinstance(tensor, Tensor) and self._types.has(kind.dtype):
                tensor = tensor.to(self._device, self._types.dtype(kind.dtype))
            values[name] = tensor
        return values

    def _described(self, results: tuple[Any, ...]) -> dict[str, Any]:
        values = dict(zip(self.plan.outputs, results, strict=True))
        if not self.outputs:
            return {name: output_value(None, value) for name, value in values.items()}
        return {name: output_value(self.outputs[name], values[name]) for name in self.outputs}

    def _named_sources(self, names: Iterable[str]) -> dict[str, Source]:
        sources = {}
        for name in names:
            if name not in self.plan.sources:
                raise ConfigError(
                    f"the program has no value {name!r}; value_names lists the "
                    f"{len(self.plan.sources)} that exist"
                )
            sources[name] = self.plan.sources[name]
        return sources

    def _check_description(self, where: str) -> None:
        lacking = [name for name in self.inputs if name not in self.plan.input_types]
        lacking += [name for name in self.outputs if name not in self.plan.outputs]
        if lacking:
            raise ModelFormatError(
                f"{where}: the model describes {', '.join(map(repr, lacking))}, which function "
                f"{self.plan.name!r} does not have; it is damaged"
            )
        for name, kind in self.plan.input_types.items():
            # a program in another model's message may describe nothing
            if name not in self.inputs:
                shape = kind.known_shape or ()
                self.inputs[name] = ArrayFeature(name, _numpy_dtype(kind.dtype), shape)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a loaded program is bound to its mapped weight file and cannot be pickled or copied; "
            "load the model again where it is needed"
        )


def _function(program: MILProgram, name: str | None) -> Function:
    functions = {function.name: function for function in program.functions}
    wanted = name or program.model.description.defaultFunctionName or "main"
    if wanted not in functions and name is None and len(functions) == 1:
        return next(iter(functions.values()))
    if wanted not in functions:
        raise ConfigError(
            f"the model has no function {wanted!r}; it has {', '.join(map(repr, functions))}"
        )
    return functions[wanted]


def _tapped(execution: Execution, source: Source) -> Any:
    value = execution.taps.get(source) if isinstance(source, int) else execution.value(source)
    return value.value if isinstance(value, StateTensor) else value


def check_loss(value: Any) -> None:
    """Raise a ConfigError where the result of a loss is not a tensor of one element."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
        raise ConfigError(
            f"loss must return a tensor of one element, got {type(value).__name__}{shape}"
        )


def _check_computed(names: Iterable[str], leaves: Mapping[str, Tensor]) -> None:
    lacking = [name for name in names if name not in leaves]
    if lacking:
        raise ConfigError(
            f"{', '.join(map(repr, lacking))}: no gradient of a value that was not computed; it "
            "is in a block that did not run for these inputs"
        )


def _check_differentiable(value: Any, name: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ConfigError(f"{name!r} is not a tensor of floats, and has no gradient")


def _kept_gradient(value: Any, name: str, leaves: dict[str, Tensor]) -> Tensor:
    """An intermediate value whose gradient is kept."""
    _check_differentiable(value, name)
    kept: Tensor = value if value.requires_grad else value.detach().clone().requires_grad_()
    kept.retain_grad()
    leaves[name] = kept
    return kept


def _numpy_dtype(name: str) -> Any:
    """Return the dtype of an input that the model does not describe, by its element type.

    Integers keep all their digits; float32 stands for what numpy does not have (bf16, fp8).
    """
    dtype = BY_NAME.get(name)
    if dtype is None or dtype.numpy is None or not dtype.own_numpy:
        return np.float32
    return dtype.numpy.type
