"""Compressed weights as anybody wrote them: their values, and what they are made of."""

from mlopt.coreml.constexpr.evaluation import evaluate

__all__ = ["evaluate"]
