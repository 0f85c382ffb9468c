"""The code on the pages runs as it is written."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlopt.cli import app
from mlopt.coreml.lint import RULES
from mlopt.runtime import registry
from mlopt.torch import adapters
from tests.docs.pages import PAGES, blocks

TUTORIAL = "docs/tutorials/dkm.md"  # parts of a script, see test_dkm_tutorial

PYTHON = [page for page in PAGES if page != TUTORIAL and blocks(page, "python")]
SHELL = [page for page in PAGES if "\nmlopt " in "\n".join(["", *blocks(page, "sh")])]

PRINTED = {
    "docs/guide/coreml.md": (
        "groups of 16 instead",
        "Use nbits=4, or minimum_deployment_target=iOS18",
        "hidden_weight_to_fp16 (128, 1024) palettized, 4 bits, 8 tables",
        "hidden_weight_to_fp16_sparsified",
    ),
    "docs/guide/reports.md": ("2.00 bits per weight",),
    "docs/guide/running.md": ("(1, 10)", "logits", "top-5 agreement", "accuracy", "margin"),
    "docs/guide/pytorch.md": ("palettized", "2.weight hessian"),
    "docs/guide/lint.md": ("Target: iOS15",),
}
"""What pages say, or what readers should see, of what their code prints."""

WRITTEN = {
    "README.md": {"digits", "digits-4bit", "network"},
    "docs/guide/coreml.md": {"digits", "digits-4bit", "digits-mixed"},
    "docs/guide/pytorch.md": {"digits", "network"},
}
"""The packages in the folder after the code of a page."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Path) -> Iterator[Path]:
    """The folder that the pages are about; what their code registers is gone afterwards."""
    shutil.copytree(digits, tmp_path / "digits.mlpackage")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapters, "_registered", {})
    operations = {op_type: dict(by_opset) for op_type, by_opset in registry._REGISTRY.items()}
    monkeypatch.setattr(registry, "_REGISTRY", operations)
    rules = dict(RULES)
    yield tmp_path
    RULES.clear()
    RULES.update(rules)


def packages(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.mlpackage")}


# coremltools leaves a temporary folder for the garbage collector to remove
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize("page", PYTHON)
def test_python_runs_in_order(page, folder, capsys):
    scope = {"__name__": "page"}
    for index, source in enumerate(blocks(page, "python")):
        exec(compile(source, f"{page}, python block {index}", "exec"), scope)
    printed = capsys.readouterr().out
    for words in PRINTED.get(page, ()):
        assert words in printed
    assert packages(folder) == WRITTEN.get(page, packages(folder))


@pytest.mark.parametrize("page", SHELL)
def test_commands_run_in_order(page, folder):
    for rules in blocks(page, "yaml"):
        (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for line in lines:
        if line.startswith("mlopt "):
            result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert (result.exit_code, result.stderr) == (0, ""), line
    if page == "docs/guide/command-line.md":
        small, rules, plain = "digits-small", "digits-rules", "digits-plain"
        assert packages(folder) == {"digits", small, rules, plain, "digits-18"}
        assert packages(folder / "small") == {"digits", "digits-18"}
        assert (folder / "report.json").is_file()
