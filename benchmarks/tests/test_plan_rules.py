"""The rules on cases that are worked out by hand, or by trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmarks.tasks.plan_rules import (
    AS_IT_IS,
    NEURAL_ENGINE,
    RULES,
    Weight,
    best_widths,
    cumulative_threshold,
    greedy,
    isolated_threshold,
    loss,
    nbytes,
    threshold_but_worst,
    uniform,
    walk,
)
from mlopt.planning.choice import Option, least_loss


def weight(**widths: tuple[int, float]) -> Weight:
    """A weight of options by width, ``b4=(bytes, loss)``, ``b16`` as it is."""
    return Weight(
        tuple(Option(*each) for each in widths.values()),
        tuple(int(name.removeprefix("b")) for name in widths),
    )


TWO = (
    weight(b2=(2, 0.9), b4=(4, 0.3), b8=(8, 0.1), b16=(16, 0.0)),
    weight(b2=(20, 0.5), b4=(40, 0.2), b8=(80, 0.05), b16=(160, 0.0)),
)


def drawn(seed: int, count: int, *, monotone: bool = True) -> list[Weight]:
    """Random weights of several sizes; the wider, the less loss, if ``monotone``."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        size = rng.choice([10, 25, 70])
        losses = [rng.random() for _ in (1, 2, 3, 4, 6, 8)]
        if monotone:
            losses.sort(reverse=True)
        forms = dict(zip((1, 2, 3, 4, 6, 8), losses, strict=True)) | {AS_IT_IS: 0.0}
        options = tuple(Option(size * width, value) for width, value in forms.items())
        made.append(Weight(options, tuple(forms)))
    return made


@pytest.mark.parametrize(
    ("budget", "numbers"), [(175, (2, 2)), (88, (2, 2)), (87, (1, 1)), (22, (0, 0)), (21, None)]
)
def test_uniform_takes_the_widest_width_that_fits(
    budget: int, numbers: tuple[int, ...] | None
) -> None:
    assert uniform(TWO, budget) == numbers


def test_a_weight_without_the_width_gets_the_next_wider_one() -> None:
    small = weight(b16=(5, 0.0))
    assert uniform([*TWO, small], 49) == (1, 1, 0)
    assert small.at(2) == 0
    assert weight(b2=(2, 0.9), b6=(6, 0.1)).at(3) == 1
    assert weight(b2=(2, 0.9), b6=(6, 0.1)).at(8) == 1


def test_greedy_steps_down_where_a_byte_costs_least() -> None:
    # Steps from 16 bits: 0.1 / 8 and 0.05 / 80, so the second weight first; to 4 bits 0.15 / 40,
    # then to 2 bits 0.3 / 20 against 0.1 / 8 and 0.2 / 4 of the first.
    assert greedy(TWO, 176) == (3, 3)
    assert greedy(TWO, 175) == (3, 2)
    assert greedy(TWO, 95) == (3, 1)
    assert greedy(TWO, 55) == (2, 1)
    # (2, 0) has 28 bytes, and 8 of those that are left take the first back up.
    assert greedy(TWO, 47) == (3, 0)
    assert greedy(TWO, 35) == (2, 0)
    assert greedy(TWO, 22) == (0, 0)
    assert greedy(TWO, 21) is None


def test_greedy_takes_no_step_to_a_form_that_another_betters() -> None:
    # 3 bytes with loss 0.8 are worse than 2 bytes with loss 0.7.
    bettered = weight(b2=(2, 0.7), b3=(3, 0.8), b16=(16, 0.0))
    assert greedy([bettered], 3) == (0,)


def test_isolated_threshold_by_hand() -> None:
    # Thresholds from 0.9 on, 0.5, 0.3, 0.2, 0.1, 0.05, none; bytes 22, 24, 44, 48, 88, 96, 176.
    found = [isolated_threshold(TWO, budget) for budget in (21, 22, 43, 44, 87, 95, 100, 176)]
    assert found == [None, (0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


def test_isolated_threshold_is_the_nearest_of_all_thresholds() -> None:
    for seed in range(20):
        weights = drawn(seed, 5, monotone=seed % 2 == 0)
        budget = random.Random(seed).randrange(100, 1500)
        sizes = []
        for limit in [-1.0, *(option.loss for each in weights for option in each.options)]:
            size = 0
            for each in weights:
                passing = [
                    width
                    for width, option in zip(each.widths, each.options, strict=True)
                    if width in NEURAL_ENGINE and option.loss <= limit
                ]
                size += each.options[each.at(min(passing, default=AS_IT_IS))].nbytes
            sizes.append(size)
        wanted = max((size for size in sizes if size <= budget), default=None)
        found = isolated_threshold(weights, budget)
        assert (None if found is None else nbytes(weights, found)) == wanted


def test_cumulative_threshold_by_hand() -> None:
    # 2 bits: 0.5 of the second weight, 0.5 + 0.9 of the first; 4 bits: 0.2, and 0.2 + 0.3; 8 bits:
    # 0.05, and 0.05 + 0.1. With the threshold 0.5 the first has 4 bits, the second 2.
    assert cumulative_threshold(TWO, 24) == (1, 0)
    # Just below, 8 and 4 bits; isolated losses have 4 and 4 at a threshold of 0.3.
    assert cumulative_threshold(TWO, 48) == (2, 1)
    assert isolated_threshold(TWO, 47) == (1, 1)


def test_threshold_but_worst_leaves_alone_what_it_can_afford() -> None:
    tiny = weight(b2=(1, 5.0), b4=(2, 4.0), b8=(3, 3.0), b16=(4, 0.0))
    # With the worst weight alone at every width, the others as by thresholds: 4 + 4 + 40.
    assert threshold_but_worst([*TWO, tiny], 48) == (1, 1, 3)
    # Where nothing can be left alone, none is.
    assert threshold_but_worst([*TWO, tiny], 23) == (0, 0, 0)
    assert threshold_but_worst([*TWO, tiny], 22) is None


def test_walk_by_hand() -> None:
    # In turn the second at 8 bits, the first at 8, the second at 4, the first at 4, ...
    found = [walk(TWO, budget) for budget in (176, 96, 95, 87, 47, 43, 23, 21)]
    assert found == [(3, 3), (3, 2), (2, 2), (2, 1), (1, 1), (1, 0), (0, 0), None]


def test_walk_is_the_first_threshold_that_fits_where_width_lowers_loss() -> None:
    for seed in range(20):
        weights = drawn(seed, 5)
        budget = random.Random(seed).randrange(200, 1500)
        limits = sorted(option.loss for each in weights for option in each.options)
        for limit in limits:
            numbers = tuple(
                next(n for n, option in enumerate(each.options) if option.loss <= limit)
                for each in weights
            )
            if nbytes(weights, numbers) <= budget:
                break
        else:
            numbers = None
        assert walk(weights, budget) == numbers


def test_best_widths_are_the_best_of_all_choices() -> None:
    for seed in range(10):
        weights = drawn(seed, 4, monotone=False)
        found = best_widths(weights, 300)
        fitting = [
            loss(weights, each)
            for each in itertools.product(*(range(len(w.options)) for w in weights))
            if nbytes(weights, each) <= 300
        ]
        assert (found is None) == (not fitting)
        if found is not None:
            assert loss(weights, found) == pytest.approx(min(fitting))


@pytest.mark.parametrize("name", RULES)
def test_no_rule_exceeds_the_budget_or_beats_the_best_of_all_choices(name: str) -> None:
    for seed in range(10):
        weights = drawn(seed, 4, monotone=seed % 3 != 0)
        for budget in (120, 300, 500):
            numbers = RULES[name](weights, budget)
            best = min(
                (
                    loss(weights, each)
                    for each in itertools.product(*(range(len(w.options)) for w in weights))
                    if nbytes(weights, each) <= budget
                ),
                default=None,
            )
            if numbers is None:
                continue
            assert nbytes(weights, numbers) <= budget
            assert best is not None
            assert loss(weights, numbers) >= best - 1e-12
            planned = least_loss([each.options for each in weights], budget)
            assert planned.loss <= loss(weights, numbers) + 1e-9


def test_other_forms_than_widths_are_for_plan_and_greedy_only() -> None:
    grouped = Weight((Option(2, 0.9), Option(3, 0.05), Option(16, 0.0)), (2, None, AS_IT_IS))
    assert greedy([grouped], 4) == (1,)
    others = [rule([grouped], 4) for name, rule in RULES.items() if name != "greedy"]
    assert others == [(0,)] * len(others)
