"""Palettizing PyTorch models, and converting them to Core ML with their palettes as they are."""

from mlopt.torch import palettization
from mlopt.torch.carried import remove_palettes
from mlopt.torch.convert import convert
from mlopt.torch.state import load_state_dict

__all__ = ["convert", "load_state_dict", "palettization", "remove_palettes"]
