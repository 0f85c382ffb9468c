"""``mlopt lint``: what it prints and returns."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlopt.coreml import lint, palettize
from mlopt.coreml.lint import RULES
from tests.cli.commands import invoke, run
from tests.coreml.conftest import chain, global_config, saved


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Path:
    """A model for iOS18 with one weight in groups of 4 channels: a warning, and no error."""
    folder = tmp_path_factory.mktemp("lint")
    weight = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float16)
    source = saved(chain({"w": weight}, "iOS18"), folder / "source.mlpackage")
    config = global_config(granularity="per_grouped_channel", group_size=4)
    return palettize(source, config, output=folder / "grouped.mlpackage").path


def test_a_clean_model(digits):
    result = invoke("lint", digits)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "Nothing found. Target: iOS15.\n"


def test_findings_are_a_table_with_explanations(grouped):
    result = invoke("lint", grouped)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{lint(grouped)}\n"
    assert "group-size" in result.stdout


def test_errors_have_a_code(grouped):
    result = invoke("lint", grouped, "--target", "macos14")
    assert result.exit_code == 6
    assert "compression-newer-than-target" in result.stdout
    assert result.stdout.endswith("1 warning. Target: iOS17 (the model's own: iOS18).\n")


def test_warnings_have_it_when_strict(grouped):
    assert invoke("lint", grouped).exit_code == 0
    assert invoke("lint", grouped, "--strict").exit_code == 6
    assert invoke("lint", grouped, "--strict", "--ignore", "group-size").exit_code == 0


def test_notes_never_have_it(digits, tmp_path):
    old = palettize(digits, global_config(), output=tmp_path / "old").path
    result = invoke("lint", old, "--select", "decompressed-at-load", "--strict")
    assert result.exit_code == 0
    assert "1 note. Target: iOS16." in result.stdout


def test_json_and_nothing_else(grouped):
    result = invoke("lint", grouped, "--format", "json", "--target", "iOS17")
    assert (result.exit_code, result.stderr) == (6, "")
    assert json.loads(result.stdout) == lint(grouped, "iOS17").as_dict()


def test_rules_are_selected_and_silenced(grouped):
    def found(*options):
        result = invoke("lint", grouped, "--target", "iOS17", "--format", "json", *options)
        return json.loads(result.stdout)["totals"]["by_rule"]

    assert found("--select", "group*", "--select", "table*") == {"group-size": 1}
    assert "group-size" not in found("--ignore", "group-size")
    assert found("--ignore", "*:w", "--ignore", "newer*") == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--select", "grup-size"), "did you mean 'group-size'"),
        (("--ignore", "grup-size:w"), "did you mean 'group-size'"),
        (("--target", "iOS99"), "'--target'"),
        (("--format", "xml"), "'--format'"),
    ],
)
def test_wrong_options_have_their_code(grouped, options, said):
    result = invoke("lint", grouped, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr.replace("Did", "did")


def test_models_that_cannot_be_read_have_their_code(tmp_path):
    result = invoke("lint", tmp_path / "missing.mlpackage")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "missing.mlpackage" in result.stderr


def test_rules_are_listed_without_a_model():
    result = invoke("lint", "--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(RULES)


def test_a_rule_is_explained_without_a_model():
    result = invoke("lint", "--explain", "integer-table")
    assert result.exit_code == 0
    assert result.stdout == RULES["integer-table"].explanation() + "\n"
    several = invoke("lint", "--explain", "table-*").stdout
    assert several.count("How sure:") == sum(name.startswith("table-") for name in RULES)
    unknown = invoke("lint", "--explain", "intger-table")
    assert unknown.exit_code == 2
    assert "'integer-table'" in unknown.stderr


def test_help_says_what_the_codes_mean():
    result = invoke("lint", "-h")
    assert "6    lint: errors were found" in result.stdout
    assert "\n  lint " in invoke("--help").stdout


@pytest.mark.long
def test_as_a_process(grouped):
    result = run("lint", grouped, "--target", "iOS17", "--strict")
    assert (result.returncode, result.stderr) == (6, "")
