"""Error feedback: the decomposition, and the assignment against the algorithm it stands for."""

import numpy as np
import pytest

from mlopt.palette.moments.feedback import decompose
from tests.palette.moments import examples as ex
from tests.palette.moments.test_problem import LAYOUTS, residuals, start


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 70])
def test_decomposition(columns):
    moments = ex.random_moments(ex.matrix(1, columns))
    damping = np.float32(ex.DAMPING * moments.diagonal.mean())
    factor = np.zeros((columns, columns), np.float32)
    second = moments.second[0]
    second.flags.writeable = False
    decompose(second, damping, factor)
    wide = factor.astype(np.float64)
    upper = np.triu(wide, 1) + np.eye(columns)
    assert np.all(np.diag(wide) >= damping)
    np.testing.assert_array_equal(np.tril(wide, -1), 0)
    product = upper @ np.diag(np.diag(wide)) @ upper.T
    np.testing.assert_allclose(product, ex.damped(moments)[0], atol=1e-4 * second.max())


def test_moments_without_full_rank_decompose():
    # float32 rounding leaves such a matrix with negative eigenvalues, which the damping exceeds
    moments = ex.random_moments(ex.matrix(1, 60), count=3)
    factor = np.zeros((60, 60), np.float32)
    second = moments.second[0]
    second.flags.writeable = False
    damping = np.float32(ex.DAMPING * moments.diagonal.mean())
    decompose(second, damping, factor)
    assert np.all(np.diag(factor) >= damping)
    upper = np.triu(factor, 1).astype(np.float64) + np.eye(60)
    product = upper @ np.diag(np.diag(factor)) @ upper.T
    np.testing.assert_allclose(product, ex.damped(moments)[0], atol=1e-3 * second.max())


def by_inverse(weights, table, second):
    """GPTQ as published (arXiv 2210.17323, algorithm 1), for one row and a table."""
    upper = np.linalg.cholesky(np.linalg.inv(second)).T
    weights, labels = weights.copy(), []
    for i in range(len(weights)):
        labels.append(int(np.abs(table - weights[i]).argmin()))
        error = (weights[i] - table[labels[-1]]) / upper[i, i]
        weights[i:] -= error * upper[i, i:]
    return labels


@pytest.mark.parametrize("blocks", [1, 2])
def test_assignment_is_that_of_gptq(blocks):
    weight, _, problem = start(blocks)
    problem.feed_back()
    second = ex.damped(problem.inputs.moments)
    table = problem.entries[0, 0, :, 0]
    rows = np.ldexp(problem.inputs.rows(weight).astype(np.float64), -problem.exponent)
    wanted = [
        by_inverse(row, table, second[block])
        for row, block in zip(rows, problem.inputs.grid.block, strict=True)
    ]
    np.testing.assert_array_equal(problem.labels, wanted)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_entry_is_the_best_while_the_columns_after_it_follow_freely(layout, blocks):
    weight, palettized, problem = start(blocks, **layout)
    problem.feed_back()
    columns = problem.inputs.grid.columns
    second = ex.damped(problem.inputs.moments)[:, columns[:, None], columns]
    block = np.repeat(problem.inputs.grid.block, problem.entries.shape[3])

    def least(errors, end):
        """The objective where the errors of columns from ``end`` on are the best reals."""
        total = 0.0
        for row, b in zip(errors, block, strict=True):
            known, free = row[:end], second[b][end:, end:]
            cross = second[b][:end, end:]
            reduced = second[b][:end, :end]
            if end < len(row):
                reduced = reduced - cross @ np.linalg.solve(free, cross.T)
            total += known @ reduced @ known
        return total

    for column in (0, 5, 11):
        chosen = least(residuals(problem, weight, palettized), column + 1)
        for entry in range(4):
            labels = problem.labels.copy()
            labels[0, column] = entry
            other = least(residuals(problem, weight, palettized, labels=labels), column + 1)
            assert other >= chosen * (1 - 1e-5)
