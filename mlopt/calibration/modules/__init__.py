"""Calibration of PyTorch modules, by hooks."""

from mlopt.calibration.modules.run import ModuleRun

__all__ = ["ModuleRun"]
