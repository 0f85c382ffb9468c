"""Corrections of biases against means of results, after activations and without."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlopt.calibration.sequential.corrections import Results, correction

BLOCKS, ROWS = 2, 3


def results(*, seed=0, offset=0.0, with_factors=False, error=0.4):
    """Three samples; a mean error for each channel, and a spread."""
    random = np.random.default_rng(seed)
    means = torch.from_numpy(random.standard_normal((BLOCKS, 1, ROWS)).astype(np.float32))
    made = []
    for positions in (50, 80, 30):
        shape = (BLOCKS, positions, ROWS)
        wanted = torch.from_numpy(random.standard_normal(shape).astype(np.float32)) + offset
        noise = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        factors = None
        if with_factors:
            factors = torch.from_numpy(random.uniform(size=shape[:2]).astype(np.float32))
        made.append(Results(wanted, wanted + error * (means + 0.3 * noise), factors))
    return made


def mean_of(made, channel, read):
    """The weighted mean over positions of what is read of two results of a channel, float64."""
    block, row = divmod(channel, ROWS)
    total = counts = 0.0
    for each in made:
        positions = each.wanted.shape[1]
        count = torch.ones(positions) if each.factors is None else each.factors[block]
        values = read(each.wanted[block, :, row], each.given[block, :, row])
        total += float((values.double() * count).sum())
        counts += float(count.sum())
    return total / counts


@pytest.mark.parametrize("with_factors", [False, True])
def test_without_an_activation_it_is_the_mean_error(with_factors):
    made = results(with_factors=with_factors)
    found = correction(lambda: made, None)
    assert found.dtype == np.float64
    for channel in range(BLOCKS * ROWS):
        assert found[channel] == pytest.approx(mean_of(made, channel, lambda a, b: a - b))


@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("activation", [torch.relu, F.relu6, F.gelu, torch.sigmoid, F.silu])
def test_means_after_the_activation_are_equal(activation, with_factors):
    made = results(with_factors=with_factors, offset=0.3)
    found = correction(lambda: made, activation)
    for channel, moved in enumerate(found):
        before, after = (
            mean_of(made, channel, lambda a, b, by=by: activation(b + by) - activation(a))
            for by in (0.0, moved)
        )
        assert abs(after) < 1e-3 + 0.02 * abs(before)


def test_errors_where_it_is_flat_cost_nothing():
    """Most positions are dead, and have another mean error than those that are read."""
    wanted = torch.cat((torch.full((1, 90, 1), -5.0), torch.full((1, 10, 1), 1.0)), 1)
    given = wanted + torch.cat((torch.full((1, 90, 1), 2.0), torch.full((1, 10, 1), 0.1)), 1)
    made = [Results(wanted, given, None)]
    assert correction(lambda: made, None) == pytest.approx([-1.81])
    # its slope is a tenth: the channel is read at every tenth position
    assert correction(lambda: made, torch.relu) == pytest.approx([-0.1], abs=1e-3)


def test_a_channel_that_is_never_read_stays():
    wanted = torch.full((1, 20, 1), -5.0)
    made = [Results(wanted, wanted + 1, None)]
    assert correction(lambda: made, torch.relu).tolist() == [0.0]


def test_no_further_than_errors_reach():
    made = results(error=0.2)
    square = [mean_of(made, c, lambda a, b: (a - b).square()) for c in range(BLOCKS * ROWS)]
    found = correction(lambda: made, lambda x: torch.sign(x) + 0.2 * x)
    assert (np.abs(found) <= np.sqrt(square) * (1 + 1e-6)).all()
