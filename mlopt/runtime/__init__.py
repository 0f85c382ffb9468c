"""Running ML programs with PyTorch, on any machine."""

import mlopt.runtime.ops  # noqa: F401  registers the operations
from mlopt.runtime.comparison import Comparison, compare
from mlopt.runtime.program import Pipeline, Program, Run, load
from mlopt.runtime.state import State

__all__ = ["Comparison", "Pipeline", "Program", "Run", "State", "compare", "load"]
