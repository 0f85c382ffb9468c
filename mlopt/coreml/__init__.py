"""Compressing, inspecting and decompressing Core ML models.

The names and parameters of ``coremltools.optimize.coreml``, and :func:`palettize`, which goes from
file to file and accounts for every weight. What is not here (quantization, pruning) is coremltools'
own, loaded when it is asked for: see ``mlopt.drop_in``.
"""

from typing import Any

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.constexpr import CompressedForm
from mlopt.coreml.decompress import DecompressionResult, decompress, decompress_weights
from mlopt.coreml.deployment import deployment_target, raise_target, set_deployment_target
from mlopt.coreml.foreseen import foreseen_package_bytes
from mlopt.coreml.lint import Finding, LintReport, lint
from mlopt.coreml.metadata import (
    CoreMLOpMetaData,
    CoreMLWeightMetaData,
    get_weights_metadata,
)
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.palettize import (
    PalettizationResult,
    palettize,
    palettize_weights,
    preview,
)
from mlopt.drop_in import attribute, names_besides
from mlopt.requests.granularity import Granularity
from mlopt.requests.report import Report, WeightRow

CompressionGranularity = Granularity  # the name that coremltools gives to it

__all__ = [
    "CompressedForm",
    "CompressionGranularity",
    "CoreMLOpMetaData",
    "CoreMLWeightMetaData",
    "DecompressionResult",
    "Finding",
    "Granularity",
    "LintReport",
    "OpPalettizerConfig",
    "OptimizationConfig",
    "PalettizationResult",
    "Report",
    "WeightRow",
    "decompress",
    "decompress_weights",
    "deployment_target",
    "foreseen_package_bytes",
    "get_weights_metadata",
    "lint",
    "palettize",
    "palettize_weights",
    "preview",
    "raise_target",
    "set_deployment_target",
]


def __getattr__(name: str) -> Any:
    """What coremltools has under this name; AttributeError where it has nothing."""
    return attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *names_besides(__name__)})
