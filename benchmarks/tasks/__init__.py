"""Torch modules with what goes with them: calibration samples, a loss, and how good they are."""
