"""Statements of the pages about exit codes, make targets, options and other files hold."""

from __future__ import annotations

import ast
import re

import attrs
import pytest

from mlopt.cli.exit_codes import EXIT_CODES, ExitCode
from mlopt.coreml import OpPalettizerConfig
from mlopt.mil.dtypes import dtype_named
from mlopt.mil.targets import Target
from tests.docs.pages import PAGES, ROOT, text_of


def test_exit_codes_are_those_of_the_program():
    page = text_of("docs/guide/command-line.md")
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", page, flags=re.MULTILINE))
    assert [int(code) for code in rows] == [code.value for code in ExitCode]
    helped = dict(re.findall(r"^ +(\d+) +(.*)$", EXIT_CODES, flags=re.MULTILINE))
    assert rows.keys() == helped.keys()
    for code in ("0", "1", "2", "3", "4"):
        assert rows[code] == helped[code]


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page):
    makefile = text_of("Makefile")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page)):
        target = (ROOT / page).parent / link
        assert link.startswith("https://") or target.exists(), link


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) < 175


def test_the_table_of_targets_is_that_of_the_code():
    rows = re.findall(
        r"^\| (\d+) \| (\w+), (\w+) \| (\w+) \|$", text_of("docs/format.md"), flags=re.MULTILINE
    )
    assert rows == [(str(int(each)), each.ios, each.macos, each.opset) for each in Target]


def test_the_types_of_blobs_are_those_of_the_code():
    page = text_of("docs/format.md").partition("The type numbers differ")[2]
    numbers = re.findall(r"\b([a-z]+\d+) (\d+)", page.partition("\n\n")[0])
    assert len(numbers) > 12
    for name, number in numbers:
        if name != "fp8":  # which there are two of
            assert dtype_named(name).blob == int(number)


def test_the_table_of_options_has_the_defaults_of_the_code():
    page = text_of("docs/guide/coreml.md").partition("| option | default |")[2]
    table = page.partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, flags=re.MULTILINE)
    defaults = {field.name: field.default for field in attrs.fields(OpPalettizerConfig)}
    defaults["granularity"] = defaults["granularity"].value
    assert {name: ast.literal_eval(default) for name, default in rows} == defaults
    assert len(rows) == len(defaults)


def test_the_families_of_lint_rules_are_those_of_the_code():
    rows = re.findall(r"mlopt/coreml/lint/(rules_\w+)\.py", text_of("docs/extending/lint-rule.md"))
    files = sorted(path.stem for path in (ROOT / "mlopt" / "coreml" / "lint").glob("rules_*.py"))
    assert sorted(set(rows)) == files, "the table in docs/extending/lint-rule.md"
    run = text_of("mlopt/coreml/lint/run.py").partition("import (")[2].partition(")\n")[0]
    assert re.findall(r"rules_\w+", run) == files, "the imports in mlopt/coreml/lint/run.py"
