"""Each step of the solver is the best of its kind."""

import itertools

import numpy as np
import pytest

from mlopt.palette import PaletteSpec, palettize
from mlopt.palette.moments.grid import table_grid
from mlopt.palette.moments.problem import ArrangedInputs, damped, make_problem
from tests.palette.moments import examples as ex

LAYOUTS = {
    "one table": {},
    "groups of rows": {"channel_axis": 0, "group_size": 2},
    "groups of columns": {"channel_axis": 1, "group_size": 3},
    "vectors": {"channel_axis": 0, "cluster_dim": 2},
    "groups of vectors": {"channel_axis": 0, "cluster_dim": 2, "group_size": 4},
    "scale": {"scale_axis": 0},
    "scale of columns": {"scale_axis": 1},
    "scaled vectors": {"channel_axis": 0, "cluster_dim": 2, "scale_axis": 0},
    "scaled groups of columns": {"channel_axis": 1, "group_size": 6, "scale_axis": 0},
}


def start(blocks=1, importance=None, seed=0, **layout):
    arrangement = ex.matrix(8 // blocks, 12, blocks)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(arrangement.shape).astype(np.float32)
    moments = ex.random_moments(arrangement, seed)
    palettized, _ = palettize(weight, PaletteSpec(nbits=2, **layout))
    grid = table_grid(
        arrangement, palettized.table_shape, palettized.cluster_dim, palettized.vector_axis
    )
    inputs = ArrangedInputs(moments, grid, damped(moments))
    return weight, palettized, make_problem(weight, palettized, inputs, importance, None)


def residuals(problem, weight, palettized, entries=None, labels=None):
    """Factors times errors, as rows of the grid, in the units of the problem."""
    entries = problem.entries if entries is None else entries
    labels = problem.labels if labels is None else labels
    grid = problem.inputs.grid
    values = entries[grid.table[:, None], grid.segment, labels]
    values = values.transpose(0, 2, 1).reshape(-1, labels.shape[1])
    points = weight.astype(np.float64)
    if palettized.scale is not None:
        points = points / palettized.scale
    errors = values - np.ldexp(problem.inputs.rows(points), -problem.exponent)
    return errors * problem.factors if len(problem.factors) else errors


def value(problem, weight, palettized, entries=None, labels=None):
    errors = residuals(problem, weight, palettized, entries, labels)
    blocks = np.repeat(problem.inputs.grid.block, problem.entries.shape[3])
    columns = problem.inputs.grid.columns
    second = ex.damped(problem.inputs.moments)[:, columns[:, None], columns]
    return float(np.einsum("ri,rij,rj->", errors, second[blocks], errors))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_products_and_objectives_are_kept_up_to_date(layout, blocks):
    weight, palettized, problem = start(blocks, **layout)
    running = problem.restart()
    assert running == pytest.approx(value(problem, weight, palettized), rel=1e-5)
    for step in (problem.assign, problem.fit_tables, problem.assign):
        gain = step()
        assert gain >= 0
        running -= gain
        assert running == pytest.approx(value(problem, weight, palettized), rel=1e-4)
    products = problem.products.copy()
    problem.restart()
    np.testing.assert_allclose(products, problem.products, atol=1e-5 * np.abs(products).max())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tables_are_the_least_squares_solution(layout, blocks):
    weight, palettized, problem = start(blocks, **layout)
    problem.restart()
    segments = problem.entries.shape[1]
    # where tables cut the rows, their turns converge to the joint solution
    for _ in range(1 if segments == 1 else 60):
        problem.fit_tables()
    blocks_of = np.repeat(problem.inputs.grid.block, problem.entries.shape[3])
    roots = np.linalg.cholesky(ex.damped(problem.inputs.moments)).swapaxes(1, 2)

    def residual_vector(entries):
        errors = residuals(problem, weight, palettized, entries)
        return np.einsum("rij,rj->ri", roots[blocks_of], errors).reshape(-1)

    constant = residual_vector(np.zeros_like(problem.entries))
    units = np.eye(problem.entries.size).reshape(-1, *problem.entries.shape)
    design = np.stack([residual_vector(unit) - constant for unit in units], axis=1)
    best, *_ = np.linalg.lstsq(design, -constant, rcond=None)
    best = best.reshape(problem.entries.shape)
    used = np.abs(design).max(axis=0).reshape(best.shape) > 0
    np.testing.assert_allclose(problem.entries[used], best[used], atol=2e-3)
    least = value(problem, weight, palettized, np.where(used, best, problem.entries))
    assert value(problem, weight, palettized) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_no_other_single_index_is_better_once_sweeps_settle(layout, blocks):
    weight, palettized, problem = start(blocks, **layout)
    problem.restart()
    while problem.assign() > 0:
        pass
    settled = value(problem, weight, palettized)
    for unit, column in itertools.product(*map(range, problem.labels.shape)):
        for entry in range(4):
            labels = problem.labels.copy()
            labels[unit, column] = entry
            other = value(problem, weight, palettized, labels=labels)
            assert other > settled * (1 - 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_elements_of_no_importance_keep_their_index_and_pull_nothing(layout):
    rng = np.random.default_rng(1)
    mask = (rng.random((8, 12)) < 0.6).astype(np.float32)
    weight, palettized, problem = start(importance=mask, **layout)
    important = problem.inputs.rows(mask) > 0
    if palettized.cluster_dim > 1:
        important = important.reshape(-1, 2, 12).any(axis=1)
    labels = problem.labels.copy()
    problem.restart()
    problem.assign()
    np.testing.assert_array_equal(labels[~important], problem.labels[~important])
    assert np.any(labels[important] != problem.labels[important])
    errors = residuals(problem, weight, palettized)
    assert not errors[problem.inputs.rows(mask) == 0].any()
