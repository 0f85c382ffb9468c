"""The state of a model between predictions: tensors by name, all zeros at first."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError
from mlopt.runtime.call import OutputType
from mlopt.runtime.element_types import ElementTypes


@attrs.define(eq=False)
class StateTensor:
    """One tensor of a state, which operations read and replace."""

    value: Tensor


class State:
    """What ``Program.make_state`` gives; predictions change it."""

    def __init__(self, tensors: Mapping[str, StateTensor]) -> None:
        self.tensors = dict(tensors)

    def read_state(self, name: str) -> np.ndarray:
        """A copy of one of its tensors."""
        return self._tensor(name).value.detach().cpu().numpy().copy()

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace the values of one of its tensors by an array of its shape."""
        held = self._tensor(name)
        array = np.asarray(value)
        if array.shape != tuple(held.value.shape):
            raise InputError(
                f"state {name!r} has shape {list(held.value.shape)}, got {list(array.shape)}"
            )
        held.value = torch.from_numpy(array.copy()).to(held.value)

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
        shape = [length for length in kind.shape or () if length is not None]
        zeros = torch.zeros(shape, dtype=types.dtype(kind.dtype), device=device)
        tensors[name] = StateTensor(zeros)
    return State(tensors)
