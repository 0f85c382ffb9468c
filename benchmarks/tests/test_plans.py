"""Recipes as the rules see them, the rows of ``plans``, its table and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import numpy as np
import pytest

from benchmarks import plans
from benchmarks.lib import plans_picture
from benchmarks.tasks.answer_forms import Trial
from benchmarks.tasks.answer_trials import noise
from benchmarks.tasks.plan_choices import (
    base_bytes,
    choose,
    known_weights,
    measured_share,
    of_one_width,
    width_of,
    with_choice,
)
from benchmarks.tasks.plan_rules import AS_IT_IS
from benchmarks.tasks.plan_runs import METHODS, PLAN, SEQUENTIAL, measure, split
from benchmarks.tasks.plan_trials import PLANNED
from mlopt.coreml import OpPalettizerConfig
from mlopt.planning.recipe import Recipe, RecipeWeight, Tried


def _tried(nbytes: int, loss: float, **options: Any) -> Tried:
    config = OpPalettizerConfig(**options) if options else None
    return Tried(config=config, nbytes=nbytes, loss=loss, known="measured")


GROUPED = {"nbits": 2, "granularity": "per_grouped_channel", "group_size": 16}


@pytest.fixture
def recipe() -> Recipe:
    """Two weights with something to choose, one without; 1000 bytes of other things."""
    narrow, grouped = _tried(20, 0.5, nbits=2), _tried(25, 0.2, **GROUPED)
    wide, plain = _tried(40, 0.1, nbits=4), _tried(160, 0.0)
    known: dict[str, Any] = {"dtype": "float16", "content": "", "tried": ()}
    weights = (
        RecipeWeight(
            name="first",
            shape=(8, 10),
            chosen=wide,
            **known | {"tried": (narrow, grouped, wide, plain)},
        ),
        RecipeWeight(
            name="second", shape=(8, 10), chosen=plain, **known | {"tried": (narrow, wide, plain)}
        ),
        RecipeWeight(name="small", shape=(4,), chosen=_tried(8, 0.0), reason="small", **known),
    )
    return Recipe(
        weights=weights,
        target="iOS18",
        loss="squared",
        samples=1,
        are_random=True,
        nbytes=1208,
        nbytes_before=1328,
        limit=1208,
        expected=0.1,
    )


def test_a_recipe_is_known_by_forms_and_widths(recipe: Recipe) -> None:
    first, second, small = known_weights(recipe)
    assert first.widths == (2, None, 4, AS_IT_IS)
    assert second.widths == (2, 4, AS_IT_IS)
    assert small.widths == (AS_IT_IS,)
    assert [option.nbytes for option in first.options] == [20, 25, 40, 160]
    assert base_bytes(recipe) == 1000


def test_only_one_plain_table_has_a_width() -> None:
    assert width_of(_tried(1, 0.0, nbits=3, weight_threshold=0)) == 3
    for options in ({"cluster_dim": 2}, {"enable_per_channel_scale": True}, {"lut_dtype": "int8"}):
        assert width_of(_tried(1, 0.0, nbits=3, **options)) is None
    assert width_of(_tried(1, 0.0, nbits=3, mode="uniform")) is None


def test_another_choice_has_its_bytes_and_losses(recipe: Recipe) -> None:
    other = with_choice(recipe, (1, 0, 0))
    assert (other.nbytes, other.expected) == (1000 + 25 + 20 + 8, pytest.approx(0.7))
    assert base_bytes(other) == 1000
    assert [weight.chosen.nbytes for weight in other.weights] == [25, 20, 8]
    rules = other.to_config().op_name_configs
    assert rules["first"] == OpPalettizerConfig(**GROUPED)
    assert rules["small"] is None
    uniform = of_one_width(recipe, 2, lambda chosen: chosen.nbytes + 3)
    assert uniform == attrs.evolve(with_choice(recipe, (0, 0, 0)), nbytes=1051)


def test_rules_choose_within_the_bytes_of_the_package(recipe: Recipe) -> None:
    def chosen(rule: str, budget: int, more: int = 0) -> Recipe | None:
        return choose(rule, recipe, budget, lambda found: found.nbytes + more)

    assert chosen("uniform", 1088) == with_choice(recipe, (2, 1, 0))
    assert chosen("uniform", 1087) == with_choice(recipe, (0, 0, 0))
    assert chosen("uniform", 1047) is None
    greedy = chosen("greedy", 1073)
    assert greedy is not None
    assert (greedy.nbytes, greedy.expected) == (1073, pytest.approx(0.3))
    # 1 byte more than expected: the next smaller choice, and its exact bytes
    greedy = chosen("greedy", 1073, more=1)
    assert greedy is not None
    assert greedy.nbytes == 1069


def test_predicted_losses_are_told(recipe: Recipe) -> None:
    assert measured_share(recipe) == 1
    first = recipe.weights[0]
    predicted = tuple(attrs.evolve(each, known="predicted") for each in first.tried)
    changed = attrs.evolve(first, tried=predicted)
    assert measured_share(attrs.evolve(recipe, weights=(changed, *recipe.weights[1:]))) == 0.4


def test_samples_of_losses_are_kept_out_of_the_calibration() -> None:
    samples = [{"x": np.array(number)} for number in range(40)]
    rest, apart = split(samples, 5)
    assert [int(sample["x"]) for sample in apart] == [0, 8, 16, 24, 32]
    assert [int(sample["x"]) for sample in rest] == [n for n in range(40) if n % 8]
    rest, apart = split(samples[:5], 32)
    assert (len(rest), len(apart)) == (4, 1)


def test_digits_from_plan_to_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PLANNED, "digits", Trial(noise, {}))
    methods = [PLAN, SEQUENTIAL, "uniform", "greedy"]
    given: dict[str, Any] = {"widths": [2], "cache": str(tmp_path), "path": str(plans.DIGITS)}
    rows = measure("digits", kind="calibrated", methods=methods, costs="near", count=4, **given)
    calibrating, planning, *found = rows
    assert (calibrating["method"], planning["method"]) == ("calibrating", "planning")
    assert 0 < planning["measured"] < 1
    assert [row["method"] for row in found] == methods
    by_method = {row["method"]: row for row in found}
    assert by_method["uniform"]["bytes"] == planning["limit"]
    for row in found:
        assert row["bytes"] == row["planned"] <= planning["limit"]
        assert row["expected"] >= by_method[PLAN]["expected"] * (1 - row.get("gap", 0.0))
    given["methods"] = [PLAN, SEQUENTIAL]
    _, plain = measure("digits", kind="data-free", costs="predicted", count=1, **given)
    assert plain["held-out"] < by_method[PLAN]["held-out"]


def _row(method: str, width: int | None = 3, **values: Any) -> dict[str, Any]:
    named = {"model": "minilm", "kind": "calibrated", "width": width, "method": method}
    measured = {"held-out": 5.0, "other": 4.0, "bytes": 9_000_000, "limit": 9_000_000}
    return named | measured | {"planned": 9_000_000} | values


def test_stored_results_are_joined_and_later_ones_replace_earlier_ones() -> None:
    old = [_row("plan", 4), _row("plan"), _row("calibrating", None)]
    new = [_row("plan", 4, other=1.0), _row("plan") | {"model": "digits", "kind": "data-free"}]
    assert plans.arranged([old, new]) == [old[2], old[1], new[0], new[1]]


def _main(tmp_path: Path, rows: list[dict[str, Any]], *options: str) -> int:
    stored = tmp_path / "stored.json"
    stored.write_text(json.dumps({"rows": rows}))
    return plans.main(["--read", str(stored), *options])


def test_table_tells_what_has_not_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [_row("plan"), _row("calibrating", None)]
    nothing = {name: fit[0][name] for name in ("model", "kind", "width", "limit")}
    fit.append(nothing | {"method": "argmaxtools"})
    assert _main(tmp_path, fit) == 0
    assert "none fits" in capsys.readouterr().out
    for wrong in (
        _row("greedy", bytes=8_999_990),
        _row("greedy", bytes=9_000_010, planned=9_000_010),
        {"model": "digits", "kind": "data-free", "width": None, "method": "all", "error": "E"},
    ):
        assert _main(tmp_path, [*fit, wrong]) == 1
        assert "failed: " in capsys.readouterr().out


def test_picture_has_a_line_for_each_method_and_is_the_same_each_time(tmp_path: Path) -> None:
    rows = [
        _row(method, width, bytes=width * 3_000_000 + number, other=width + 0.1 * number)
        for number, method in enumerate(METHODS)
        for width in (2, 3, 4)
    ]
    rows += [row | {"kind": "data-free"} for row in rows if row["method"] != METHODS[1]]
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    assert _main(tmp_path, rows, "--picture", str(first)) == 1  # bytes are others than planned
    plans_picture.draw(rows, second)
    assert first.read_bytes() == second.read_bytes()
    root = ElementTree.parse(first).getroot()
    written = {"".join(element.itertext()).strip() for element in root.iter()}
    assert {*METHODS, "held-out text, with a calibration"} <= written
    assert plans_picture.lines(rows, "calibrated", "other")["plan"] == (
        [6.0, 9.0, 12.0],
        [2.0, 3.0, 4.0],
    )


def test_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plans_picture.draw([_row("plan") | {"model": "digits"}], tmp_path / "none.svg")


def test_every_method_has_a_colour() -> None:
    assert set(plans_picture.COLOURS) == set(METHODS)
