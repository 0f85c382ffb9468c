"""Palettizing PyTorch models: with the names and parameters of coremltools.optimize.torch."""

from typing import Any

from mlopt.drop_in import attribute, names_besides
from mlopt.torch.palettization.config import (
    DKMPalettizerConfig,
    PostTrainingPalettizerConfig,
    SKMPalettizerConfig,
)
from mlopt.torch.palettization.dkm import DKMPalettizer
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig
from mlopt.torch.palettization.fake_palettize import FakePalettize
from mlopt.torch.palettization.granularity import PalettizationGranularity
from mlopt.torch.palettization.module_configs import (
    ModulePostTrainingPalettizerConfig,
    ModuleSKMPalettizerConfig,
)
from mlopt.torch.palettization.post_training import PostTrainingPalettizer
from mlopt.torch.palettization.sensitive import SKMPalettizer

__all__ = [
    "DKMPalettizer",
    "DKMPalettizerConfig",
    "FakePalettize",
    "ModuleDKMPalettizerConfig",
    "ModulePostTrainingPalettizerConfig",
    "ModuleSKMPalettizerConfig",
    "PalettizationGranularity",
    "PostTrainingPalettizer",
    "PostTrainingPalettizerConfig",
    "SKMPalettizer",
    "SKMPalettizerConfig",
]


def __getattr__(name: str) -> Any:
    """Look a name up in coremltools; AttributeError where it has none."""
    return attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *names_besides(__name__)})
