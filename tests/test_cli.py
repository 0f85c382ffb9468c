"""The command line: what it prints, writes and returns."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlopt
from mlopt.cli import app
from mlopt.cli.palettize import Granularity, LutDtype, Mode, OnIndivisible
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, config, palettize
from mlopt.coreml.inspection import package_bytes
from mlopt.mil.messages import Model_pb2
from mlopt.palette.value import quantized

ROOT = Path(mlopt.__file__).parents[1]
GROUPED = ("--granularity", "per_grouped_channel")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def environment(**changes):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}


def run(*arguments, **changes):
    """The command line as a process of its own, with nothing of a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "mlopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        env=environment(**changes),
    )


def json_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def model(tmp_path, digits):
    return Path(shutil.copytree(digits, tmp_path / "digits.mlpackage"))


@pytest.fixture
def newer(digits):
    return digits.with_name("digits-iOS18.mlpackage")


# --- inspect


def test_inspect_lists_every_weight(model):
    result = invoke("inspect", model)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "weight",
        "read",
        "by",
        "shape",
        "dtype",
        "bytes",
        "distinct",
        "zeros",
    ]
    (hidden,) = [line.split() for line in lines if line.startswith("hidden_weight")]
    assert hidden[1:4] == ["linear(linear_0_cast_fp16)", "128x1024", "float16"]
    assert lines[-1] == "8 weights, 302.6 kB. Target: iOS15."


def test_inspect_prints_json_and_nothing_else(model):
    inventory = json_of(invoke("inspect", model, "--json", "-"))
    assert inventory["target"] == "iOS15"
    assert inventory["totals"]["weights"] == len(inventory["rows"]) == 8
    assert inventory["totals"]["bytes"] == sum(row["nbytes"] for row in inventory["rows"])
    row = inventory["rows"][0]
    assert row["name"] == "conv1_weight_to_fp16"
    assert row["consumers"] == ["conv(op_16_cast_fp16)"]
    assert (row["shape"], row["dtype"], row["nbytes"]) == ([32, 1, 3, 3], "float16", 576)


def test_inspect_writes_json_beside_the_table(model, tmp_path):
    result = invoke("inspect", model, "--json", tmp_path / "rows.json")
    assert "conv1_weight_to_fp16" in result.stdout
    assert len(json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]) == 8


def test_inspect_filters_and_sorts(model):
    options = ("--filter", "linear", "--filter", "conv2*", "--min-size", 100, "--sort", "size")
    inventory = json_of(invoke("inspect", model, *options, "--json", "-"))
    names = [row["name"].removesuffix("_to_fp16") for row in inventory["rows"]]
    assert names == ["hidden_weight", "conv2_weight", "head_weight", "hidden_bias"]
    assert invoke("inspect", model, *options).stdout.splitlines()[-1] == (
        "4 of 8 weights, 301.8 kB of 302.6 kB. Target: iOS15."
    )


def test_inspect_without_statistics(model):
    result = invoke("inspect", model, "--no-stats")
    assert "distinct" not in result.stdout
    rows = json_of(invoke("inspect", model, "--no-stats", "--json", "-"))["rows"]
    assert {(row["distinct"], row["sparsity"]) for row in rows} == {(None, None)}
    refused = invoke("inspect", model, "--no-stats", "--sort", "distinct")
    assert refused.exit_code == 2
    assert "--no-stats" in refused.stderr


# --- palettize


def test_palettize_accounts_and_writes(model, tmp_path):
    result = invoke("palettize", model, "-o", tmp_path / "out", "--nbits", 4)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "hidden_weight_to_fp16" in result.stdout
    assert "Palettized 2 weights of 8" in result.stdout
    assert "raised from iOS15 to iOS16" in result.stdout
    out = tmp_path / "out.mlpackage"
    assert result.stdout.splitlines()[-1].endswith(f"times smaller: {out}")
    assert package_bytes(out) < package_bytes(model) / 3


CONFIGURATIONS = {
    "kmeans": ("--nbits", 4),
    "low threshold": ("--nbits", 6, "--weight-threshold", 100),
    "uniform": ("--nbits", 8, "--mode", "UNIFORM"),
    "three bits": ("--nbits", 3),
    "groups": ("--nbits", 4, *GROUPED, "--group-size", 16),
    "groups of the other axis": ("--nbits", 2, *GROUPED, "--group-size", 4, "--channel-axis", 1),
    "indivisible": (
        *("--nbits", 4, *GROUPED, "--group-size", 24, "--weight-threshold", 100),
        *("--on-indivisible", "divisor"),
    ),
    "vectors": ("--nbits", 4, "--cluster-dim", 2),
    "scale": ("--nbits", 4, "--per-channel-scale"),
    "8-bit tables": ("--nbits", 4, *GROUPED, "--group-size", 16, "--lut-dtype", "int8"),
    "all at once": (
        *("--nbits", 2, *GROUPED, "--group-size", 16, "--cluster-dim", 2, "--per-channel-scale"),
        *("--skip", "conv2*", "--skip-type", "lin*r", "--skip-type", "gru"),
        *("--weight-threshold", 0),
    ),
}


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_dry_run_knows_what_the_run_does(newer, tmp_path, options):
    compare_dry_run(newer, tmp_path, options)


def test_a_dry_run_counts_distinct_values(newer, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few-values")
    options = ("--nbits", 3, "--skip", "conv2*")
    assert invoke("palettize", newer, "-o", folder / "small", *options).exit_code == 0
    few = folder / "few.mlpackage"
    assert invoke("decompress", folder / "small.mlpackage", "-o", few).exit_code == 0
    compare_dry_run(few, tmp_path, ("--mode", "unique"))


def compare_dry_run(package, tmp_path, options):
    report = tmp_path / "report.json"
    dry = invoke("palettize", package, *options, "--dry-run", "--report", "-")
    assert list(tmp_path.iterdir()) == []
    result = invoke("palettize", package, *options, "-o", tmp_path / "out", "--report", report)
    assert dry.exit_code == result.exit_code == 0, result.output
    expected, done = json.loads(dry.stdout), json.loads(report.read_text("utf-8"))
    for row in [*expected["rows"], *done["rows"]]:
        del row["snr_db"], row["lossless"]
    assert expected == done
    assert done["totals"]["palettized"] > 0


def test_a_dry_run_says_so(model, tmp_path):
    result = invoke("palettize", model, "--nbits", 4, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        "Dry run: nothing was clustered, and nothing was written."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["digits.mlpackage"]


def test_options_mean_what_the_library_means(newer, tmp_path):
    op_config = OpPalettizerConfig(
        mode="kmeans",
        nbits=2,
        granularity="per_grouped_channel",
        group_size=16,
        channel_axis=0,
        cluster_dim=2,
        enable_per_channel_scale=True,
        weight_threshold=100,
        on_indivisible="per_tensor",
        lut_dtype="uint8",
    )
    configuration = OptimizationConfig(op_config, {"conv": None}, {"head*": None})
    report = palettize(newer, configuration, output=tmp_path / "expected").report
    options = (
        *("--mode", "kmeans", "--nbits", 2, *GROUPED, "--group-size", 16, "--channel-axis", 0),
        *("--cluster-dim", 2, "--per-channel-scale", "--weight-threshold", 100),
        *("--on-indivisible", "per_tensor", "--skip-type", "conv", "--skip", "head*"),
        *("--lut-dtype", "uint8"),
    )
    done = json_of(invoke("palettize", newer, "-o", tmp_path / "done", *options, "--report", "-"))
    assert done == json.loads(report.to_json())

    configuration.to_yaml(tmp_path / "config.yaml")
    from_file = ("--config", tmp_path / "config.yaml", "--report", "-")
    assert done == json_of(invoke("palettize", newer, "-o", tmp_path / "yaml", *from_file))


def test_choices_are_those_of_the_library():
    assert {mode.value for mode in Mode} | {"custom"} == set(config.MODES)
    assert [str(member) for member in config.Granularity] == [g.value for g in Granularity]
    assert [choice.value for choice in OnIndivisible] == list(config.ON_INDIVISIBLE)
    assert [choice.value for choice in LutDtype] == list(quantized.LUT_DTYPES)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_bytes(newer, tmp_path, workers):
    for name, count in (("one", 1), ("other", workers)):
        assert not invoke(
            *("palettize", newer, "-o", tmp_path / name, "--nbits", 4, "--workers", count)
        ).exit_code
    weights = [next((tmp_path / f"{n}.mlpackage").rglob("weight.bin")) for n in ("one", "other")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_quiet_prints_nothing(model, tmp_path):
    out = tmp_path / "out.mlpackage"
    result = invoke("palettize", model, "-o", out, "--nbits", 4, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    result = invoke("decompress", out, "-o", tmp_path / "plain", "-q")
    assert (result.exit_code, result.output) == (0, "")
    result = invoke("inspect", out, "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_an_output_is_replaced_only_when_told_to(model, tmp_path):
    before = package_bytes(model)
    result = invoke("palettize", model, "-o", model, "--nbits", 4)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert package_bytes(model) == before
    result = invoke("palettize", model, "-o", model, "--nbits", 4, "--overwrite")
    assert result.exit_code == 0
    assert "3.60 times smaller" in result.stdout
    assert package_bytes(model) < before / 3


def test_decompress_gives_plain_weights_back(model, tmp_path):
    small, plain = tmp_path / "small.mlpackage", tmp_path / "plain.mlpackage"
    assert invoke("palettize", model, "-o", small, "--nbits", 2).exit_code == 0
    result = invoke("decompress", small, "-o", plain)
    assert result.exit_code == 0
    assert "times larger" in result.stdout
    rows = json_of(invoke("inspect", plain, "--json", "-"))["rows"]
    distinct = {row["name"]: row["distinct"] for row in rows if row["size"] > 2048}
    assert distinct == {"conv2_weight_to_fp16": 4, "hidden_weight_to_fp16": 4}
    assert invoke("decompress", small, "-o", plain).exit_code == 2


# --- exit codes


def truncate_weights(package):
    file = next(package.rglob("weight.bin"))
    file.write_bytes(file.read_bytes()[:1000])


REFUSALS = [
    (2, "nbits must be one of 1, 2, 3, 4, 6, 8, got 5", ("--nbits", 5)),
    (2, "nbits is required", ()),
    (2, "'--nbits'", ("--nbits", "four")),
    (2, "'--mode'", ("--nbits", 4, "--mode", "custom")),
    (2, "'--group-size': it concerns groups", ("--nbits", 4, "--group-size", 8)),
    (2, "unknown deployment target 'iOS19'", ("--minimum-deployment-target", "iOS19")),
    (2, "did you mean 'head_weight_to_fp16'", ("--nbits", 4, "--skip", "haed_weight", "--strict")),
    (2, "'unique' stores the distinct values exactly", ("--mode", "unique", "--lut-dtype", "int8")),
    (3, "minimum_deployment_target=iOS18", ("--nbits", 3)),
    (3, "Use lut_dtype=None", ("--nbits", 4, "--lut-dtype", "uint8")),
    (3, "2 requests", ("--nbits", 4, *GROUPED, "--minimum-deployment-target", "macos13")),
]


@pytest.mark.parametrize(("code", "message", "options"), REFUSALS)
def test_refusals_have_a_code_and_a_message(model, tmp_path, code, message, options):
    result = invoke("palettize", model, "-o", tmp_path / "out", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["digits.mlpackage"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "name the package to write"),
        ("no/such/out", "does not exist; create it first"),
        ("out.zip", "has to end in .mlpackage"),
        ("digits", "exists already"),
    ],
)
def test_wrong_outputs_are_refused(model, tmp_path, output, message):
    options = () if output is None else ("-o", tmp_path / output, "--nbits", 4)
    result = invoke("palettize", model, *options, *(() if options else ("--nbits", 4)))
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("global_config: {nbitz: 4}", "did you mean 'nbits'"),
        ("global_config: [4", "not readable as YAML"),
        ("nbits: 4", "put it under 'global_config'"),
        (None, "does not exist"),
    ],
)
def test_wrong_configuration_files_are_refused(model, tmp_path, content, message):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    result = invoke("palettize", model, "--dry-run", "--config", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "config.yaml" in result.stderr


def test_a_file_and_options_contradict_each_other(model, tmp_path):
    (tmp_path / "config.yaml").write_text("global_config: {nbits: 4}")
    config_file = ("--config", tmp_path / "config.yaml")
    assert invoke("palettize", model, "--dry-run", *config_file).exit_code == 0
    options = ("--nbits", 4, "--per-channel-scale", "--skip", "head*")
    result = invoke("palettize", model, "--dry-run", *config_file, *options)
    assert result.exit_code == 2
    assert "got --nbits, --per-channel-scale, --skip beside it" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "palettize", "decompress"])
def test_models_that_cannot_be_read_have_a_code(model, tmp_path, command):
    options = {"inspect": (), "palettize": ("-o", tmp_path / "out", "--nbits", 4)}
    options = options.get(command, ("-o", tmp_path / "out"))
    missing = invoke(command, tmp_path / "missing.mlpackage", *options)
    assert missing.exit_code == 4
    assert "missing.mlpackage" in missing.stderr
    truncate_weights(model)
    damaged = invoke(command, model, *options)
    assert (damaged.exit_code, damaged.stdout) == (4, "")
    assert "weight.bin" in damaged.stderr
    assert not (tmp_path / "out.mlpackage").exists()


def test_nothing_palettized_has_a_code(model, tmp_path):
    options = ("--nbits", 4, "--weight-threshold", 1_000_000)
    for target in (("--dry-run",), ("-o", tmp_path / "out")):
        result = invoke("palettize", model, *options, *target)
        assert result.exit_code == 5
        assert "Nothing was palettized" in result.stderr


def test_a_report_that_cannot_be_written_is_refused_at_once(model, tmp_path):
    options = ("--nbits", 4, "-o", tmp_path / "out")
    for wrong in (tmp_path / "no" / "report.json", tmp_path):
        result = invoke("palettize", model, *options, "--report", wrong)
        assert result.exit_code == 2
        assert "'--report'" in result.stderr
    assert not (tmp_path / "out.mlpackage").exists()


def test_other_failures_are_one_message(model, monkeypatch):
    def fail(error):
        def raising(*args, **kwargs):
            raise error

        monkeypatch.setattr("mlopt.coreml.inspection.inspect_weights", raising)
        return invoke("inspect", model)

    full = fail(OSError(28, "No space left on device"))
    assert (full.exit_code, full.stderr) == (1, "Error: [Errno 28] No space left on device\n")
    fault = fail(ZeroDivisionError("oh"))
    assert fault.exit_code == 1
    assert fault.stderr.startswith("Error: unexpected ZeroDivisionError: oh\n")
    monkeypatch.setenv("MLOPT_TRACEBACK", "1")
    assert "Traceback" in fail(ZeroDivisionError("oh")).stderr


def test_help_lists_commands_and_codes():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Exit codes:\n    0    done\n" in result.stdout
    for command in ("inspect", "palettize", "decompress"):
        assert f"\n  {command} " in result.stdout
        assert "Exit codes:" in invoke(command, "-h").stdout
    assert invoke("--version").stdout == f"mlopt {mlopt.__version__}\n"


# --- as a process


def test_a_process_prints_no_warnings_and_loads_no_coremltools(model, tmp_path):
    result = run("palettize", model, "-o", tmp_path / "out", "--nbits", 4)
    assert (result.returncode, result.stderr) == (0, "")
    code = (
        "import sys; from mlopt.cli import app\n"
        f"app(['palettize', {str(model)!r}, '--nbits', '4', '-q', '-o', {str(tmp_path / 'b')!r}],\n"
        "    standalone_mode=False)\n"
        "print([m for m in ('coremltools', 'torch') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert (loaded.stdout, loaded.stderr) == ("[]\n", "")


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
