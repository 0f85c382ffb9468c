"""Compressed weights as anybody wrote them: their values, and what they are made of."""

from mlopt.coreml.constexpr.description import CompressedForm, describe
from mlopt.coreml.constexpr.evaluation import evaluate
from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.coreml.constexpr.palettes import palette_of
from mlopt.coreml.constexpr.parameters import is_constexpr, unpacked

__all__ = [
    "CompressedForm",
    "describe",
    "evaluate",
    "is_constexpr",
    "palette_of",
    "parameter_names",
    "unpacked",
]
