"""Recipes against the model that they were made for, a fine-tuned copy, and others."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from mlopt.calibration import calibrate
from mlopt.coreml import OpPalettizerConfig, palettize
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError, TargetError
from mlopt.mil import PackageWriter
from mlopt.mil.opening import open_package
from mlopt.planning.applying import apply_recipe, preview_recipe
from mlopt.planning.matching import match
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from tests.planning.recipes import recipe_of, weight


@pytest.fixture(scope="module")
def plan(digits):
    return recipe_of(digits)


def matrices(recipe):
    return [each.name for each in recipe.weights if each.chosen.config is not None]


def tuned(package, folder, names):
    """A copy in which the named weights have other values, written at the level of bytes."""
    copy = folder / "tuned.mlpackage"
    source = open_package(package)
    with PackageWriter(source, copy) as writer:
        for each in weights_of(source)[0]:
            if each.name in names:
                (constant,) = each.instances
                moved = np.asarray(constant.value(), np.float32) * 1.25 + 0.001
                value = writer.add_value(
                    moved.astype(constant.numpy_dtype), specification_version=6
                )
                constant.message.CopyFrom(value)
        writer.finish()
    return copy


def test_the_model_of_the_recipe(digits, plan, tmp_path):
    matching = match(plan, digits, strict=True)
    assert matching.same == tuple(each.name for each in plan.weights)
    assert matching.notes == ()
    assert matching.config == plan.to_config()
    result = apply_recipe(plan, digits, output=tmp_path / "one")
    expected = palettize(
        digits, plan.to_config(), output=tmp_path / "other", minimum_deployment_target="iOS18"
    )
    assert result.report == expected.report
    files = [path.relative_to(result.path) for path in result.path.rglob("*") if path.is_file()]
    assert len(files) == 3
    for file in files:
        assert (result.path / file).read_bytes() == (expected.path / file).read_bytes()
    bits = {row.name: row.nbits for row in result.report if row.is_palettized}
    assert set(bits) == set(matrices(plan))
    assert set(bits.values()) == {2, 4}


def test_a_fine_tuned_copy(digits, plan, tmp_path):
    first, *_ = matrices(plan)
    copy = tuned(digits, tmp_path, {first})
    matching = match(plan, copy)
    assert matching.changed == (first,)
    assert len(matching.same) == len(plan.weights) - 1
    report = apply_recipe(plan, copy).report
    assert report[first].nbits == plan.weights[0].chosen.config.nbits
    assert any("other values of 1 weight" in note and first in note for note in report.notes)
    with pytest.raises(ConfigError, match=r"not the one of the recipe.*\n- .*other values"):
        match(plan, copy, strict=True)


def test_all_of_another_version(digits, plan, tmp_path):
    copy = tuned(digits, tmp_path, {each.name for each in plan.weights})
    assert "other values of all " in match(plan, copy).notes[0]


def test_weights_that_were_renamed_or_are_unknown(digits, plan):
    names = matrices(plan)
    by_name = {each.name: each for each in plan.weights}
    by_name[names[0]] = attrs.evolve(by_name[names[0]], name="as_it_was_called")
    del by_name[names[1]]
    left_alone = weight("left_alone", (3, 3))
    recipe = attrs.evolve(plan, weights=(*by_name.values(), left_alone))
    matching = match(recipe, digits)
    assert matching.renamed == {names[0]: "as_it_was_called"}
    assert matching.unknown == (names[1],)
    assert matching.absent == ("left_alone",)
    assert matching.config.op_name_configs[names[0]] == by_name[names[0]].chosen.config
    report = apply_recipe(recipe, digits, strict=False).report
    assert report[names[0]].is_palettized
    assert not report[names[1]].is_palettized
    assert not report.unmatched_rules
    assert len(matching.notes) == 3
    assert set(matching.notes) <= set(report.notes)


def test_a_copy_of_another_precision(digits, plan):
    """As if the recipe had been made for the float32 model, whose names lack the suffix."""
    wide = [
        attrs.evolve(
            each, name=each.name.removesuffix("_to_fp16"), dtype="float32", content="1" * 40
        )
        for each in plan.weights
    ]
    matching = match(attrs.evolve(plan, weights=tuple(wide)), digits)
    assert matching.renamed == {
        each.name: each.name.removesuffix("_to_fp16") for each in plan.weights
    }
    assert matching.changed == tuple(each.name for each in plan.weights)
    assert matching.config == plan.to_config()
    turned = [attrs.evolve(each, shape=(*each.shape, 1)) for each in wide]
    with pytest.raises(ConfigError, match="no weight of this name"):
        match(attrs.evolve(plan, weights=tuple(turned)), digits)


def test_a_name_that_is_a_glob_decides_for_no_other_weight(digits, plan):
    weights = list(plan.weights)
    weights[0] = attrs.evolve(weights[0], name="*")
    recipe = attrs.evolve(plan, weights=tuple(weights[:1]))
    report = apply_recipe(recipe, digits).report
    assert [row.name for row in report if row.is_palettized] == [plan.weights[0].name]


def test_another_type(digits, plan):
    weights = [attrs.evolve(each, dtype="float32", content="1" * 40) for each in plan.weights]
    matching = match(attrs.evolve(plan, weights=tuple(weights)), digits)
    assert set(matching.retyped.values()) == {"float32"}
    assert len(matching.notes) == 2


def test_another_model_is_refused_weight_by_weight(digits, plan):
    names = matrices(plan)
    of_another = [
        attrs.evolve(each, name=f"layers.{number}", content=f"{number:040}")
        for number, each in enumerate(plan.weights)
    ]
    with pytest.raises(ConfigError) as caught:
        apply_recipe(attrs.evolve(plan, weights=tuple(of_another)), digits)
    lines = str(caught.value).splitlines()
    expected = [each.name for each in of_another if each.chosen.config is not None]
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"- {name}" for name in expected]
    assert f"{len(names)} of the {len(names)} weights" in lines[0]
    assert "mlopt plan" in lines[-1]


def test_other_shapes_are_refused(digits, plan):
    first, *others = plan.weights
    turned = attrs.evolve(first, shape=first.shape[::-1])
    misspelt = attrs.evolve(others[-1], name="hidden_weight_to_fp1", content="2" * 40)
    misspelt = attrs.evolve(misspelt, chosen=first.chosen)
    recipe = attrs.evolve(plan, weights=(turned, *others[:-1], misspelt))
    with pytest.raises(ConfigError) as caught:
        match(recipe, digits)
    message = str(caught.value)
    assert f"- {first.name}: the recipe has the shape {list(first.shape[::-1])}" in message
    assert "no weight of this name; did you mean 'hidden_weight_to_fp16'" in message
    assert message.count("\n- ") == 2


def test_names_of_two_weights_are_refused(package_of):
    source = package_of("pipeline", "iOS15")
    recipe = recipe_of(source)
    with pytest.raises(ConfigError, match="2 weights of the model have this name"):
        match(recipe, source)


def test_what_a_target_cannot_express_is_listed(digits):
    forms = (
        OpPalettizerConfig(nbits=3),
        OpPalettizerConfig(nbits=4, granularity="per_grouped_channel", group_size=8),
    )
    recipe = recipe_of(digits, forms)
    report = apply_recipe(recipe, digits).report
    palettized = [row.name for row in report.palettized]
    with pytest.raises(TargetError) as caught:
        apply_recipe(recipe, digits, minimum_deployment_target="iOS16")
    assert str(caught.value).count("\n- ") == len(palettized)
    for name in palettized:
        assert f"- {name} (" in str(caught.value)


def test_a_preview_is_what_follows(digits, plan, tmp_path):
    copy = tuned(digits, tmp_path, {plan.weights[0].name})
    foreseen, done = preview_recipe(plan, copy), apply_recipe(plan, copy).report
    assert foreseen.notes == done.notes
    assert foreseen.bytes_after == done.bytes_after
    assert [row.nbits for row in foreseen] == [row.nbits for row in done]


def test_calibrations_and_samples(digits, plan):
    samples = [*random_samples(load(digits), 2, 0)]
    calibration = calibrate(digits, samples)
    given = {"calibration": calibration}
    planned = attrs.evolve(plan, calibration=calibration.identity)
    report = apply_recipe(planned, digits, samples=samples, **given).report
    assert {row.method for row in report.palettized} == {"sequential"}
    assert not any("recipe" in note for note in report.notes)
    given["method"] = "diagonal"
    assert "applied with one" in apply_recipe(plan, digits, **given).report.notes[0]
    assert "applied without one" in apply_recipe(planned, digits).report.notes[0]
    of_another = attrs.evolve(plan, calibration="0" * 40)
    assert "another calibration" in apply_recipe(of_another, digits, **given).report.notes[0]
    with pytest.raises(ConfigError, match="samples need the calibration"):
        apply_recipe(plan, digits, samples=samples)
