"""Labels kept by bounds, against all distances; how many distances they take."""

from __future__ import annotations

import numpy as np
import pytest

from mlopt.palette.vector.clustering import assign_vectors, cluster_vectors
from mlopt.palette.vector.nearest import Nearest
from mlopt.palette.vector.points import exponent_of

N = 20_000


def kinds(d: int) -> dict[str, np.ndarray]:
    """Inputs of every shape of distribution, float32 [N, d]."""
    rng = np.random.default_rng(d)
    gaussian = rng.standard_normal((N, d))
    outliers = gaussian.copy()
    outliers[::1000] *= 1e6
    blocks = rng.integers(-127, 128, (N, d)) * rng.choice([0.01, 0.013, 0.02], (N, 1))
    return {
        "gaussian": gaussian,
        "laplace": rng.laplace(size=(N, d)),
        "cauchy": rng.standard_cauchy((N, d)),
        "outliers": outliers,
        "lattice of 8 bits": blocks,
        "ties": rng.integers(-8, 9, (N, d)) * 1.0,
        "two scales": gaussian * np.where(rng.random((N, 1)) < 0.5, 1.0, 1e-4),
        "near overflow": gaussian * 6e37,
        "subnormal": gaussian * 1e-39,
    }


def rounds_of(points: np.ndarray, centers: np.ndarray, rounds: int = 12, **more):
    """Lloyd's iteration; the vectors and the centres of the last assignment."""
    exponent = exponent_of(points)
    nearest = Nearest(points, exponent, **more)
    centers = np.ldexp(centers.astype(np.float64), -exponent)
    for _ in range(rounds):
        used = centers
        sums, masses = nearest.assign(centers)
        centers = np.divide(sums, masses, out=centers.copy(), where=masses > 0)
    nearest.assign(used.astype(np.float32), exact=True)
    return nearest, np.ldexp(used.astype(np.float32).astype(np.float64), exponent)


def all_distances(points, centers, weights=None):
    squares = (points.astype(np.float64)[:, None] - centers) ** 2
    return (squares if weights is None else squares * weights[:, None]).sum(axis=2)


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("kind", list(kinds(1)))
def test_labels_are_those_of_all_distances(kind: str, d: int) -> None:
    points = kinds(d)[kind].astype(np.float32)[:4000]
    nearest, centers = rounds_of(points, points[:40])
    distances = all_distances(points / 2.0**64, centers / 2.0**64)
    if kind == "subnormal":
        distances = all_distances(points * 2.0**64, centers * 2.0**64)
    chosen = distances[np.arange(len(points)), nearest.labels]
    np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-12)


@pytest.mark.parametrize("spread", [0.1, 6.0])
def test_labels_by_weights_of_elements(spread: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((3000, 3)).astype(np.float32)
    weights = 10.0 ** rng.uniform(-spread, spread, (3000, 3))
    weights[::7] = 0.0
    weights[1::7, 0] = 0.0
    nearest, centers = rounds_of(points, points[:30], weights=weights)
    expected = all_distances(points, centers, weights)
    chosen = expected[np.arange(3000), nearest.labels]
    np.testing.assert_allclose(chosen, expected.min(axis=1), rtol=1e-12)
    assert not nearest.labels[::7].any()  # equally near to all: the first


def test_the_first_of_equal_centres() -> None:
    points = kinds(2)["ties"].astype(np.float16)
    centers = np.random.default_rng(1).integers(-8, 9, (60, 2)).astype(np.float16)
    found = assign_vectors(points, centers)
    distances = all_distances(points, centers.astype(np.float64))
    np.testing.assert_array_equal(found, distances.argmin(axis=1))


def test_sums_and_masses() -> None:
    points = kinds(3)["gaussian"].astype(np.float32)
    importance = np.random.default_rng(2).gamma(0.2, size=N)
    nearest = Nearest(points, 0, importance)
    sums, masses = nearest.assign(points[:20].astype(np.float64), exact=True)
    one_hot = np.eye(20)[nearest.labels] * importance[:, None]
    np.testing.assert_allclose(sums, one_hot.T @ points.astype(np.float64), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(masses[:, 0], one_hot.sum(axis=0))


@pytest.mark.parametrize("kind", list(kinds(1)))
def test_work_is_that_of_gaussian(kind: str) -> None:
    """Distances computed in Lloyd's iteration: no kind takes much more than the friendly one."""

    def work(points: np.ndarray) -> int:
        start, _ = cluster_vectors(points[::4], 64)
        return rounds_of(points, start, rounds=15)[0].evaluations

    most = 15 * N * 65
    friendly = work(kinds(2)["gaussian"].astype(np.float32))
    assert friendly < most / 8
    assert work(kinds(2)[kind].astype(np.float32)) < min(2 * friendly, most)
