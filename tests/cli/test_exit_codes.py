"""Exit codes, and errors as one block of text."""

import pytest

from tests.cli.commands import GROUPED, invoke


def truncate_weights(package):
    file = next(package.rglob("weight.bin"))
    file.write_bytes(file.read_bytes()[:1000])


REFUSALS = [
    (2, "nbits must be one of 1, 2, 3, 4, 6, 8, got 5", ("--nbits", 5)),
    (2, "nbits is required", ()),
    (2, "'--nbits'", ("--nbits", "four")),
    (2, "'--mode'", ("--nbits", 4, "--mode", "custom")),
    (2, "'--group-size': it applies to groups", ("--nbits", 4, "--group-size", 8)),
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
        ("out.zip", "must end in .mlpackage"),
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
    assert "got --nbits, --per-channel-scale, --skip as well" in result.stderr


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
