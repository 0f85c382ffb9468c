"""Strips of vectors that meet centres: the two least distances against a sort of all of them."""

import numpy as np
import pytest

from mlopt.palette.vector.strips import FOUR, LENGTH, least_of, meet, row_of, strip_for

DTYPES = [np.float32, np.float64]


def filled_strip(vectors, shares=None):
    """A strip of ``vectors`` [d, m], and of the weights of their elements."""
    d, m = vectors.shape
    strip = strip_for(vectors, shares is not None)
    for j in range(d):
        row_of(strip, j)[:m] = vectors[j]
        if shares is not None:
            row_of(strip, strip.width + j)[:m] = shares[j]
    best, second = least_of(strip)
    best[:], second[:], strip.label[:] = np.inf, np.inf, -1
    return strip


def fours(centers, width):
    """Centres [c, d] with zeros up to ``width``, and infinite ones up to a multiple of four."""
    padded = np.zeros((-(-len(centers) // FOUR) * FOUR, width), centers.dtype)
    padded[:, : centers.shape[1]] = np.inf
    padded[: len(centers), : centers.shape[1]] = centers
    return padded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 11])
def test_the_two_least_distances_and_the_nearest_centre(d, count, weighted, dtype):
    rng = np.random.default_rng(d)
    vectors = rng.standard_normal((d, 64)).astype(dtype)
    shares = rng.random((d, 64)).astype(dtype) if weighted else None
    if weighted:
        shares[:, 3] = 0  # a vector without weight, which an infinite centre must not take
    centers = rng.standard_normal((count, d)).astype(dtype)
    strip = filled_strip(vectors, shares)
    names = rng.permutation(count + FOUR).astype(np.int16)
    meet(strip, 64, fours(centers, strip.width), names, weighted)

    heavy = np.ones((d, 64)) if shares is None else shares
    distances = (heavy * (vectors - centers[:, :, None]).astype(np.float64) ** 2).sum(axis=1)
    least = np.sort(np.concatenate([distances, np.full((1, 64), np.inf)]), axis=0)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    best, second = least_of(strip)
    np.testing.assert_allclose(best[:64], least[0], rtol=tolerance)
    np.testing.assert_allclose(second[:64], least[1], rtol=tolerance)
    np.testing.assert_array_equal(strip.label[:64], names[distances.argmin(axis=0)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equally_near_centres_the_first_met_is_taken(dtype):
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 3, (2, 96)).astype(dtype)
    centers = rng.integers(0, 3, (8, 2)).astype(dtype)  # few numbers: ties everywhere
    distances = ((vectors - centers[:, :, None]) ** 2).sum(axis=1)
    strip = filled_strip(vectors)
    names = np.array([3, 1, 4, 0, 9, 2, 7, 5], np.int16)  # in order of comparison, not of numbers
    meet(strip, 96, centers, names, False)
    best, second = least_of(strip)
    np.testing.assert_array_equal(
        np.stack([best[:96], second[:96]]), np.sort(distances, axis=0)[:2]
    )
    np.testing.assert_array_equal(strip.label[:96], names[distances.argmin(axis=0)])


def test_only_as_many_vectors_as_asked_for_meet_the_centres():
    strip = filled_strip(np.ones((3, LENGTH), np.float32))
    meet(strip, 32, np.zeros((4, 4), np.float32), np.arange(4, dtype=np.int16), False)
    best, _ = least_of(strip)
    assert (best[:32] == 3).all()
    assert (strip.label[:32] == 0).all()
    assert np.isinf(best[32:]).all()
    assert (strip.label[32:] == -1).all()
