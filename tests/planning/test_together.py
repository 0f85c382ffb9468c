"""Several packages under one budget."""

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt import runtime
from mlopt.coreml import OpPalettizerConfig
from mlopt.coreml.inspection import package_bytes
from mlopt.errors import ConfigError
from mlopt.planning import apply_recipe, plan, plan_together
from mlopt.planning.candidates import Candidates, check_pinned
from tests.models import build_program

FORMS = [OpPalettizerConfig(nbits=nbits, weight_threshold=100) for nbits in (1, 2, 4, 6)]


@pytest.fixture(scope="module")
def chunks(tmp_path_factory):
    """Two halves of a network; small changes in the first one matter much more."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("chunks")
    halves = [
        (nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 64)), "x", "h", 8),
        (nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 16)), "h", "y", 64),
    ]
    with torch.no_grad():
        halves[1][0][2].weight.mul_(0.01)
        halves[1][0][2].bias.add_(1.0)
    paths = []
    for module, given, result, width in halves:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ct.convert(
                torch.jit.trace(module.eval(), torch.zeros(1, width)),
                inputs=[ct.TensorType(given, (1, width))],
                outputs=[ct.TensorType(result)],
                minimum_deployment_target=ct.target.iOS18,
                skip_model_load=True,
            )
        paths.append(folder / f"{result}.mlpackage")
        model.save(str(paths[-1]))
    return paths


SAMPLES = [{"x": np.random.default_rng(i).normal(size=(1, 8)).astype(np.float32)} for i in range(4)]


def test_bytes_go_where_they_are_worth_most(chunks, tmp_path):
    asked = {"candidates": FORMS, "costs": "measured"}
    budget = round(0.55 * sum(map(package_bytes, chunks)))
    recipes = plan_together(chunks, budget=budget, samples=SAMPLES, **asked)
    assert sum(recipe.nbytes for recipe in recipes) <= budget
    applied = [
        apply_recipe(recipe, chunk, output=tmp_path / chunk.name)
        for recipe, chunk in zip(recipes, chunks, strict=True)
    ]
    assert [package_bytes(each.path) for each in applied] == [each.nbytes for each in recipes]
    # the second package runs on what the first one gives
    first = runtime.load(chunks[0])
    hidden = [{"h": first.predict(sample)["h"]} for sample in SAMPLES]
    alone = [
        plan(chunk, budget=recipe.nbytes, samples=samples, **asked)
        for chunk, recipe, samples in zip(chunks, recipes, (SAMPLES, hidden), strict=True)
    ]
    for one, other in zip(recipes, alone, strict=True):
        assert one.expected == pytest.approx(other.expected, rel=1e-3)
        assert one.measured == pytest.approx(other.measured, rel=1e-3)
        assert "Planned together with 1 other package" in one.notes[-1]
    halved = [
        plan(chunk, budget=round(0.55 * package_bytes(chunk)), samples=samples, **asked)
        for chunk, samples in zip(chunks, (SAMPLES, hidden), strict=True)
    ]
    total = sum(recipe.expected for recipe in recipes)
    assert total < 0.8 * sum(recipe.expected for recipe in halved)


def test_a_quality_is_of_all_together(chunks):
    pinned = {"op_0_weight*": None}
    recipes = plan_together(chunks, quality=20, samples=SAMPLES, candidates=FORMS, pinned=pinned)
    assert sum(recipe.measured for recipe in recipes) <= 0.01
    reasons = [[weight.reason for weight in recipe.weights] for recipe in recipes]
    assert [sum("pinned" in each for each in of) for of in reasons] == [1, 1]


def test_what_cannot_be_planned(chunks):
    with pytest.raises(ConfigError, match="a calibration for each of the 2 packages"):
        plan_together(chunks, budget="2x", calibrations=["one"])
    with pytest.raises(ConfigError, match="no packages"):
        plan_together([], budget="2x")
    with pytest.raises(ConfigError, match="neither"):
        plan_together(chunks)


def test_what_is_pinned_has_to_be_in_one_of_them(chunks):
    first, second = Candidates((), (), {"x": "why", "y": "no"}), Candidates((), (), {"x": "why"})
    with pytest.raises(ConfigError, match="pinned forms of no weight:\n- why"):
        check_pinned([first, second])
    check_pinned([second, Candidates((), ())])
    with pytest.raises(ConfigError, match="'none'"):
        plan_together(chunks, budget="2x", candidates=FORMS, pinned={"none": None})


def test_a_package_without_a_choice_counts_as_it_is(chunks, tmp_path):
    plain = build_program(lambda x: mb.relu(x=x), (1, 16), target="iOS18", precision="float16")
    path = tmp_path / "plain.mlpackage"
    plain.save(str(path))
    recipes = plan_together([chunks[1], path], budget="2x", random=2, candidates=FORMS)
    assert [len(recipe.weights) > 0 for recipe in recipes] == [True, False]
    assert recipes[1].nbytes == package_bytes(path)
    assert recipes[1].measured == 0.0
    with pytest.raises(ConfigError, match="nothing to choose"):
        plan_together([path], budget="2x", random=2)
