"""Moments of the points of each group."""

import numpy as np
import pytest
import torch

from mlopt.torch.palettization.moments import Moments, moments_of, scanned_moments

THRESHOLD = 0.3


def points_about(mean, size=(3, 5000, 1)):
    generator = torch.Generator().manual_seed(0)
    return mean + torch.randn(size, generator=generator)


def by_numpy(points):
    wide = points.double().numpy()
    squares = (wide**2).sum(2).mean(1)
    variance = ((wide - wide.mean(1, keepdims=True)) ** 2).sum(2).mean(1)
    return Moments(squares, wide.mean((1, 2)), variance)


def assert_near(moments, expected, tolerance):
    for name in ("square", "mean", "variance"):
        found = getattr(moments, name)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, getattr(expected, name), rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("mean", [0.1, 10.0])
@pytest.mark.parametrize("d", [1, 3])
def test_moments_are_those_of_float64(mean, d):
    points = points_about(mean, (3, 5000, d))
    assert_near(moments_of(points), by_numpy(points), 1e-4)


@pytest.mark.parametrize("mean", [0.1, 10.0, 1000.0])
def test_one_pass_is_as_exact(mean):
    points = points_about(mean)
    kept = points.masked_fill(points.abs() <= THRESHOLD, 0.0)
    assert_near(scanned_moments(points, THRESHOLD), by_numpy(kept), 1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e19])
def test_what_cannot_be_squared_in_float32_stays_visible(value):
    points = points_about(0.0)
    points[1, 7] = value
    for moments in (moments_of(points), scanned_moments(points, 0.0)):
        assert torch.isfinite(moments.square).tolist() == [True, False, True]


def test_equal_points_have_no_variance():
    points = torch.full((2, 1001, 1), 0.1)
    assert scanned_moments(points, 0.0).variance.tolist() == pytest.approx([0.0, 0.0], abs=1e-15)


def test_other_points_are_not_scanned():
    points = points_about(0.0, (4, 6, 1))
    assert scanned_moments(points.double(), 0.0) is None
    assert scanned_moments(points.half(), 0.0) is None
    assert scanned_moments(points.transpose(0, 1), 0.0) is None
    assert scanned_moments(points.reshape(4, 3, 2), 0.0) is None


def test_a_magnitude_equal_to_the_threshold_is_zero_as_torch_compares():
    points = torch.full((1, 1000, 1), 0.1)
    assert bool((points.abs() <= 0.1).all())
    assert scanned_moments(points, 0.1).square.tolist() == [0.0]
