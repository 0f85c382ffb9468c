"""``mlopt palettize``."""

import json
from typing import get_args

import numpy as np
import pytest

from mlopt.choices import GranularityName, Mode, TableMode
from mlopt.coreml import Granularity, OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.coreml.inspection import package_bytes
from tests.cli.commands import GROUPED, invoke, json_of


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


def test_help_has_the_choices_and_defaults_of_the_library():
    assert get_args(GranularityName) == tuple(map(str, Granularity))
    assert {*get_args(TableMode), "custom"} == set(get_args(Mode))
    helped = " ".join(invoke("palettize", "--help").stdout.split())
    default = OpPalettizerConfig(nbits=4)
    assert f"({default.mode}, the default)" in helped
    assert f"({default.granularity}, the default)" in helped
    assert f"({default.on_indivisible}, the default)" in helped
    assert f"Channels per group. Default: {default.group_size}." in helped
    assert f"stands for. Default: {default.cluster_dim}." in helped
    assert f"more than N elements. Default: {default.weight_threshold}." in helped


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


@pytest.fixture
def calibrated(digits, tmp_path):
    """Samples of digits, and the calibration that was made with them."""
    images = np.random.default_rng(0).uniform(size=(6, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images)
    output = tmp_path / "digits.calibration"
    result = invoke("calibrate", digits, "--data", tmp_path / "data.npz", "-o", output, "-q")
    assert result.exit_code == 0, result.output
    return tmp_path / "data.npz", output


def test_in_sequence_on_samples(digits, calibrated, tmp_path):
    data, calibration = calibrated
    options = ("--nbits", 2, "--weight-threshold", 100, "--calibration", calibration)
    reports = []
    for name, more in (("all", ()), ("few", ("--samples", 2))):
        output, report = tmp_path / f"{name}.mlpackage", tmp_path / f"{name}.json"
        given = (*options, "--data", data, *more, "-o", output, "--report", report)
        result = invoke("palettize", digits, *given)
        assert result.exit_code == 0, result.output
        reports.append(json.loads(report.read_text())["rows"])
    for rows in reports:
        assert {row["method"] for row in rows if row["method"]} == {"sequential"}
    assert reports[0] != reports[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "data.npz"), "also give the --calibration"),
        (("--samples", 3), "it counts samples of --data"),
        (("--data", "missing.npz", "--calibration", "digits.calibration"), "does not exist"),
    ],
)
def test_samples_that_are_no_use(digits, calibrated, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("palettize", digits, "--nbits", 2, *options, "-o", "out.mlpackage")
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out.mlpackage").exists()
