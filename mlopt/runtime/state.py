"""The state of a model between predictions: tensors by name, all zeros at first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError
from mlopt.runtime.call import OutputType
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.number_arrays import array_of_numbers
from mlopt.runtime.sizes import check_elements


@attrs.define(eq=False)
class StateTensor:
    """One tensor of a state, which operations read and replace."""

    value: Tensor


class State:
    """The result of ``Program.make_state``; predictions change it."""

    def __init__(self, tensors: Mapping[str, StateTensor]) -> None:
        self.tensors = dict(tensors)

    def read_state(self, name: str) -> np.ndarray:
        """Return a copy of one of its tensors; narrower floats in float32, as in coremltools."""
        value = self._tensor(name).value.detach().cpu()
        narrow = value.dtype in (torch.float16, torch.bfloat16)
        array: np.ndarray = (value.float() if narrow else value).numpy().copy()
        return array

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace the values of one of its tensors by an array of its shape."""
        held = self._tensor(name)
        array = array_of_numbers(value, f"state {name!r}")
        if array.shape != tuple(held.value.shape):
            raise InputError(
                f"state {name!r} has shape {list(held.value.shape)}, got {list(array.shape)}"
            )
        # torch has no elements of another byte order, or wider than 8 bytes
        plain = array.astype(np.float64 if held.value.is_floating_point() else np.int64)
        held.value = torch.from_numpy(plain).to(held.value)

    def detach(self) -> None:
        """Forget how its values were computed, which would keep all of that in memory."""
        for held in self.tensors.values():
            held.value = held.value.detach()

    def _tensor(self, name: str) -> StateTensor:
        if name not in self.tensors:
            raise InputError(
                f"there is no state {name!r}; there are {', '.join(map(repr, self.tensors))}"
            )
        return self.tensors[name]


def make_state(
    declared: Mapping[str, OutputType], types: ElementTypes, device: torch.device
) -> State:
    """Return a new state of zeros."""
    tensors = {}
    for name, kind in declared.items():
        # the plan has refused states of unknown shape
        shape = kind.known_shape or ()
        zeros = torch.zeros(shape, dtype=types.dtype(kind.dtype), device=device)
        tensors[name] = StateTensor(zeros)
    return State(tensors)


def check_state(
    state: Any, declared: Mapping[str, OutputType], types: ElementTypes | None = None
) -> None:
    """Refuse anything but the state of a model with these states.

    types: how the model computes; None if its programs check that themselves.
    """
    if state is None:
        if declared:
            raise InputError(
                f"the model has states ({', '.join(declared)}); give what make_state() returns"
            )
        return
    if not isinstance(state, State):
        raise InputError(
            f"a state is what make_state() returns, got {type(state).__name__}; its write_state() "
            "sets values"
        )
    if set(state.tensors) != set(declared):
        raise InputError(
            f"the state is of another model: it has {_names(state.tensors)}, the model "
            f"{_names(declared)}"
        )
    for name, kind in declared.items():
        shape = tuple(state.tensors[name].value.shape)
        if shape != kind.known_shape:
            raise InputError(
                f"the state is of another model: {name!r} has shape {list(shape)}, not "
                f"{list(kind.known_shape or ())}"
            )
        dtype = state.tensors[name].value.dtype
        if types is not None and dtype != types.dtype(kind.dtype):
            raise InputError(
                f"the state is of a program of another precision: {name!r} is {dtype}, not "
                f"{types.dtype(kind.dtype)}; use make_state() of this one"
            )


def state_problem(kind: OutputType, types: ElementTypes) -> str:
    """Return what is wrong with the declaration of a state; "" for nothing."""
    if not types.has(kind.dtype) or kind.known_shape is None:
        return "a state must be a tensor of known shape"
    try:
        check_elements(math.prod(kind.known_shape))
    except ValueError as error:
        return str(error)
    return ""


def _names(tensors: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, tensors)) or "none"
