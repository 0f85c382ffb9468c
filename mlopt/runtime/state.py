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
from mlopt.runtime.sizes import check_elements


@attrs.define(eq=False)
class StateTensor:
    """One tensor of a state, which operations read and replace."""

    value: Tensor


class State:
    """What ``Program.make_state`` gives; predictions change it."""

    def __init__(self, tensors: Mapping[str, StateTensor]) -> None:
        self.tensors = dict(tensors)

    def read_state(self, name: str) -> np.ndarray:
        """A copy of one of its tensors; narrower floats in float32, as coremltools gives them."""
        value = self._tensor(name).value.detach().cpu()
        narrow = value.dtype in (torch.float16, torch.bfloat16)
        array: np.ndarray = (value.float() if narrow else value).numpy().copy()
        return array

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace the values of one of its tensors by an array of its shape."""
        held = self._tensor(name)
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise InputError(
                f"state {name!r} has to be an array of numbers, got dtype {array.dtype}"
            )
        if array.shape != tuple(held.value.shape):
            raise InputError(
                f"state {name!r} has shape {list(held.value.shape)}, got {list(array.shape)}"
            )
        held.value = torch.from_numpy(array.copy()).to(held.value)

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
    """A new state of zeros."""
    tensors = {}
    for name, kind in declared.items():
        zeros = torch.zeros(_lengths(kind), dtype=types.dtype(kind.dtype), device=device)
        tensors[name] = StateTensor(zeros)
    return State(tensors)


def check_state(state: Any, declared: Mapping[str, OutputType]) -> None:
    """Refuse what is not the state of a model with these states."""
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
        if shape != _lengths(kind):
            raise InputError(
                f"the state is of another model: {name!r} has shape {list(shape)}, not "
                f"{list(_lengths(kind))}"
            )


def state_problem(kind: OutputType, types: ElementTypes) -> str:
    """What is wrong with the declaration of a state; "" for nothing."""
    if not types.has(kind.dtype) or kind.shape is None or None in kind.shape:
        return "a state has to be a tensor of known shape"
    try:
        check_elements(math.prod(_lengths(kind)))
    except ValueError as error:
        return str(error)
    return ""


def _lengths(kind: OutputType) -> tuple[int, ...]:
    return tuple(length for length in kind.shape or () if length is not None)


def _names(tensors: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, tensors)) or "none"
