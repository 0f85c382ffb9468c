"""Moments of inputs: what they say about outputs, and what is refused."""

import attrs
import numpy as np
import pytest

from mlopt.errors import ConfigError
from mlopt.palette import PaletteSpec, palettize
from tests.palette.moments.examples import (
    convolution,
    matrix,
    of_inputs,
    random_inputs,
    random_moments,
)

ARRANGEMENT = convolution(6, 2, (2, 2), groups=2)


def outputs(weight, inputs):
    return np.einsum("brc,nbc->nbr", ARRANGEMENT.matrices(weight.astype(np.float64)), inputs)


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(ARRANGEMENT.shape)
    stored = weight + 0.1 * rng.standard_normal(ARRANGEMENT.shape)
    return weight.astype(np.float16), stored.astype(np.float16)


def test_errors_and_powers_are_those_of_outputs(pair):
    weight, stored = pair
    inputs = random_inputs(ARRANGEMENT)
    moments = of_inputs(ARRANGEMENT, inputs)
    error = outputs(stored.astype(np.float64) - weight, inputs)
    assert moments.output_error(weight, stored) == pytest.approx(
        float((error**2).sum(axis=(1, 2)).mean()), rel=1e-5
    )
    power = float((outputs(weight, inputs) ** 2).sum(axis=(1, 2)).mean())
    assert moments.output_power(weight) == pytest.approx(power, rel=1e-5)
    np.testing.assert_allclose(
        moments.mean_error(weight, stored), -error.mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_centred_moments_leave_out_what_a_bias_corrects(pair):
    weight, stored = pair
    inputs = random_inputs(ARRANGEMENT)
    moments = of_inputs(ARRANGEMENT, inputs)
    centred = moments.centred()
    error = outputs(stored.astype(np.float64) - weight, inputs) + moments.mean_error(weight, stored)
    assert centred.output_error(weight, stored) == pytest.approx(
        float((error**2).sum(axis=(1, 2)).mean()), rel=1e-4
    )
    assert not centred.mean.any()
    assert np.all(centred.diagonal >= 0)
    assert moments.output_error(weight, stored) > centred.output_error(weight, stored)


def test_blocks_that_count_more_are_centred_by_their_share(pair):
    weight, stored = pair
    inputs = random_inputs(ARRANGEMENT)
    shares = np.array([1.75, 0.25], np.float32)
    plain = of_inputs(ARRANGEMENT, inputs)
    shared = attrs.evolve(
        plain,
        second=shares[:, None, None] * plain.second,
        diagonal=shares[:, None] * plain.diagonal,
        shares=shares,
    ).centred()
    error = outputs(stored.astype(np.float64) - weight, inputs) + plain.mean_error(weight, stored)
    assert shared.output_error(weight, stored) == pytest.approx(
        float(((error**2).sum(axis=2) * shares).sum(axis=1).mean()), rel=1e-4
    )
    with pytest.raises(ConfigError, match=r"shares of moments must be float32 \(2,\)"):
        attrs.evolve(plain, shares=shares[:1])


def test_without_second_moments_the_diagonal_serves(pair):
    weight, stored = pair
    moments = random_moments(ARRANGEMENT)
    alone = attrs.evolve(moments, second=None)
    errors = ARRANGEMENT.matrices((stored.astype(np.float64) - weight) ** 2)
    wanted = (errors * moments.diagonal[:, None]).sum()
    assert alone.output_error(weight, stored) == pytest.approx(wanted, rel=1e-6)
    assert alone.centred().second is None


def test_importance_is_that_of_each_elements_input():
    moments = random_moments(ARRANGEMENT)
    importance = moments.importance()
    assert importance.shape == ARRANGEMENT.shape
    rows = ARRANGEMENT.matrices(importance)
    damped = moments.diagonal + 0.01 * moments.diagonal.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(rows, np.broadcast_to(damped[:, None], rows.shape), rtol=1e-6)


def test_inputs_that_were_always_zero_count_a_little():
    """Other samples may have some there: what they are multiplied by must not be arbitrary."""
    moments = random_moments(ARRANGEMENT)
    diagonal = moments.diagonal.copy()
    diagonal[:, 0] = 0
    silent = attrs.evolve(moments, second=None, diagonal=diagonal)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(ARRANGEMENT.shape).astype(np.float32)
    palettized, _ = palettize(weight, PaletteSpec(nbits=4), moments=silent)
    error = ARRANGEMENT.matrices(palettized.dequantize() - weight)
    assert np.abs(error[..., 0]).max() < 1.0
    assert np.square(error[..., 0]).mean() < 0.2


def test_moments_in_read_only_memory_serve(pair):
    weight, stored = pair
    moments = random_moments(ARRANGEMENT)
    wanted = moments.output_error(weight, stored)
    moments.second.flags.writeable = False
    assert moments.output_error(weight, stored) == wanted


def changed(name, value=None, at=None):
    moments = random_moments(matrix(2, 3))
    array = getattr(moments, name).copy()
    if at is not None:
        array[at] = value
    return {name: array if at is not None else value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("second", np.nan, (0, 1, 1)), "must be finite"),
        (changed("diagonal", np.inf, (0, 1)), "must be finite"),
        (changed("mean", -np.inf, (0, 2)), "must be finite"),
        (changed("diagonal", -1.0, (0, 1)), "cannot be negative"),
        (changed("second", 9.0, (0, 1, 2)), "must be symmetric"),
        (changed("second", 9.0, (0, 1, 1)), "diagonal of the second moments"),
        ({"mean": np.zeros((1, 3))}, "must be float32"),
        ({"diagonal": np.ones((3,), np.float32)}, "must be float32"),
        ({"second": np.ones((3, 3), np.float32)}, "must be float32"),
        ({"count": 0}, "at least 1 input"),
    ],
)
def test_other_than_moments_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        attrs.evolve(random_moments(matrix(2, 3)), **change)


def test_large_matrices_are_compared_in_tiles(monkeypatch):
    monkeypatch.setattr("mlopt.palette.moments.moments._TILE", 2)
    moments = random_moments(matrix(2, 5))
    for place in ((0, 4, 0), (0, 1, 3), (0, 3, 2)):
        second = moments.second.copy()
        second[place] += 9.0
        with pytest.raises(ConfigError, match="must be symmetric"):
            attrs.evolve(moments, second=second)
