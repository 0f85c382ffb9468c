"""Statistics of what the weights of a model multiply, and the files that hold them."""

from mlopt.statistics.calibration import Calibration, Match, MomentArrays
from mlopt.statistics.merging import merge
from mlopt.statistics.weight_statistics import WeightStatistics, content_of

__all__ = ["Calibration", "Match", "MomentArrays", "WeightStatistics", "content_of", "merge"]
