"""``mlopt palettize --recipe``."""

import json

import attrs
import pytest

from mlopt.coreml import palettize
from mlopt.coreml.inspection import package_bytes
from mlopt.planning import save_recipe
from tests.cli.commands import invoke, json_of
from tests.planning.recipes import recipe_of


@pytest.fixture(scope="module")
def plan(digits):
    return recipe_of(digits, (3, 4))


@pytest.fixture(params=["yaml", "json"])
def file(request, plan, tmp_path):
    path = tmp_path / f"recipe.{request.param}"
    save_recipe(plan, path)
    return path


def test_a_recipe_is_carried_out(model, plan, file, tmp_path):
    result = invoke("palettize", model, "-o", tmp_path / "out", "--recipe", file)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = palettize(
        model, plan.to_config(), output=tmp_path / "other", minimum_deployment_target="iOS18"
    )
    assert package_bytes(tmp_path / "out.mlpackage") == package_bytes(expected.path)
    assert "raised from iOS15 to iOS18" in result.stdout


def test_a_dry_run_knows_the_size(model, file, tmp_path):
    dry = invoke("palettize", model, "--recipe", file, "--dry-run")
    out = tmp_path / "out.mlpackage"
    assert dry.exit_code == 0, dry.output
    assert not out.exists()
    done = invoke("palettize", model, "--recipe", file, "-o", out)
    assert f"({package_bytes(out)} bytes)." in dry.stdout.splitlines()[-2]
    assert done.exit_code == 0
    reports = [
        json_of(invoke("palettize", model, "--recipe", file, "--report", "-", *how))
        for how in (("--dry-run",), ("-o", tmp_path / "again"))
    ]
    assert reports[0]["totals"]["bytes_after"] == reports[1]["totals"]["bytes_after"]


def test_differences_are_shown(model, plan, tmp_path):
    first, *others = plan.weights
    save_recipe(attrs.evolve(plan, weights=tuple(others)), tmp_path / "part.yaml")
    options = ("palettize", model, "--recipe", tmp_path / "part.yaml", "--dry-run")
    result = invoke(*options)
    assert f"1 weight that the recipe does not know, left as they are: '{first.name}'" in (
        " ".join(result.stdout.split())
    )
    result = invoke(*options, "--strict")
    assert result.exit_code == 2
    assert "not the one of the recipe (strict)" in result.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--nbits", 4), "--nbits"),
        (("--mode", "uniform", "--skip", "conv*"), "--mode, --skip"),
        (("--config", "rules.yaml"), "--config"),
    ],
)
def test_a_recipe_is_the_whole_configuration(model, plan, tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    save_recipe(plan, "recipe.yaml")
    (tmp_path / "rules.yaml").write_text("global_config: {nbits: 4}\n", "utf-8")
    result = invoke("palettize", model, "-o", "out", "--recipe", "recipe.yaml", *options)
    assert result.exit_code == 2
    assert f"got {named} as well" in " ".join(result.stderr.split())
    assert not (tmp_path / "out.mlpackage").exists()


def test_wrong_recipes_and_targets(model, plan, tmp_path):
    damaged, other = tmp_path / "damaged.yaml", tmp_path / "other.json"
    damaged.write_text("global_config: {nbits: 4}\n", "utf-8")
    renamed = [attrs.evolve(w, name=f"x{w.name}", content="0" * 40) for w in plan.weights]
    save_recipe(attrs.evolve(plan, weights=tuple(renamed)), other)
    save_recipe(plan, tmp_path / "recipe.json")
    for file, message, code in (
        (damaged, "damaged.yaml: this is no recipe that can be read", 2),
        (other, f"- {renamed[0].name}: the model has no weight of this name", 2),
        (tmp_path / "recipe.json", f"- {plan.weights[0].name} (", 3),
    ):
        options = ("--recipe", file, "--target", "iOS17")
        result = invoke("palettize", model, "-o", tmp_path / "out", *options)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
        assert not (tmp_path / "out.mlpackage").exists()


def test_several_models(model, newer, file, tmp_path):
    # the second of them has the same names, since it was converted from the same network
    report = tmp_path / "report.json"
    options = ("--recipe", file, "--output-dir", tmp_path / "out", "--report", report)
    result = invoke("palettize", model, newer, *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(report.read_text("utf-8"))["models"]
    assert [row["totals"]["palettized"] for row in rows] == [rows[0]["totals"]["palettized"]] * 2


def test_a_recipe_for_each_model(model, newer, plan, tmp_path):
    names = [each.name for each in plan.weights if each.chosen.config is not None]
    fewer = [
        attrs.evolve(each, chosen=plan.weights[1].chosen) if each.name in names[1:] else each
        for each in plan.weights
    ]
    save_recipe(plan, tmp_path / "one.yaml")
    save_recipe(attrs.evolve(plan, weights=tuple(fewer)), tmp_path / "other.yaml")
    report = tmp_path / "report.json"
    recipes = ("--recipe", tmp_path / "one.yaml", "--recipe", tmp_path / "other.yaml")
    result = invoke("palettize", model, newer, "--dry-run", *recipes, "--report", report)
    assert result.exit_code == 0, result.output
    rows = json.loads(report.read_text("utf-8"))["models"]
    assert [row["totals"]["palettized"] for row in rows] == [len(names), 1]
    result = invoke("palettize", model, newer, newer, "--dry-run", *recipes)
    assert result.exit_code == 2
    assert "got 2 for 3 models" in " ".join(result.stderr.split())
