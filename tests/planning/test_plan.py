"""Plans of the digit classifier, judged by brute force and by packages that are run."""

import itertools
import math
import sys
from pathlib import Path

import attrs
import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest

from mlopt import runtime
from mlopt.calibration import calibrate
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.coreml.inspection import inspect_weights, package_bytes
from mlopt.errors import ConfigError, InputError, RunError, TargetError
from mlopt.planning import Recipe, apply_recipe, metric_of_command, plan
from tests.conftest import FIXTURES

IMAGES = np.random.default_rng(0).uniform(size=(6, 1, 1, 8, 8)).astype(np.float32)
SAMPLES = [{"image": image} for image in IMAGES]
FORMS = [OpPalettizerConfig(nbits=nbits, weight_threshold=256) for nbits in (1, 2, 4, 6)]
GROUPED = attrs.evolve(FORMS[1], granularity="per_grouped_channel", group_size=8)


@pytest.fixture(scope="module")
def calibration(digits):
    return calibrate(digits, SAMPLES)


@pytest.fixture(scope="module")
def measured(digits, calibration, tmp_path_factory) -> Recipe:
    """A plan that has run the model with all forms."""
    return plan(
        digits,
        budget=60_000,
        samples=SAMPLES,
        calibration=calibration,
        candidates=[*FORMS, GROUPED],
        minimum_deployment_target="iOS18",
        costs="measured",
        output=tmp_path_factory.mktemp("plan") / "planned.mlpackage",
    )


def error_of(reference, candidate) -> float:
    """The squared error of the logits relative to their mean square, by whole runs."""
    wanted, given = (
        np.concatenate([runtime.load(path).predict(s)["logits"] for s in SAMPLES]).astype(float)
        for path in (reference, candidate)
    )
    return float(((wanted - given) ** 2).sum() / (wanted**2).sum())


def palettized(digits, configs, output, calibration):
    return palettize(
        digits,
        OptimizationConfig(op_name_configs=configs),
        output=output,
        minimum_deployment_target="iOS18",
        calibration=calibration,
    )


def test_no_choice_loses_less(measured):
    assert measured.nbytes <= 60_000
    assert measured.gap < 1
    open_weights = [w for w in measured.weights if len(w.tried) > 1]
    assert len(open_weights) == 4
    chosen = sum(w.chosen.nbytes for w in open_weights)
    rest = measured.nbytes - chosen
    least = min(
        math.fsum(t.loss for t in forms)
        for forms in itertools.product(*(w.tried for w in open_weights))
        # a few bytes of text are not counted in the sums
        if rest + sum(t.nbytes for t in forms) <= 60_000 - 64
    )
    assert measured.expected <= least * (1 + 1e-3)
    assert measured.expected == pytest.approx(math.fsum(w.chosen.loss for w in open_weights))


def test_losses_are_those_of_packages_with_one_weight_palettized(
    measured, digits, calibration, tmp_path
):
    for name, number in (("conv2_weight_to_fp16", 0), ("hidden_weight_to_fp16", 2)):
        (weight,) = (w for w in measured.weights if w.name == name)
        tried = [t for t in weight.tried if t.config is not None][number]
        path = palettized(
            digits, {name: tried.config}, tmp_path / "one.mlpackage", calibration
        ).path
        assert tried.known == "measured"
        assert tried.loss == pytest.approx(error_of(digits, path), rel=1e-3)


def test_the_package_is_the_planned_one(measured, digits, calibration, tmp_path):
    result = palettized(
        digits, measured.to_config().op_name_configs, tmp_path / "again.mlpackage", calibration
    )
    assert package_bytes(result.path) == measured.nbytes
    assert measured.measured == pytest.approx(error_of(digits, result.path), rel=1e-3)
    assert str(result.report.target_after) == measured.target
    assert not result.report.unmatched_rules


def test_only_what_is_chosen_is_measured(digits, calibration):
    asked = {
        "samples": SAMPLES,
        "calibration": calibration,
        "candidates": FORMS,
        "budget": "50kB",
    }
    near = plan(digits, costs="near", **asked)
    assert all(w.chosen.known == "measured" for w in near.weights)
    assert any(t.known == "predicted" for w in near.weights for t in w.tried)
    assert near.notes[-1].startswith("6 of 6 samples are also in the calibration")
    rough = plan(digits, costs="predicted", **asked)
    assert rough.measured is None
    assert rough.nbytes <= 50_000
    assert {t.known for w in rough.weights for t in w.tried if t.config} == {"predicted"}
    # forms of a weight keep their order
    for weight in rough.weights:
        losses = [tried.loss for tried in weight.tried]
        assert losses == sorted(losses, reverse=True)


def test_the_smallest_package_for_a_quality(digits, measured):
    asked = {"samples": SAMPLES, "candidates": FORMS, "costs": "measured"}
    good = plan(digits, quality=25, **asked)
    better = plan(digits, quality="35 dB", **asked)
    assert good.measured <= 10**-2.5
    assert better.measured <= 10**-3.5
    assert good.nbytes < better.nbytes < good.nbytes_before
    with pytest.raises(ConfigError, match="no package"):
        plan(digits, quality=25, samples=SAMPLES, candidates=FORMS[:1], pinned={"*": FORMS[0]})


def test_pinned_weights_are_not_chosen(digits):
    recipe = plan(
        digits,
        budget="60kB",
        samples=SAMPLES[:2],
        candidates=FORMS,
        pinned={"head*": None, "conv2*": FORMS[3]},
    )
    forms = {w.name: w.chosen.config for w in recipe.weights}
    assert forms["head_weight_to_fp16"] is None
    assert forms["conv2_weight_to_fp16"] == FORMS[3]
    reasons = {w.name: w.reason for w in recipe.weights}
    assert "pinned" in reasons["conv2_weight_to_fp16"]
    with pytest.raises(ConfigError, match="pinned forms of no weight"):
        plan(digits, budget="60kB", pinned={"nothing": None})


def test_a_calibration_need_not_know_what_is_chosen(digits, calibration, tmp_path):
    asked = {"samples": SAMPLES[:2], "candidates": FORMS[:1], "costs": "predicted"}
    nothing = plan(digits, quality=200, calibration=calibration, method="hessian", **asked)
    assert nothing.nbytes == nothing.nbytes_before
    rest = tuple(w for w in calibration.weights if not w.name.startswith("hidden"))
    partial = attrs.evolve(calibration, weights=rest, marks=calibration.marks[1:])
    output = tmp_path / "planned.mlpackage"
    recipe = plan(digits, budget=66_000, calibration=partial, output=output, **asked)
    chosen = [w.name for w in recipe.weights if w.chosen.config]
    assert chosen == ["hidden_weight_to_fp16"]
    assert recipe.notes[-1].startswith("1 of 2 samples")
    in_sequence = apply_recipe(recipe, digits, calibration=partial, samples=SAMPLES[:2])
    assert any("no samples are run" in note for note in in_sequence.report.notes)
    assert [row.nbits for row in in_sequence.report.palettized] == [1]
    for given in (recipe, nothing):
        known = partial if given is recipe else calibration
        method = "auto" if given is recipe else "hessian"
        again = apply_recipe(given, digits, calibration=known, method=method)
        assert package_bytes(again.path) == given.nbytes
        assert not any("planned with" in note for note in again.report.notes)


def test_forms_may_differ_by_their_method_alone(digits, calibration):
    forms = [attrs.evolve(FORMS[1], method=method) for method in ("plain", "hessian", "plain")]
    asked = {"candidates": forms, "costs": "measured", "calibration": calibration}
    recipe = plan(digits, budget="5x", samples=SAMPLES, **asked)
    for weight in recipe.weights:
        if len(weight.tried) > 1:
            methods = sorted(str(t.config and t.config.method) for t in weight.tried)
            assert methods == ["None", "hessian", "plain"]
    assert {w.chosen.config.method for w in recipe.weights if w.chosen.config} == {"hessian"}


def test_random_inputs_are_said_to_be(digits):
    recipe = plan(digits, budget="3x", random=2, candidates=FORMS)
    assert recipe.are_random
    assert recipe.samples == 2
    assert recipe.nbytes * 3 <= recipe.nbytes_before
    assert recipe == plan(digits, budget="3x", random=2, candidates=FORMS)


def test_classes_can_be_compared(digits):
    recipe = plan(digits, budget="2 bits", samples=SAMPLES, candidates=FORMS, loss="kl")
    assert recipe.loss == "kl"
    assert 0 < recipe.measured < 1
    assert recipe.bits <= 2


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, ConfigError, "neither"),
        ({"budget": 1, "quality": 1}, ConfigError, "both"),
        ({"budget": 20_000}, ConfigError, "smallest form of every weight"),
        ({"budget": "12 parsecs"}, ConfigError, "12MB"),
        ({"budget": 0.5}, ConfigError, "a budget is"),
        ({"quality": "0.1 nats"}, ConfigError, "with loss squared"),
        ({"budget": 60_000, "samples": []}, InputError, "no samples"),
        ({"budget": 60_000, "samples": [{"picture": 1}]}, InputError, "sample 0"),
        ({"budget": 60_000, "candidates": []}, ConfigError, "candidates is empty"),
        ({"budget": 60_000, "candidates": FORMS[0]}, ConfigError, "put it in a list"),
        ({"budget": 60_000, "candidates": [FORMS[0], 4]}, ConfigError, r"in it 4 \(int\)"),
        ({"budget": 60_000, "pinned": ["head*"]}, ConfigError, "dict.fromkeys"),
        ({"budget": 60_000, "candidates": [GROUPED]}, TargetError, "iOS18"),
        (
            {"budget": 60_000, "candidates": [OpPalettizerConfig(nbits=2, weight_threshold=10**9)]},
            ConfigError,
            "nothing to choose",
        ),
    ],
)
def test_what_cannot_be_planned(digits, asked, error, message):
    with pytest.raises(error, match=message):
        plan(digits, **asked)


def test_a_metric_decides(digits):
    asked = {"samples": SAMPLES[:2], "candidates": FORMS, "costs": "predicted"}
    seen = []

    def smallness(path):
        seen.append(package_bytes(path))
        return -seen[-1]

    # less is "better", so that equal forms, which take fewer bytes, win against the plan
    recipe = plan(digits, budget="60kB", metric=smallness, **asked)
    assert recipe.nbytes == min(seen)
    assert recipe.metric == -recipe.nbytes
    assert len(seen) == 2

    def size(path):
        return package_bytes(path)

    least = plan(digits, quality=45_000, metric=size, **asked)
    assert 45_000 <= least.nbytes <= 55_000
    assert least.least_metric == 45_000
    with pytest.raises(ConfigError, match="best forms of all weights"):
        plan(digits, quality=10**9, metric=size, **asked)
    with pytest.raises(RunError, match="the metric failed: ZeroDivisionError"):
        plan(digits, budget="60kB", metric=lambda path: 1 / 0, **asked)


def test_commands_as_metrics(tmp_path):
    say = f'"{sys.executable}" -c "import sys; print(1); print(len(sys.argv[1]))" {{}}'
    assert metric_of_command(say)(Path("abc")) == 3
    with pytest.raises(RunError, match="must print a number last"):
        metric_of_command(f'"{sys.executable}" -c "print(\'x\')" {{}}')(tmp_path)
    with pytest.raises(RunError, match="cannot be run"):
        metric_of_command("no-such-command {}")(tmp_path)
    with pytest.raises(ConfigError, match="where the package's path goes"):
        metric_of_command("accuracy")


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_sparse_weights_are_planned_if_asked_for(tmp_path):
    model = ct.models.MLModel(str(FIXTURES / "digits-iOS18.mlpackage"), skip_model_load=True)
    pruner = cto.OpThresholdPrunerConfig(
        threshold=0.02, weight_threshold=2000, minimum_sparsity_percentile=0.1
    )
    sparse = cto.prune_weights(model, cto.OptimizationConfig(global_config=pruner))
    asked = {"samples": SAMPLES[:2], "candidates": FORMS, "costs": "measured"}
    without = plan(sparse, budget="1.0x", **asked)
    assert any("compressed" in weight.reason for weight in without.weights)
    output = tmp_path / "planned.mlpackage"
    recipe = plan(sparse, budget="2x", joint_compression=True, output=output, **asked)
    (hidden,) = (w for w in recipe.weights if w.name.startswith("hidden_weight"))
    assert hidden.chosen.config is not None
    assert recipe.nbytes == package_bytes(output)
    (stored,) = (w for w in inspect_weights(output).rows if w.name.startswith("hidden_weight"))
    assert "sparse" in stored.compression.short
    again = apply_recipe(recipe, sparse, output=tmp_path / "again.mlpackage")
    assert package_bytes(again.path) == recipe.nbytes
