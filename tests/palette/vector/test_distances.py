"""Distances of a span of vectors against scipy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mlopt.palette.vector.distances import distances


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 7, 8, 11])
def test_distances_of_a_span(d, dtype):
    rng = np.random.default_rng(d)
    columns, center = rng.standard_normal((d, 40)).astype(dtype), rng.random(d).astype(dtype)
    out = np.full(20, -1, dtype)
    distances(columns, 5, 18, center, out)
    expected = cdist(columns.T[5:18], center[None], "sqeuclidean")[:, 0]
    np.testing.assert_allclose(out[:13], expected, rtol=1e-5 if dtype == np.float32 else 1e-13)
    assert (out[13:] == -1).all()
