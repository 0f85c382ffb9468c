"""Tuning: gradient steps on what a compressed package stores in floats, its indices fixed."""

from mlopt.calibration.tuning.result import HeldOut, TunedConstant, TuningResult
from mlopt.calibration.tuning.tune import tune

__all__ = ["HeldOut", "TunedConstant", "TuningResult", "tune"]
