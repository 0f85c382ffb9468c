"""Distances of tensors and agreement of classifiers, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mlopt.runtime.comparison.measures import Agreement, Distance
from tests.runtime.comparison.small_models import (
    distance,
)


def test_measures_by_hand():
    distance = Distance()
    distance.add(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 0.5]))
    distance.add(torch.tensor([[0.0, -4.0]]), torch.tensor([[0.0, -4.0]]))
    assert distance.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert distance.cosine == pytest.approx(25 / math.sqrt(25 * 25.25))
    assert distance.max_absolute == 0.5
    assert distance.max_relative == 0.125
    assert (distance.samples, distance.elements) == (2, 4)


def test_measures_at_their_ends():
    equal = Distance()
    equal.add(torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf]))
    assert equal.snr_db == math.inf
    assert equal.max_relative == 0.0
    zeros = Distance()
    zeros.add(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert (zeros.snr_db, zeros.cosine, zeros.max_relative) == (-math.inf, 0.0, math.inf)
    broken = Distance()
    broken.add(torch.tensor([1.0]), torch.tensor([math.nan]))
    assert math.isnan(broken.snr_db)
    assert math.isnan(broken.cosine)
    with pytest.raises(ValueError, match="shapes differ"):
        equal.add(torch.ones(2), torch.ones(3))


def test_agreement():
    agreement, scores = Agreement(), torch.arange(10.0)
    agreement.add(scores, torch.cat([scores[5:], scores[:5]]))  # none of the best five
    agreement.add(scores, scores + 1)
    swapped = scores[[0, 1, 2, 3, 5, 4, 6, 7, 8, 9]]
    agreement.add(scores, swapped)
    assert (agreement.samples, agreement.top1) == (3, 2)
    assert agreement.top5_share == pytest.approx((0 + 1 + 4 / 5) / 3)


def test_the_best_five_of_five_classes_say_nothing():
    agreement = Agreement()
    agreement.add(torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.5, 0.1, 0.4]))
    agreement.add(torch.arange(5.0), torch.arange(5.0))
    assert agreement.top1_share == 0.5
    assert agreement.top5_share is None


def test_scores_that_are_no_numbers_agree_in_nothing():
    nan = torch.full((10,), math.nan)
    agreement = Agreement()
    agreement.add(nan, nan)
    agreement.add(nan, torch.arange(10.0))
    agreement.add(torch.arange(10.0), torch.arange(10.0))
    assert (agreement.samples, agreement.not_a_number) == (3, 2)
    assert agreement.top1_share == pytest.approx(1 / 3)
    assert agreement.top5_share == pytest.approx(1 / 3)


def test_measures_of_what_is_not_finite():
    nothing = Distance()
    nothing.add(torch.full((4,), math.nan), torch.full((4,), math.nan))
    assert math.isnan(nothing.snr_db)
    assert math.isnan(nothing.cosine)
    assert (nothing.elements, nothing.left_out, nothing.mismatched) == (4, 4, 0)
    nearly = Distance()
    row = torch.full((100,), math.nan)
    row[7] = 2.0
    nearly.add(row, row)
    assert nearly.snr_db == math.inf
    assert (nearly.elements, nearly.left_out, nearly.mismatched) == (100, 99, 0)
    other = Distance()
    other.add(torch.tensor([1.0, math.inf, math.nan]), torch.tensor([1.0, -math.inf, math.nan]))
    assert math.isnan(other.max_absolute)
    assert (other.left_out, other.mismatched) == (2, 1)
    assert math.isnan(Distance().snr_db)


def stated(values, ends=None):
    found = Distance.within(ends)
    for value in values:
        found.add(torch.tensor(value), torch.tensor(value))
    return found


@pytest.mark.parametrize(
    ("values", "ends", "status"),
    [
        ([[0.0, 0.0]], None, "zero"),
        ([[0.0], [0.0]], None, "zero"),
        ([[0.0, math.nan, 0.0]], None, "zero"),
        ([[0.25, 0.25], [0.25, 0.25]], None, "constant"),
        ([[65504.0, -65504.0]], None, "saturated"),
        ([[65504.0, 65504.0]], None, "saturated"),
        ([[0.0, 1.0]], (0.0, 1.0), "saturated"),
        ([[math.nan, math.inf]], None, "not finite"),
        ([[]], None, "empty"),
        ([], None, "unmeasured"),
        ([[0.25]], None, "equal"),
        ([[0.0, 1.0]], None, "equal"),
        ([[0.0, 1.0, 0.5]], (0.0, 1.0), "equal"),
        ([[0.25, 0.25], [0.5, 0.5]], None, "equal"),
        ([[65504.0, 1.0]], None, "equal"),
    ],
)
def test_equal_is_what_says_something(values, ends, status):
    distance = stated(values, ends)
    assert distance.status == status
    if status in ("zero", "empty", "not finite", "unmeasured"):
        assert math.isnan(distance.snr_db)
        assert math.isnan(distance.cosine)


def test_what_differs_is_different_whatever_the_reference_is():
    found = distance([0.0, 0.0], [0.0, 1.0])
    assert (found.status, found.reference.state, found.snr_db) == ("different", "zero", -math.inf)
