"""The README's code runs as it is written, and what it says of names and numbers holds."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlopt.cli.outcome import EXIT_CODES, ExitCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def packages(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.mlpackage")}


@pytest.fixture
def folder(tmp_path, monkeypatch, digits):
    shutil.copytree(digits, tmp_path / "digits.mlpackage")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# coremltools leaves a temporary folder for the garbage collector to remove
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_python_blocks_run_in_order(folder, capsys):
    sources = blocks("python")
    assert len(sources) == 9
    for index, source in enumerate(sources):
        exec(compile(source, f"README, python block {index}", "exec"), {"__name__": "readme"})
    assert packages(folder) == {"digits", "digits-4bit", "digits-mixed", "network"}
    printed = capsys.readouterr().out
    assert "groups of 16 instead" in printed
    assert "Use nbits=4, or minimum_deployment_target=iOS18" in printed
    assert "hidden_weight_to_fp16 (128, 1024) palettized, 4 bits, 8 tables" in printed
    assert "hidden_weight_to_fp16_sparsified" in printed


def test_commands_run_in_order(folder):
    (rules,) = blocks("yaml")
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("mlopt ")]
    assert len(commands) == 10
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        result = subprocess.run(
            [sys.executable, "-m", "mlopt", *arguments],
            check=True,
            timeout=120,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert result.stderr == b""
    small, rules, plain = "digits-small", "digits-rules", "digits-plain"
    assert packages(folder) == {"digits", small, rules, plain, "digits-18"}
    assert packages(folder / "small") == {"digits", "digits-18"}
    assert (folder / "report.json").is_file()


def test_exit_codes_are_those_of_the_program():
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", README, flags=re.MULTILINE))
    assert [int(code) for code in rows] == [code.value for code in ExitCode]
    helped = dict(re.findall(r"^ +(\d+) +(.*)$", EXIT_CODES, flags=re.MULTILINE))
    assert rows.keys() == helped.keys()
    for code in ("0", "1", "2", "3", "4"):
        assert rows[code] == helped[code]


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert named >= {"demo", "test", "bench"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
