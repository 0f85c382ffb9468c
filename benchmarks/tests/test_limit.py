"""The limit does the whole work of a row, from the source's bytes; our time is divided by its."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lib import known_output, limit, perform
from benchmarks.lib.job_table import print_jobs
from benchmarks.lib.limit_lines import add_times_over_limit, check_limits
from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.row import LIMIT, PROJECT, REFERENCE, Row, Variant

OURS, LEAST = Variant(PROJECT, "files", streaming=True), Variant(LIMIT)
SKIP = {"on_indivisible": "skip"}


def row_of(settings: dict[str, Any], name: str = "tiny", action: str = "palettize") -> Row:
    return Row(name, "", "", action, settings, (Variant(REFERENCE), OURS, LEAST))


def bytes_of(package: Path) -> dict[str, bytes]:
    files = (path for path in package.rglob("*") if path.is_file())
    return {str(path.relative_to(package)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two layers of 56 and 30 channels with biases, in both float formats."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 40))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        rng = np.random.default_rng(0)
        for outputs, inputs in ((56, 40), (30, 56)):
            weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
            weight[3] *= 20
            bias = rng.standard_normal(outputs).astype(np.float32)
            x = mb.linear(x=x, weight=weight, bias=bias)
        return x

    folder = tmp_path_factory.mktemp("sources")
    for name in ("FLOAT16", "FLOAT32"):
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=getattr(ct.precision, name),
            skip_model_load=True,
        )
        model.save(str(folder / f"{name}.mlpackage"))
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["FLOAT16", "FLOAT32"])
@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "kmeans", "nbits": 4},
        {"mode": "kmeans", "nbits": 3, "weight_threshold": 2000},
        {"mode": "uniform", "nbits": 8},
        {"mode": "kmeans", "nbits": 4, "enable_per_channel_scale": True},
        {"mode": "kmeans", "nbits": 2, "granularity": "per_grouped_channel", "group_size": 5}
        | {"on_indivisible": "divisor"},
        {"mode": "kmeans", "nbits": 6, "granularity": "per_grouped_channel", "group_size": 7}
        | SKIP,
    ],
    ids=lambda settings: f"{settings['mode']}{settings['nbits']}",
)
def test_the_limit_makes_our_output(
    precision: str,
    settings: dict[str, Any],
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_output, "_STEP", 300)
    monkeypatch.setattr(known_output, "_BYTES", 1000)
    source = sources[precision]
    row = row_of({"weight_threshold": 0, **settings}, f"{precision} {settings}")
    ours, least = tmp_path / "ours.mlpackage", tmp_path / "least.mlpackage"
    perform.perform(row, OURS, perform.import_tool(OURS), source, ours)
    prepared = limit.open_source(row, LEAST, str(source))
    limit.perform(row, LEAST, limit.import_tool(LEAST), prepared, least)
    assert bytes_of(least) == bytes_of(ours)


def test_labels_and_unchanged_weights_come_from_the_source(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source, output = tmp_path / "source.mlpackage", tmp_path / "ours.mlpackage"
    shutil.copytree(sources["FLOAT16"], source)
    row = row_of({"mode": "kmeans", "nbits": 8, "weight_threshold": 2000})
    perform.perform(row, OURS, perform.import_tool(OURS), source, output)
    known = known_output.known_output(source, output)
    (labelled,) = (p for p in known.pieces if isinstance(p, known_output.Labelled))
    copied = max(
        (p for p in known.pieces if isinstance(p, known_output.Copied)), key=lambda p: p.nbytes
    )
    assert (labelled.shape, copied.nbytes) == ((56, 40), 2 * 30 * 56)

    weights = np.fromfile(known.source_weights, np.uint8)
    original = weights[labelled.start : labelled.start + 2 * 56 * 40].view(np.float16)
    original[:] = original[::-1].copy()
    weights[copied.start : copied.start + copied.nbytes] = 7
    weights.tofile(known.source_weights)
    known.write(tmp_path / "made.mlpackage", threads=2)

    before, made = (
        np.fromfile(path / known.inner_weights, np.uint8)
        for path in (output, tmp_path / "made.mlpackage")
    )
    indices = slice(labelled.place, labelled.place + labelled.nbytes)
    assert (made[indices] == before[indices][::-1]).all()
    assert (made[copied.place : copied.place + copied.nbytes] == 7).all()


def test_what_the_limit_cannot_make_is_an_error(sources: dict[str, Path]) -> None:
    grouped = {"granularity": "per_grouped_channel", "group_size": 8, "channel_axis": 1}
    row = row_of({"mode": "kmeans", "nbits": 2, "weight_threshold": 0, **grouped}, "other axis")
    with pytest.raises(NotImplementedError, match="tables"):
        limit.open_source(row, LEAST, str(sources["FLOAT16"]))


def test_limits_of_jobs_that_cluster_nothing(sources: dict[str, Path], tmp_path: Path) -> None:
    source, output = sources["FLOAT16"], tmp_path / "made.mlpackage"
    limit.open_source(row_of({}, action="metadata"), LEAST, str(source))(output)
    assert not output.exists()
    limit.open_source(row_of({}, action="unchanged"), LEAST, str(source))(output)
    assert bytes_of(output) == bytes_of(source)


def test_each_of_our_lines_is_divided_by_the_limit_of_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = (
        Variant(PROJECT, "skip", SKIP),
        Variant(PROJECT, "divisor"),
        Variant(PROJECT, "divisor, files", streaming=True),
        Variant(LIMIT, "skip", SKIP),
        Variant(LIMIT, "divisor"),
    )
    row = Row("tiny", "", "", "palettize", {}, (Variant(REFERENCE), *variants))
    contents = [b"skip", b"whole", b"whole", b"skip", b"part"]
    lines: dict[str, dict[str, Any]] = {}
    for variant, content, median in zip(variants, contents, (3.0, 8.0, 6.0, 1.5, 0.5), strict=True):
        (tmp_path / variant.name).mkdir()
        (tmp_path / variant.name / "weight.bin").write_bytes(content)
        lines[variant.name] = {
            "output": str(tmp_path / variant.name),
            "median_wall_s": median,
            "median_cpu_s": median,
            "spread_wall_s": [median, median],
        }
    add_times_over_limit(row, lines)
    over = {name: line.get("times_over_limit") for name, line in lines.items()}
    assert list(over.values()) == [2.0, 16.0, 12.0, None, None]

    result = {"name": "tiny", "title": "", "goal": 5, "variants": lines}
    assert print_jobs("Jobs", [result], ("error <=",), lambda line: ("-",)) == 0
    printed = capsys.readouterr().out
    assert "x limit" in printed
    assert "12x" in printed
    assert not any(empty in printed for empty in ("faster", "peak MB", "error <="))

    check_limits(row, lines)
    assert "error" not in lines["limit skip"]
    assert "differs from that of mlopt divisor" in lines["limit divisor"]["error"]
    for line in lines.values():
        line.pop("times_over_limit", None)
    add_times_over_limit(row, lines)
    assert "times_over_limit" in lines["mlopt skip"]
    assert "times_over_limit" not in lines["mlopt divisor"]
    assert print_jobs("Jobs", [result], (), lambda line: ()) == 1
