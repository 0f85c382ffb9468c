"""What tests of calibrations have in common."""

from __future__ import annotations

import numpy as np

FIELDS = ("second", "diagonal", "mean", "sensitivity")


def assert_same(one, other, *, exactly=False):
    """Two calibrations have equal weights and samples, and equal moments, or nearly so."""
    assert one.weights == other.weights
    assert one.samples == other.samples
    for key, moments in one.moments.items():
        assert moments.count == other.moments[key].count
        for field in FIELDS:
            a, b = getattr(moments, field), getattr(other.moments[key], field)
            if a is None:
                assert b is None
            elif exactly:
                assert np.array_equal(a, b)
            else:
                assert np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def only(calibration):
    """The one weight of a calibration, and the moments of its inputs."""
    (weight,) = calibration.weights
    return weight, calibration.moments_of(weight)


def powers(moments, weight):
    """Return ``tr(W H W^T)`` and ``1^T W mu``, over all blocks."""
    matrices = moments.arrangement.matrices(weight).astype(np.float64)
    power = np.einsum("bri,bij,brj->", matrices, moments.second.astype(np.float64), matrices)
    return power, np.einsum("bri,bi->", matrices, moments.mean.astype(np.float64))
