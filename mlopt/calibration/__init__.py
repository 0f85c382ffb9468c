"""Calibration, palettizing in sequence, and tuning: what samples of a model's inputs are for."""

from mlopt.calibration.calibrate import calibrate
from mlopt.calibration.sequential import palettize_sequentially
from mlopt.calibration.tuning import TuningResult, tune
from mlopt.statistics.calibration import Calibration
from mlopt.statistics.merging import merge

__all__ = [
    "Calibration",
    "TuningResult",
    "calibrate",
    "merge",
    "palettize_sequentially",
    "tune",
]
