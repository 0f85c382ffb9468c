"""Distance kernels against scipy, and the two smallest against a sort."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mlopt.palette.vector.distances import STRIP, Strip, distances, keep_two, shared_distances

DTYPES = [np.float32, np.float64]


def strip_of(d, dtype):
    return Strip(
        np.empty((d, STRIP), dtype),
        np.empty((0, STRIP), dtype),
        np.empty(STRIP, dtype),
        np.full(STRIP, np.inf, dtype),
        np.full(STRIP, np.inf, dtype),
        np.full(STRIP, -1, np.int32),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 8, 11])
def test_distances_of_a_span(d, dtype):
    rng = np.random.default_rng(d)
    columns, center = rng.standard_normal((d, 40)).astype(dtype), rng.random(d).astype(dtype)
    out = np.full(20, -1, dtype)
    distances(columns, 5, 18, center, out)
    expected = cdist(columns.T[5:18], center[None], "sqeuclidean")[:, 0]
    np.testing.assert_allclose(out[:13], expected, rtol=1e-5 if dtype == np.float32 else 1e-13)
    assert (out[13:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 5])
def test_shares_weigh_elements(d, dtype):
    rng = np.random.default_rng(d)
    columns, shares = rng.standard_normal((2, d, 30)).astype(dtype)
    shares = np.abs(shares)
    center = rng.random(d).astype(dtype)
    out = np.full(30, -1, dtype)
    shared_distances(columns, shares, 20, center, out)
    expected = (shares * (columns - center[:, None]) ** 2).sum(axis=0)[:20]
    np.testing.assert_allclose(out[:20], expected, rtol=1e-5 if dtype == np.float32 else 1e-13)
    assert (out[20:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_smallest_and_the_first_of_equal_ones(dtype):
    rng = np.random.default_rng(0)
    trials = rng.integers(0, 4, (6, 64)).astype(dtype)  # few numbers: ties everywhere
    trials[1:3, 0], trials[0, 0] = 0, 3
    strip = strip_of(2, dtype)
    centers = [3, 1, 4, 0, 9, 2]  # in order of comparison, not of numbers
    for center, trial in zip(centers, trials, strict=True):
        strip.trial[:64] = trial
        keep_two(strip, 64, center)
    two = np.sort(trials, axis=0)[:2]
    np.testing.assert_array_equal(strip.best[:64], two[0])
    np.testing.assert_array_equal(strip.second[:64], two[1])
    np.testing.assert_array_equal(strip.label[:64], np.array(centers)[trials.argmin(axis=0)])
    assert strip.label[0] == 1
    assert (strip.label[64:] == -1).all()
