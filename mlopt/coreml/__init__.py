"""Compressing, inspecting and decompressing Core ML models.

The names and parameters of ``coremltools.optimize.coreml``, and :func:`palettize`, which goes from
file to file and accounts for every weight. What is not here (quantization, pruning) is coremltools'
own, loaded when it is asked for: see ``mlopt.drop_in``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlopt.drop_in import attribute, names_besides
from mlopt.on_demand import offer_on_demand

if TYPE_CHECKING:
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
    from mlopt.requests.granularity import CompressionGranularity, Granularity
    from mlopt.requests.report import Report, WeightRow

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

_ours = offer_on_demand(
    __name__,
    {
        ".config": ("OptimizationConfig",),
        ".constexpr": ("CompressedForm",),
        ".decompress": ("DecompressionResult", "decompress", "decompress_weights"),
        ".deployment": ("deployment_target", "raise_target", "set_deployment_target"),
        ".foreseen": ("foreseen_package_bytes",),
        ".lint": ("Finding", "LintReport", "lint"),
        ".metadata": ("CoreMLOpMetaData", "CoreMLWeightMetaData", "get_weights_metadata"),
        ".op_config": ("OpPalettizerConfig",),
        ".palettize": ("PalettizationResult", "palettize", "palettize_weights", "preview"),
        "mlopt.requests.granularity": ("CompressionGranularity", "Granularity"),
        "mlopt.requests.report": ("Report", "WeightRow"),
    },
)


def __getattr__(name: str) -> Any:
    """Load a part, or what coremltools has under this name; AttributeError where it has nothing."""
    return _ours(name) if name in __all__ else attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *names_besides(__name__)})
