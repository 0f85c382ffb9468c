"""Vectors whose elements matter differently."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from mlopt.palette.vector.importance import assign_weighted, settle_centers


def cost(vectors: np.ndarray, weights: np.ndarray, centers: np.ndarray) -> float:
    """Weighted squared error of the nearest centres, by brute force."""
    misses = (vectors[:, None, :].astype(np.float64) - centers[None]) ** 2
    return float((misses * weights[:, None, :]).sum(axis=2).min(axis=1).sum())


def test_by_hand() -> None:
    vectors = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 9.0], [6.0, 9.0]], np.float32)
    weights = np.array([[1.0, 1.0], [1.0, 3.0], [1.0, 0.0], [3.0, 0.0]])
    centers = settle_centers(vectors, weights, np.array([[0.0, 0.0], [5.0, 5.0]]))
    # second elements of the far vectors weigh nothing: that of their centre stays
    np.testing.assert_array_equal(centers, [[0.0, 0.75], [5.5, 5.0]])
    np.testing.assert_array_equal(assign_weighted(vectors, weights, centers), [0, 0, 1, 1])


@pytest.mark.parametrize("k", [2, 7, 16])
def test_cost_falls_below_clustering_without_the_weights(k: int) -> None:
    generator = np.random.default_rng(k)
    vectors = generator.standard_normal((700, 3)).astype(np.float32)
    weights = generator.gamma(0.5, 1.0, (700, 3))
    start = KMeans(k, n_init=1, random_state=0).fit(vectors).cluster_centers_.astype(np.float64)
    settled = settle_centers(vectors, weights, start)
    assert cost(vectors, weights, settled) < cost(vectors, weights, start)
    labels = assign_weighted(vectors, weights, settled)
    misses = (vectors[:, None, :].astype(np.float64) - settled[None]) ** 2
    np.testing.assert_array_equal(labels, (misses * weights[:, None, :]).sum(axis=2).argmin(axis=1))


def test_scaling_an_element_and_its_centres_changes_no_label() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 2)).astype(np.float32)
    weights = generator.random((300, 2))
    centers = generator.standard_normal((5, 2))
    scale = np.array([0.5, 8.0])
    np.testing.assert_array_equal(
        assign_weighted(vectors, weights, centers),
        assign_weighted((vectors * scale).astype(np.float32), weights / scale**2, centers * scale),
    )
