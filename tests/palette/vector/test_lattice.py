"""Vector tables on a lattice, against all distances and the means of labels."""

import numpy as np
import pytest

from mlopt.palette.value.quantized import Lattice
from mlopt.palette.vector.lattice import settle_on_lattice
from tests.palette import references as ref

LATTICE = Lattice(np.array([0, 1, 2, 3], np.uint8), np.array([-1.0, 0.0, 0.5, 2.0]))


def cost_of(vectors, table, weights):
    misses = (vectors.astype(np.float64)[:, None] - table) ** 2
    return (misses * weights[:, None]).sum(axis=2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ref.FORMATS)
def test_labels_and_a_table_that_no_step_betters(name, weighted):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 2)).astype(ref.FORMATS[name])
    weights = rng.random((60, 2)) if weighted else None
    h = np.ones((60, 2)) if weights is None else weights
    start = vectors[:3].copy()
    positions, labels = settle_on_lattice(vectors, start, LATTICE, weights)
    table = LATTICE.points[positions]
    costs = cost_of(vectors, table, h)
    np.testing.assert_array_equal(labels, costs.argmin(axis=1))
    paid = costs.min(axis=1).sum()
    # not above the start, rounded
    rounded = LATTICE.points[LATTICE.nearest(start.astype(np.float64))]
    assert paid <= cost_of(vectors, rounded, h).min(axis=1).sum() * (1 + 1e-12)
    # and no worse than the means of its own labels, rounded anew
    for j in range(3):
        mine = labels == j
        mean = np.average(vectors[mine].astype(np.float64), axis=0, weights=h[mine])
        nearest = LATTICE.points[LATTICE.nearest(mean)]
        assert cost_of(vectors[mine], table[j : j + 1], h[mine]).sum() <= (
            cost_of(vectors[mine], nearest[None], h[mine]).sum() * (1 + 1e-12)
        )


def test_steps_follow_the_means():
    # around 0 and 2; the start rounds to 0.5 and 0.5, and the first step parts them
    vectors = np.array([[0.0], [0.1], [-0.1], [1.9], [2.0]], np.float32)
    positions, labels = settle_on_lattice(vectors, np.array([[0.4], [1.3]], np.float32), LATTICE)
    assert LATTICE.points[positions].tolist() == [[0.0], [2.0]]
    assert labels.tolist() == [0, 0, 0, 1, 1]


def test_threads_change_nothing():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3000, 2)).astype(np.float32)
    one = settle_on_lattice(vectors, vectors[:8], LATTICE, workers=1)
    more = settle_on_lattice(vectors, vectors[:8], LATTICE, workers=3)
    for ours, theirs in zip(one, more, strict=True):
        np.testing.assert_array_equal(ours, theirs)
