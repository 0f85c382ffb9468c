"""Compressed weights as anybody wrote them: their values, and what they are made of."""

from mlopt.coreml.constexpr.description import CompressedForm, describe
from mlopt.coreml.constexpr.evaluation import evaluate
from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.coreml.constexpr.palettes import palette_of
from mlopt.coreml.constexpr.parameters import is_constexpr, unpacked
from mlopt.coreml.constexpr.weights import (
    CompressedWeight,
    ContentKeys,
    compressed_weights,
    is_part,
)

__all__ = [
    "CompressedForm",
    "CompressedWeight",
    "ContentKeys",
    "compressed_weights",
    "describe",
    "evaluate",
    "is_constexpr",
    "is_part",
    "palette_of",
    "parameter_names",
    "unpacked",
]
