"""Calibration: statistics of what the weights of a model multiply, from samples of its inputs."""

from mlopt.calibration.calibrate import calibrate
from mlopt.statistics.calibration import Calibration
from mlopt.statistics.merging import merge

__all__ = ["Calibration", "calibrate", "merge"]
