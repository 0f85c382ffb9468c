"""The command line as a process."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mlopt
from mlopt.mil.messages import Model_pb2
from mlopt.planning import save_recipe
from tests.cli.commands import environment, invoke, run
from tests.planning.recipes import recipe_of


def test_help_lists_commands_and_codes():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Exit codes:\n    0    done\n" in result.stdout
    for command in ("inspect", "palettize", "decompress"):
        assert f"\n  {command} " in result.stdout
        assert "Exit codes:" in invoke(command, "-h").stdout
    assert invoke("--version").stdout == f"mlopt {mlopt.__version__}\n"


def loaded_by(calls, modules):
    """Which of the modules a process has loaded after calls of the command line."""
    code = (
        "import sys; from mlopt.cli import app\n"
        f"for call in {[[*map(str, call)] for call in calls]}:\n"
        "    app(call, standalone_mode=False)\n"
        f"sys.exit(repr([m for m in {modules} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    return done.stderr.strip()


def test_commands_that_only_look_load_no_numba(model):
    calls = [("--help",), ("compare", "--help"), ("inspect", model), ("lint", model)]
    assert loaded_by(calls, ["numba", "coremltools", "torch"]) == "[]"


@pytest.mark.long
def test_a_process_prints_no_warnings_and_loads_no_coremltools(model, tmp_path):
    result = run("palettize", model, "-o", tmp_path / "out", "--nbits", 4)
    assert (result.returncode, result.stderr) == (0, "")
    save_recipe(recipe_of(model, (4,)), tmp_path / "recipe.yaml")
    calls = [
        ("palettize", model, "--nbits", "4", "-q", "-o", tmp_path / "b"),
        ("palettize", model, "--recipe", tmp_path / "recipe.yaml", "-q", "-o", tmp_path / "c"),
        ("inspect", model, "--report", tmp_path / "page.html", "-q"),
    ]
    assert loaded_by(calls, ["coremltools", "torch"]) == "[]"


def test_a_process_returns_the_code(model):
    result = run("palettize", model, "--nbits", 3, "--dry-run")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("Error: 2 requests cannot be expressed")
    assert run("inspect", model, "--no-such-option").returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_process_leaves_everything_as_it_was(model, tmp_path, number, code):
    earlier = Path(shutil.copytree(model, tmp_path / "out.mlpackage"))
    before = sorted(path.stat().st_mtime_ns for path in earlier.rglob("*"))
    # Held up where the new package is almost complete beside its destination.
    program = (
        "import signal, time\n"
        # A runner of tests may ignore the signal, and its children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mlopt.mil.writer import PackageWriter\n"
        "def commit(writer):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "PackageWriter._commit = commit\n"
        "from mlopt.cli import main\n"
        "main()\n"
    )
    arguments = ["palettize", model, "-o", earlier, "--nbits", "4", "--overwrite"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 3
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest) == (code, "")
    assert errors == ("Interrupted.\n" if number == signal.SIGINT else "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name, "out.mlpackage"]
    assert sorted(path.stat().st_mtime_ns for path in earlier.rglob("*")) == before


def rename_everywhere(package, old, new):
    file = next(package.rglob("model.mlmodel"))
    spec = Model_pb2.Model.FromString(file.read_bytes())
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            for output in operation.outputs:
                output.name = output.name.replace(old, new)
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    binding.name = binding.name.replace(old, new)
            names = operation.attributes["name"].immediateValue.tensor.strings.values
            names[:] = [name.replace(old, new) for name in names]
    file.write_bytes(spec.SerializeToString())


@pytest.mark.long
def test_any_name_can_be_shown_anywhere(model, tmp_path):
    rename_everywhere(model, "conv1_weight", "重み[/b]")
    model = model.rename(tmp_path / "modèle 模型.mlpackage")

    result = run("inspect", model, PYTHONUTF8="1")
    assert result.returncode == 0
    assert "重み[/b]_to_fp16" in result.stdout
    western = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "TERM": "dumb", "PYTHONUTF8": "0"}
    options = ("--nbits", 4, "--weight-threshold", 100, "-o", tmp_path / "出力")
    for arguments in (("inspect", model), ("palettize", model, *options)):
        result = run(*arguments, **western)
        assert (result.returncode, result.stderr) == (0, "")
        assert r"\u91cd\u307f[/b]_to_fp16" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently there")
def test_a_reader_that_stops_early_sees_no_traceback(model):
    with subprocess.Popen(
        [sys.executable, "-m", "mlopt", "inspect", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="needs script of util-linux")
@pytest.mark.skipif(shutil.which("script") is None, reason="script is not installed")
@pytest.mark.long
def test_a_terminal_gets_a_progress_bar(model, tmp_path):
    command = f"{sys.executable} -m mlopt palettize {model} -o {tmp_path / 'out'} --nbits 4"
    result = subprocess.run(
        ["script", "-qec", command, os.devnull],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment(TERM="xterm", COLUMNS="200"),
    )
    assert re.search(r"Palettizing.*%", result.stdout)
