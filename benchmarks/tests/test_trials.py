"""The prose, and what the trials draw and hold out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.models import minilm_weights
from benchmarks.tasks import digits_trial, minilm_trial
from benchmarks.tasks.prose import is_prose, neighbours, sentences


def test_sentences_end_at_the_first_that_is_too_short_or_too_long() -> None:
    long = "This one has at least six words."
    assert sentences(f"{long} And so has this one, e.g. with this. No. {long}") == [
        long,
        "And so has this one, e.g. with this.",
    ]
    assert sentences("word " * 41) == []


def test_prose_is_mostly_letters() -> None:
    assert is_prose("Return the number of items.")
    assert not is_prose('x[i:j:k] = "f(x)"')
    assert not is_prose("Return the naïve number of items.")
    assert not is_prose("")


def test_neighbours_are_enough_and_all_different() -> None:
    pairs = neighbours()
    assert len(pairs) >= minilm_trial.PAIRS * (minilm_trial.SAMPLES + minilm_trial.HELD_OUT)
    every = [sentence for pair in pairs for sentence in pair]
    assert len(set(every)) == len(every)


def test_digits_calibrate_with_other_samples_for_another_seed() -> None:
    trial = digits_trial.trial()
    first, again, other = trial.draw(0), trial.draw(0), trial.draw(1)
    assert len(first) == digits_trial.SAMPLES
    assert first[0][0].shape == (1, 1, 8, 8)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    loss, accuracy = trial.evaluate(trial.module)
    assert loss < 0.1
    assert accuracy > 0.98


def test_contrastive_loss_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    sample = (vectors, torch.ones(4), torch.eye(2))
    loss = minilm_trial.contrastive(lambda ids, masks: ids, sample)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-minilm_trial.SCALE)), abs=1e-6)


def test_own_targets_are_the_chances_or_drawn_from_them() -> None:
    chances = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert torch.equal(minilm_trial.own_targets(chances, None), chances)
    random = np.random.default_rng(0)
    drawn = torch.stack([minilm_trial.own_targets(chances, random) for _ in range(200)])
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(dim=0), chances, atol=0.1, rtol=0)


def test_minilm_prefers_what_follows_and_its_gradient_does_not_vanish() -> None:
    try:
        minilm_weights.model_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    trial = minilm_trial.trial()
    loss, cosine = trial.evaluate(trial.module)
    assert loss < 0.6 * math.log(minilm_trial.PAIRS)
    assert cosine == pytest.approx(1)
    drawn = trial.draw(0)
    assert len(drawn) == minilm_trial.SAMPLES
    weight = trial.module.get_parameter("layers.0.query.weight")
    gradient = torch.autograd.grad(trial.loss(trial.module, drawn[0]), weight)[0]
    assert float(gradient.norm()) > 1e-3
