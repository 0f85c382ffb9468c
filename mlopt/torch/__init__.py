"""Palettizing PyTorch models, and converting them to Core ML with their palettes as they are."""

from typing import Any

from mlopt.drop_in import attribute, names_besides
from mlopt.torch import palettization
from mlopt.torch.adapters import register_module
from mlopt.torch.carried import remove_palettes
from mlopt.torch.convert import convert
from mlopt.torch.state import load_state_dict

__all__ = ["convert", "load_state_dict", "palettization", "register_module", "remove_palettes"]


def __getattr__(name: str) -> Any:
    """Look a name up in coremltools; AttributeError where it has none."""
    return attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *names_besides(__name__)})
