"""Readers of weights: which inputs an operation multiplies by a weight, for each type."""

from mlopt.calibration.readers.reader import NoStatisticsError, Reader, Use
from mlopt.calibration.readers.registry import reader_of

__all__ = ["NoStatisticsError", "Reader", "Use", "reader_of"]
