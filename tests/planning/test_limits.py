"""Budgets and qualities as they are written."""

import math

import pytest

from mlopt.errors import ConfigError
from mlopt.planning.limits import budget_in_bytes, decibels, loss_in_words, most_loss


@pytest.mark.parametrize(
    ("budget", "nbytes"),
    [(12, 12), ("1.5kB", 1500), ("1.5e3 b", 1500), ("4 bits", 500), ("4e0bits", 500), ("4x", 250)],
)
def test_budgets(budget, nbytes):
    assert budget_in_bytes(budget, before=1000, elements=1000) == nbytes


@pytest.mark.parametrize(
    ("quality", "loss", "most"),
    [
        (30, "squared", 1e-3),
        ("-3 dB", "squared", 10**0.3),
        # as Python writes small numbers, and with it the command line
        (f"{0.00001} nats", "kl", 1e-5),
        ("1E+1 dB", "squared", 0.1),
    ],
)
def test_qualities(quality, loss, most):
    assert math.isclose(most_loss(quality, loss), most)


@pytest.mark.parametrize("quality", [-99_999, "-1e5 dB", "1e999 dB", math.nan, "e5 dB", "1e dB"])
def test_what_is_no_quality(quality):
    with pytest.raises(ConfigError, match="a quality is a number of dB"):
        most_loss(quality, "squared")


@pytest.mark.parametrize(
    ("loss", "ratio"), [(0.01, 20), (10**0.3, -3), (0.0, math.inf), (math.inf, -math.inf)]
)
def test_losses_in_decibels(loss, ratio):
    assert decibels(loss) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("value", "loss", "words"),
    [
        (0.001, "squared", "30.0 dB"),
        (0.0, "squared", "no loss"),
        (math.inf, "squared", "infinite"),
        (math.nan, "squared", "not a number"),
        (0.01234, "kl", "0.0123 nats"),
        (0.0, "kl", "no loss"),
    ],
)
def test_losses_in_words(value, loss, words):
    assert loss_in_words(value, loss) == words
