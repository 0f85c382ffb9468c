"""Targets against least squares over all positions, written out."""

import attrs
import numpy as np
import pytest
import torch

from mlopt.calibration.readers.reader import Reader
from mlopt.calibration.sequential.targets import Part, Target
from mlopt.errors import ConfigError
from mlopt.palette.moments import Arrangement
from mlopt.palette.moments.moments import DAMPING
from mlopt.statistics.guidance import Guidance

BLOCKS, ROWS, COLUMNS = 2, 3, 4
ARRANGEMENT = Arrangement(
    shape=(BLOCKS * ROWS, COLUMNS),
    split=(BLOCKS, ROWS, COLUMNS),
    order=(0, 1, 2),
    blocks=BLOCKS,
    rows=ROWS,
    columns=COLUMNS,
)
READER = Reader(arrangement=ARRANGEMENT)


def numbers(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["streams and factors", "streams", "factors", "neither"])
def parts(request):
    made = []
    for number, positions in enumerate((7, 12)):
        x = numbers(BLOCKS, positions, COLUMNS, seed=number) + 0.5
        wanted = x + 0.3 * numbers(BLOCKS, positions, COLUMNS, seed=10 + number)
        stream = factors = None
        if "streams" in request.param:
            stream = torch.from_numpy(0.2 * numbers(BLOCKS, positions, ROWS, seed=20 + number))
        if "factors" in request.param:
            factors = torch.from_numpy(np.square(numbers(BLOCKS, positions, seed=30 + number)))
        made.append(Part(torch.from_numpy(x), torch.from_numpy(wanted), stream, factors))
    return made


def of_block(parts, block):
    """Inputs, what is wanted of the outputs beyond W x, and the weights of positions: float64."""
    inputs, missing, streams, counts = [], [], [], []
    for part in parts:
        positions = part.inputs.shape[1]
        inputs.append(part.inputs[block].double())
        missing.append((part.wanted - part.inputs)[block].double())
        zeros = torch.zeros(positions, ROWS)
        streams.append((zeros if part.stream is None else part.stream[block]).double())
        ones = torch.ones(positions)
        counts.append((ones if part.factors is None else part.factors[block]).double())
    return tuple(torch.cat(each).numpy() for each in (inputs, missing, streams, counts))


def lstsq(parts, block, matrix, *, has_bias, damping):
    """The change of a matrix that makes up for what is missing, by rows for the damping."""
    x, missing, stream, count = of_block(parts, block)
    wanted = missing @ matrix.T + stream
    if has_bias:
        wanted = wanted - np.average(wanted, axis=0, weights=count)
        x = x - np.average(x, axis=0, weights=count)
    ridge = np.sqrt(damping * np.average(np.square(x), axis=0, weights=count).mean())
    root = np.sqrt(count / count.sum())[:, None]
    left = np.vstack((root * x, ridge * np.eye(COLUMNS)))
    right = np.vstack((root * wanted, np.zeros((COLUMNS, ROWS))))
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def matrices_of(weight):
    return weight.reshape(BLOCKS, ROWS, COLUMNS).astype(np.float64)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_weight_aimed_at_solves_least_squares(parts, has_bias, alpha):
    """Few samples, so that none is kept for the check: as many positions as that says."""
    weight = numbers(*ARRANGEMENT.shape, seed=5)
    target = Target(READER)
    for part in parts:
        target.add([part], 0)
    guidance = target.guidance(
        weight, Guidance(bias="bias" if has_bias else None), alpha=alpha, title="linear"
    )
    assert guidance.method == "sequential"
    if alpha == 0:
        assert guidance.shift is None
        return
    share = 1 - COLUMNS / 19
    for block, matrix in enumerate(matrices_of(weight)):
        solved = lstsq(parts, block, matrix, has_bias=has_bias, damping=DAMPING)
        found = guidance.shift.reshape(BLOCKS, ROWS, COLUMNS)[block]
        assert np.allclose(found, alpha * share * solved, atol=1e-4)


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_share_is_the_best_on_samples_that_were_kept(parts, has_bias):
    weight = numbers(*ARRANGEMENT.shape, seed=5)
    target = Target(READER)
    kept = [attrs.evolve(part, wanted=2 * part.wanted - part.inputs) for part in parts[:1]]
    for number, part in ((0, parts[0]), (1, parts[1]), (3, kept[0])):
        target.add([part], number)
    guidance = target.guidance(
        weight, Guidance(bias="bias" if has_bias else None), alpha=1.0, title="linear"
    )
    best = (0.0, 0.0, 0.0)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        solved = [
            lstsq(parts, block, matrix, has_bias=has_bias, damping=damping)
            for block, matrix in enumerate(matrices_of(weight))
        ]
        for share in np.linspace(0, 1, 101):
            less = 0.0
            for block, matrix in enumerate(matrices_of(weight)):
                x, missing, stream, count = of_block(kept, block)
                wanted = missing @ matrix.T + stream
                if has_bias:
                    wanted = wanted - np.average(wanted, axis=0, weights=count)
                    x = x - np.average(x, axis=0, weights=count)
                left = wanted - share * x @ solved[block].T
                less += (count[:, None] * (np.square(wanted) - np.square(left))).sum()
            best = max(best, (less, damping, share))
    _, damping, share = best
    assert share > 0
    for block, matrix in enumerate(matrices_of(weight)):
        solved = lstsq([*parts, *kept], block, matrix, has_bias=has_bias, damping=damping)
        found = guidance.shift.reshape(BLOCKS, ROWS, COLUMNS)[block]
        assert np.allclose(found, share * solved, atol=1e-2)


def test_what_does_not_hold_on_kept_samples_is_left():
    """What is missing is the opposite of what it is on the others."""
    weight = numbers(*ARRANGEMENT.shape, seed=5)
    x = numbers(BLOCKS, 20, COLUMNS, seed=1)
    error = numbers(BLOCKS, 20, COLUMNS, seed=2)
    target = Target(READER)
    for number in range(8):
        sign = -1 if number % 4 == 3 else 1
        wanted = torch.from_numpy(x + sign * 0.3 * (error + x))
        target.add([Part(torch.from_numpy(x), wanted, None, None)], number)
    guidance = target.guidance(weight, Guidance(), alpha=1.0, title="linear")
    assert guidance.shift is None


@pytest.mark.parametrize("numbers_of_parts", [(0, 1), (3, 1), (3, 7)])
def test_moments_are_those_of_the_compressed_inputs(parts, numbers_of_parts):
    target = Target(READER)
    for part, number in zip(parts, numbers_of_parts, strict=True):
        target.add([part], number)
    guidance = target.guidance(
        numbers(*ARRANGEMENT.shape, seed=5), Guidance(), alpha=0.5, title="linear"
    )
    totals = [of_block(parts, block)[3].sum() for block in range(BLOCKS)]
    for block in range(BLOCKS):
        x, _, _, count = of_block(parts, block)
        second = (x.T * count) @ x / np.mean(totals)
        assert np.allclose(guidance.moments.second[block], second, atol=1e-4)
        mean = np.average(x, axis=0, weights=count)
        assert np.allclose(guidance.moments.mean[block], mean, atol=1e-5)
    assert np.allclose(guidance.moments.shares, totals / np.mean(totals), atol=1e-5)
    assert guidance.moments.count == 19


def test_nothing_is_aimed_at_but_the_weight_where_nothing_is_missing():
    x = torch.from_numpy(numbers(BLOCKS, 9, COLUMNS, seed=1))
    target = Target(READER)
    target.add([Part(x, x, None, None)], 0)
    weight = numbers(*ARRANGEMENT.shape, seed=5)
    guidance = target.guidance(weight, Guidance(), alpha=0.5, title="linear")
    assert guidance.shift is None
    assert guidance.target(weight) is weight


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_inputs_that_have_no_squares_are_refused(bad):
    x = numbers(BLOCKS, 9, COLUMNS, seed=1)
    x[0, 0, 0] = bad
    given = torch.from_numpy(x)
    target = Target(READER)
    target.add([Part(given, given, None, None)], 0)
    with pytest.raises(ConfigError, match=r"an input of linear 'a' has NaN or infinite"):
        target.guidance(
            numbers(*ARRANGEMENT.shape, seed=5), Guidance(), alpha=0.5, title="linear 'a'"
        )


def test_a_target_out_of_the_range_of_its_dtype_stays_the_weight():
    weight = np.array([[6e4, 1.0]], np.float16)
    target = Guidance(shift=np.array([[1e5, 0.5]], np.float32)).target(weight)
    assert target.dtype == np.float16
    assert target.tolist() == [[6e4, 1.5]]
