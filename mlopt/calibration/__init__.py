"""Calibration: what the weights of a model multiply, from samples of its inputs."""

from mlopt.calibration.calibrate import calibrate
from mlopt.calibration.sequential import palettize_sequentially
from mlopt.statistics.calibration import Calibration
from mlopt.statistics.merging import merge

__all__ = ["Calibration", "calibrate", "merge", "palettize_sequentially"]
