"""The choice of forms against all combinations, and at the size of a language model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mlopt.errors import ConfigError
from mlopt.planning.choice import Choice, Option, least_bytes, least_loss

GAP = 1.2e-4
"""What the solver may leave, and a rounding error."""


def drawn(seed):
    """Some weights with some options each: losses over ten orders of magnitude, some of them 0."""
    draw = np.random.default_rng(seed)
    weights = []
    for _ in range(draw.integers(1, 6)):
        count = draw.integers(1, 6)
        losses = 10 ** draw.uniform(-9, 1, count) * (draw.random(count) > 0.1)
        sizes = draw.integers(0, 100_000, count)
        weights.append([Option(int(b), float(x)) for b, x in zip(sizes, losses, strict=True)])
    return weights, draw


def combinations(weights):
    """Bytes and loss of every choice."""
    for options in itertools.product(*weights):
        yield sum(each.nbytes for each in options), math.fsum(each.loss for each in options)


def check(choice, weights):
    chosen = [options[n] for n, options in zip(choice.options, weights, strict=True)]
    assert choice.nbytes == sum(each.nbytes for each in chosen)
    assert choice.loss == math.fsum(each.loss for each in chosen)
    assert 0.0 <= choice.gap <= 1.0


@pytest.mark.parametrize("seed", range(40))
def test_against_all_combinations(seed):
    weights, draw = drawn(seed)
    every = [*combinations(weights)]
    sizes, losses = zip(*every, strict=True)

    limit = int(draw.integers(min(sizes), max(sizes) + 1))
    choice = least_loss(weights, limit)
    check(choice, weights)
    best = min(loss for nbytes, loss in every if nbytes <= limit)
    assert choice.nbytes <= limit
    assert best <= choice.loss <= best * (1 + GAP)
    assert choice.loss * (1 - choice.gap) <= best * (1 + 1e-9)

    most = float(draw.uniform(min(losses), max(losses)))
    choice = least_bytes(weights, most)
    check(choice, weights)
    fewest = min(nbytes for nbytes, loss in every if loss <= most)
    assert choice.loss <= most
    assert fewest <= choice.nbytes <= fewest * (1 + GAP)
    assert choice.nbytes * (1 - choice.gap) <= fewest * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_limits_that_leave_one_choice(seed):
    weights, _ = drawn(seed)
    least = sum(min(each.nbytes for each in options) for options in weights)
    assert least_loss(weights, least).nbytes == least
    best = math.fsum(min(each.loss for each in options) for options in weights)
    assert least_bytes(weights, best).loss == best
    most = sum(max(each.nbytes for each in options) for options in weights)
    assert least_loss(weights, most).loss == pytest.approx(best, rel=GAP, abs=1e-300)


def test_limits_that_cannot_be_kept():
    weights = [[Option(100, 0.5), Option(40, 2.0)], [Option(7, 0.25)]]
    with pytest.raises(ConfigError, match=r"take 47 B \(47 bytes\).*more than the 46 B"):
        least_loss(weights, 46)
    assert least_loss(weights, 47) == Choice((1, 0), 47, 2.25, gap=0.0)
    with pytest.raises(ConfigError, match=r"losses is 0.75 .*at most 0.7 is asked for"):
        least_bytes(weights, 0.7)
    assert least_bytes(weights, 0.75) == Choice((0, 0), 107, 0.75, gap=0.0)


def test_nothing_to_choose():
    assert least_loss([], 0) == least_bytes([], 0.0) == Choice((), 0, 0.0, gap=0.0)
    assert least_loss([[Option(5, 0.0)]], 10**12) == Choice((0,), 5, 0.0, gap=0.0)


def test_a_loss_without_bounds_is_taken_only_where_it_must_be():
    weights = [[Option(1, math.inf), Option(10, 1e-3)], [Option(1, 1e-3), Option(9, 0.0)]]
    assert least_loss(weights, 11).options == (1, 0)
    assert least_bytes(weights, 1e-3).options == (1, 1)
    assert least_bytes(weights, 1.0).options == (1, 0)


def model(draw, count=300):
    """Weights of a language model: nine forms each, an error that falls by 6 dB a bit."""
    weights = []
    for size, strength in zip(
        draw.integers(100_000, 10_000_000, count), 10 ** draw.uniform(-4, 0, count), strict=True
    ):
        bits = (1, 2, 2.4, 3, 3.4, 4, 6, 8, 16)
        noise = draw.uniform(0.8, 1.2, len(bits))
        weights.append(
            [
                Option(int(size * b / 8), float(strength * 4.0**-b * n))
                for b, n in zip(bits, noise, strict=True)
            ]
        )
    return weights


def test_the_size_of_a_language_model():
    draw = np.random.default_rng(0)
    weights = model(draw)
    limit = sum(options[5].nbytes for options in weights)
    choice = least_loss(weights, limit)
    check(choice, weights)
    assert choice.nbytes <= limit
    assert choice.gap <= GAP
    # an independent bound: no choice is better than the best trade at any price of a byte
    bound = max(
        math.fsum(min(each.loss + price * each.nbytes for each in options) for options in weights)
        - price * limit
        for price in 10 ** np.linspace(-12, -6, 200)
    )
    assert bound <= choice.loss
    assert choice.loss * (1 - choice.gap) <= choice.loss
    assert choice.loss <= bound * 1.01
    assert choice.loss < math.fsum(options[5].loss for options in weights) / 2


def test_fewest_bytes_of_many_weights():
    weights = model(np.random.default_rng(1), count=60)
    choice = least_loss(weights, sum(options[4].nbytes for options in weights))
    fewest = least_bytes(weights, choice.loss)
    check(fewest, weights)
    assert fewest.loss <= choice.loss
    assert fewest.nbytes <= choice.nbytes * (1 + GAP)
    assert fewest.gap <= GAP
