"""States, read and replaced (MIL, ``defs/*/states.py``).

coremltools writes its ``coreml_update_state`` as ``write_state`` and, if the result is used,
``read_state``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.registry import operation
from mlopt.runtime.state import StateTensor


@operation("read_state", since="CoreML8", in_half=True)
def read_state(input: Any) -> Tensor:
    """The current value of a state."""
    value = _state(input).value
    if value.is_inference() and not torch.is_inference_mode_enabled():
        # written by a prediction, it could have no part in a gradient
        return value.clone()
    return value


@operation("write_state", since="CoreML8", in_half=True)
def write_state(input: Any, data: Tensor) -> tuple[()]:
    """Store ``data`` in a state; there is no output."""
    state = _state(input)
    if data.shape != state.value.shape:
        raise ValueError(
            f"the state has shape {list(state.value.shape)}, got data of {list(data.shape)}"
        )
    state.value = data.to(state.value.dtype)
    return ()


def _state(value: Any) -> StateTensor:
    if not isinstance(value, StateTensor):
        raise TypeError(f"a state is needed, got {type(value).__name__}")
    return value
