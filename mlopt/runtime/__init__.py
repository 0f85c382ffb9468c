"""Running ML programs with PyTorch, on any machine."""

import mlopt.runtime.ops  # noqa: F401  registers the operations
from mlopt.runtime.comparison.compare import compare
from mlopt.runtime.comparison.float16 import compare_float16
from mlopt.runtime.comparison.float16_results import Float16Comparison
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.loading import load
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program, Run
from mlopt.runtime.state import State

__all__ = [
    "Comparison",
    "Float16Comparison",
    "Pipeline",
    "Program",
    "Run",
    "State",
    "compare",
    "compare_float16",
    "load",
]
