"""Vector k-means against hand-made clusters, scikit-learn and its own invariances."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from mlopt.errors import ConfigError
from mlopt.palette.vector import clustering
from mlopt.palette.vector.clustering import assign_vectors, cluster_vectors


def cost(points, centers, labels, importance=None):
    """Weighted squared error, float64."""
    errors = ((points.astype(np.float64) - centers[labels]) ** 2).sum(axis=1)
    return float(errors.sum() if importance is None else (errors * importance).sum())


def of_coremltools(points, k, importance=None):
    """Cost of scikit-learn's k-means, called as coremltools calls it."""
    found = KMeans(k, init="k-means++", tol=1e-2, n_init=1, random_state=0).fit(
        points.astype(np.float64), sample_weight=importance
    )
    return cost(points, found.cluster_centers_, found.labels_, importance)


def sample(kind, n, d, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return (rng.standard_normal((n, d)) * 0.02).astype(np.float16)
    if kind == "heavy tails":
        return (rng.standard_t(3, (n, d)) * 0.02).astype(np.float32)
    middles = rng.standard_normal((40, d))
    return (middles[rng.integers(0, 40, n)] + rng.standard_normal((n, d)) * 0.01).astype(np.float16)


def test_two_pairs():
    points = np.array([[0, 1], [0, 3], [8, 8], [8, 6]], np.float32)
    centers, labels = cluster_vectors(points, 2)
    assert centers.tolist() == [[0, 2], [8, 7]]
    assert labels.tolist() == [0, 0, 1, 1]
    assert (centers.dtype, labels.dtype) == (np.float64, np.uint8)


def test_importance_pulls_centres():
    points = np.array([[0, 0], [4, 0], [100, 0]], np.float32)
    centers, labels = cluster_vectors(points, 2, np.array([1.0, 3.0, 1.0]))
    assert centers.tolist() == [[3, 0], [100, 0]]
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 9])
def test_few_distinct_vectors_are_lossless(dtype, d):
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((13, d)).astype(dtype)
    points = distinct[rng.integers(0, 13, 500)]
    centers, labels = cluster_vectors(points, 16)
    assert len(centers) == 13
    np.testing.assert_array_equal(centers[labels], points.astype(np.float64))
    np.testing.assert_array_equal(np.lexsort(centers.T[::-1]), np.arange(13))


def test_signs_of_zero_are_one_value():
    centers, labels = cluster_vectors(np.array([[0.0, 1.0], [-0.0, 1.0]], np.float16), 4)
    assert centers.tolist() == [[0, 1]]
    assert labels.tolist() == [0, 0]


def test_distinct_vectors_count_not_distinct_scalars():
    """Two scalars make four vectors, which want four entries."""
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float16)
    centers, labels = cluster_vectors(points, 4)
    np.testing.assert_array_equal(centers[labels], points)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "clustered"])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(90, 2, 8), (3000, 2, 64), (2000, 4, 256), (9000, 4, 16)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_never_above_scikit_learn(kind, n, d, k, weighted):
    points = sample(kind, n, d)
    importance = np.random.default_rng(1).chisquare(1, n) if weighted else None
    centers, labels = cluster_vectors(points, k, importance)
    # Where both find the optimum, they differ by roundings.
    limit = of_coremltools(points, k, importance) * (1 + 1e-6)
    assert cost(points, centers, labels, importance) <= limit


def test_a_sample_stands_in_for_many(monkeypatch):
    """The way of large weights, taken by a smaller one."""
    points = sample("normal", 40_000, 2)
    monkeypatch.setattr(clustering, "_SAMPLE", 1 << 13)
    centers, labels = cluster_vectors(points, 16)
    assert cost(points, centers, labels) <= of_coremltools(points, 16) * 1.002


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_workers_change_no_byte(dtype):
    points = np.random.default_rng(0).standard_normal((100_000, 3)).astype(dtype)
    one = cluster_vectors(points, 16)
    three = cluster_vectors(points, 16, workers=3)
    assert [a.tobytes() for a in one] == [a.tobytes() for a in three]


def test_labels_are_nearest_and_first():
    points = sample("normal", 700, 3)
    centers, labels = cluster_vectors(points, 32)
    distance = ((points.astype(np.float64)[:, None] - centers) ** 2).sum(axis=-1)
    # Distances are compared in float32.
    chosen = distance[np.arange(700), labels]
    np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(assign_vectors(points, centers), labels)
    doubled = np.concatenate([centers[:16], centers[:16]])
    assert assign_vectors(points, doubled).max() < 16


@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(1, 5), st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_permutation_permutes_labels(seed, n, d, k):
    rng = np.random.default_rng(seed)
    points = rng.integers(-9, 10, (n, d)).astype(np.float16) / 7
    points = points.astype(np.float16)
    order = rng.permutation(n)
    centers, labels = cluster_vectors(points, k)
    permuted_centers, permuted_labels = cluster_vectors(points[order], k)
    np.testing.assert_array_equal(permuted_centers, centers)
    np.testing.assert_array_equal(permuted_labels, labels[order])


@given(st.integers(0, 2**32 - 1), st.integers(-40, 40), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=25, deadline=None)
def test_powers_of_two_scale_centres_and_nothing_else(seed, exponent, dtype):
    points = np.random.default_rng(seed).standard_normal((150, 2)).astype(dtype)
    centers, labels = cluster_vectors(points, 8)
    scaled_centers, scaled_labels = cluster_vectors(points * dtype(2.0**exponent), 8)
    np.testing.assert_array_equal(scaled_centers, centers * 2.0**exponent)
    np.testing.assert_array_equal(scaled_labels, labels)


def test_tiny_and_huge_vectors_are_no_zeros_or_infinities():
    points = np.random.default_rng(0).standard_normal((300, 2))
    reference = cluster_vectors(points, 8)[1]
    for factor in (2.0**-1000, 2.0**900):
        np.testing.assert_array_equal(cluster_vectors(points * factor, 8)[1], reference)


def test_importance_of_zero_everywhere_counts_as_none():
    points = sample("normal", 100, 2)
    expected = cluster_vectors(points, 4)
    found = cluster_vectors(points, 4, np.zeros(100))
    np.testing.assert_array_equal(found[0], expected[0])


def test_vectors_without_importance_get_the_nearest_centre():
    points = np.array([[0, 0], [1, 0], [10, 0], [9, 0], [11, 0]], np.float32)
    centers, labels = cluster_vectors(points, 2, np.array([1.0, 0.0, 1.0, 0.0, 0.0]))
    assert centers.tolist() == [[0, 0], [10, 0]]
    assert labels.tolist() == [0, 0, 1, 1, 1]


def test_repeated_vectors_weigh_as_often():
    points = sample("normal", 200, 2)
    counts = np.random.default_rng(0).integers(1, 5, 200)
    repeated = cluster_vectors(np.repeat(points, counts, axis=0), 8)[0]
    weighted = cluster_vectors(points, 8, counts.astype(np.float64))[0]
    np.testing.assert_array_equal(repeated, weighted)


def test_refusals():
    points = sample("normal", 10, 2)
    with pytest.raises(ConfigError, match="between 1 and 256, got 300"):
        cluster_vectors(points, 300)
    with pytest.raises(ConfigError, match="non-empty"):
        cluster_vectors(points[:0], 2)
    with pytest.raises(ConfigError, match=r"\(10,\), got shape \(9,\)"):
        cluster_vectors(points, 2, np.ones(9))


def test_outliers_are_not_lost_in_a_sample():
    """A few vectors may cost more than all others together: none of them may be left out."""
    points = np.random.default_rng(0).standard_cauchy((12_000, 2)).astype(np.float32)
    centers, labels = cluster_vectors(points, 32)
    assert cost(points, centers, labels) <= 1.01 * of_coremltools(points, 32)
