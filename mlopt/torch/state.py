"""``load_state_dict``: the state of a palettized model for a plain one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.torch.activations import attach_quantizers, is_quantizer_state
from mlopt.torch.carried import is_palette_field, remove_palettes


def load_state_dict(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, strict: bool = True
) -> Any:
    """Load the ``state_dict`` of a palettized model, palettes included.

    A plain model has no buffers for palettes, nor quantizers of activations, and its own
    ``load_state_dict`` refuses them. Here it gets them first, in place of any that it has.

    Parameters
    ----------
    model
        A model of the same modules, palettized or not. It is changed.
    state
        The ``state_dict`` of a palettized model, or what ``torch.load`` returns for a saved one.
    strict
        Refuse a state that lacks parameters or buffers of the model, or has others. False: load
        those that both have.

    Returns
    -------
    What ``torch.nn.Module.load_state_dict`` returns: missing and unexpected keys.

    Raises
    ------
    ConfigError
        Keys (``strict``) or shapes do not fit. Then the model is unchanged.
    """
    own, plain = (
        {k: v for k, v in each.items() if not (is_palette_field(k) or is_quantizer_state(k))}
        for each in (model.state_dict(), state)
    )
    problems = [f"no {key!r} in the state" for key in own if key not in plain] if strict else []
    problems += [f"no {key!r} in the model" for key in plain if key not in own] if strict else []
    problems += [
        f"{key!r} is {_shape(plain[key])} in the state, {_shape(own[key])} in the model"
        for key in own
        if key in plain and _shape(own[key]) != _shape(plain[key])
    ]
    if problems:
        raise ConfigError(
            "the state does not fit the model:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\nBuild the model exactly as it was when the state was saved"
        )
    remove_palettes(model)
    attach_quantizers(model, state)
    modules = dict(model.named_modules())
    for key, tensor in state.items():
        module_name, _, name = key.rpartition(".")
        if is_palette_field(key) and module_name in modules:
            module = modules[module_name]
            device = next((p.device for p in module.parameters()), tensor.device)
            module.register_buffer(name, torch.empty_like(tensor, device=device))
    return model.load_state_dict(dict(state), strict=strict)


def _shape(value: Any) -> list[int] | None:
    """Return the shape of a tensor; None for the extra state that a module may have."""
    return list(value.shape) if isinstance(value, torch.Tensor) else None
