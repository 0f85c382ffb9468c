"""Statistics of what the weights of a model multiply, and the files that hold them."""

from mlopt.statistics.calibration import Calibration, Match
from mlopt.statistics.held_out import HeldOut
from mlopt.statistics.merging import merge
from mlopt.statistics.moment_arrays import MomentArrays
from mlopt.statistics.weight_statistics import WeightStatistics, content_of

__all__ = [
    "Calibration",
    "HeldOut",
    "Match",
    "MomentArrays",
    "WeightStatistics",
    "content_of",
    "merge",
]
