"""Compressed weights, whatever tool wrote them: values and description."""

from mlopt.coreml.constexpr.description import CompressedForm
from mlopt.coreml.constexpr.evaluation import evaluate
from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.coreml.constexpr.parameters import is_constexpr

__all__ = ["CompressedForm", "evaluate", "is_constexpr", "parameter_names"]
