"""The README's quickstart runs as it is written."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, digits):
    shutil.copytree(digits, tmp_path / "digits.mlpackage")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run_in_order(folder, capsys):
    sources = blocks("python")
    assert len(sources) == 3
    for index, source in enumerate(sources):
        exec(compile(source, f"README, python block {index}", "exec"), {"__name__": "readme"})
    assert (folder / "digits-4bit.mlpackage").is_dir()
    assert (folder / "digits-mixed.mlpackage").is_dir()
    assert "palettized" in capsys.readouterr().out


def test_commands_run_in_order(folder):
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("mlopt ")]
    assert len(commands) == 3
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        program = "import sys; from mlopt.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    assert (folder / "digits-plain.mlpackage").is_dir()


def test_targets_of_make_exist():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert named >= {"demo", "test", "lint"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
