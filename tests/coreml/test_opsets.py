"""Models whose specification version is not that of their functions' opsets.

coremltools reads every function by the version, Core ML by the opset: what is written has to be
right for both.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import (
    OpPalettizerConfig,
    decompress,
    lint,
    palettize,
    preview,
    raise_target,
)
from mlopt.coreml.decompress import decompress_weights
from mlopt.mil.messages import Model
from mlopt.mil.opening import open_package
from tests import judges
from tests.coreml.conftest import by_name, converted, global_config, saved

MODEL = "Data/com.apple.CoreML/model.mlmodel"
FORMS: dict[str, dict[str, Any]] = {
    "per tensor": {"nbits": 4},
    "unique": {"mode": "unique"},
    "three bits": {"nbits": 3},
    "groups": {"nbits": 2, "granularity": "per_grouped_channel", "group_size": 8},
    "scale": {"nbits": 4, "enable_per_channel_scale": True},
    "vectors": {"nbits": 2, "cluster_dim": 2},
}


@functools.cache
def template(target: str) -> Path:
    """A linear layer of 16 distinct values and an operation that the opsets define anew."""
    grid = np.random.default_rng(3).integers(-8, 8, (64, 64)) / 16

    def body(x: Any) -> Any:
        x = mb.linear(x=x, weight=mb.const(val=grid.astype(np.float16), name="w"))
        return mb.gather(x=x, indices=np.int32([3, 1, 2]), axis=1)

    folder = Path(tempfile.mkdtemp())
    return saved(converted(body, (1, 64), target), folder / f"{target}.mlpackage")


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    spec = Model.FromString((path / MODEL).read_bytes())
    change(spec)
    (path / MODEL).write_bytes(spec.SerializeToString())
    return path


def of_version(folder: Path, opset_target: str, version: int) -> Path:
    path = Path(shutil.copytree(template(opset_target), folder / "source.mlpackage"))
    return edited(path, lambda spec: setattr(spec, "specificationVersion", version))


def versions(path: Any) -> tuple[int, dict[str, str]]:
    spec, _ = judges.spec_and_weights(Path(path))
    return spec.specificationVersion, {
        name: function.opset for name, function in spec.mlProgram.functions.items()
    }


def check_judged(path: Path, folder: Path) -> None:
    """Both read the same values, and coremltools decompresses them as mlopt does."""
    found = judges.decompressed_constants(path)
    plain = decompress(path, folder / "plain.mlpackage")
    again = judges.decompressed_constants(plain.path)
    assert plain.weights
    for weight in plain.weights:
        for prefix in ("", *(f"{name}/" for name in weight.functions)):
            if prefix + weight.name in found:
                np.testing.assert_array_equal(
                    found[prefix + weight.name], again[prefix + weight.name]
                )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("opset_target", "version"), [("iOS15", 9), ("iOS17", 9), ("iOS16", 10), ("iOS17", 10)]
)
def test_a_version_newer_than_the_opset(
    tmp_path: Path, opset_target: str, version: int, form: str
) -> None:
    source = of_version(tmp_path, opset_target, version)
    config = global_config(**FORMS[form])
    result = palettize(source, config, output=tmp_path / "out.mlpackage")
    assert versions(result.path) == (version, {"main": f"CoreML{version - 1}"})
    (row,) = result.report.palettized
    assert row.bytes_after == preview(source, config).palettized[0].bytes_after
    check_judged(result.path, tmp_path)
    (note,) = result.report.notes
    assert f"'main' of CoreML{int(opset_target[3:]) - 10}" in note


@pytest.mark.parametrize("target", ["iOS16", "iOS18", "iOS26"])
def test_the_target_that_is_asked_for(tmp_path: Path, target: str) -> None:
    source = of_version(tmp_path, "iOS17", 9)
    result = palettize(
        source,
        global_config(nbits=4),
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target=target,
    )
    assert versions(result.path) == (9, {"main": "CoreML8"})
    raised = raise_target(source, tmp_path / "raised.mlpackage", "iOS26")
    assert versions(raised) == (10, {"main": "CoreML9"})
    judges.load_program(raised)
    same = raise_target(source, tmp_path / "same.mlpackage", "iOS18")
    assert versions(same) == (9, {"main": "CoreML8"})
    judges.load_program(same)


def test_nothing_to_palettize_raises_nothing(tmp_path: Path) -> None:
    source = of_version(tmp_path, "iOS17", 9)
    config = global_config(nbits=4, weight_threshold=1 << 20)
    result = palettize(source, config, output=tmp_path / "out.mlpackage")
    assert versions(result.path) == versions(source)
    assert result.report.notes == ()


@pytest.mark.parametrize("version", [6, 7, 8])
def test_a_version_older_than_the_opset(tmp_path: Path, version: int) -> None:
    """Whatever is written has a version that knows its operations."""
    source = of_version(tmp_path, "iOS18", version)
    out = tmp_path / "out.mlpackage"
    for form in ("per tensor", "scale"):
        result = palettize(source, global_config(**FORMS[form]), output=out)
        assert versions(result.path) == (9, {"main": "CoreML8"})
        check_judged(result.path, tmp_path)
    assert versions(raise_target(source, out, "iOS18")) == (9, {"main": "CoreML8"})
    assert versions(decompress(source, out)) == (9, {"main": "CoreML8"})
    (finding,) = lint(source).of_rule("version-below-opset")
    assert f"specification version {version}" in finding.what


def with_second(path: Path, change: Callable[[Any], None]) -> Path:
    """Let the model have a second function, with the weights of the first."""

    def add(spec: Any) -> None:
        spec.mlProgram.functions["second"].CopyFrom(spec.mlProgram.functions["main"])
        spec.description.defaultFunctionName = "main"
        for name in ("main", "second"):
            function = spec.description.functions.add(name=name)
            function.input.extend(spec.description.input)
            function.output.extend(spec.description.output)
        change(spec)

    return edited(path, add)


def body_of(spec: Any, name: str) -> Any:
    function = spec.mlProgram.functions[name]
    return function.block_specializations[function.opset]


def own_weight(spec: Any, name: str) -> None:
    """Give the weight of a function another name and place: the function its own weight."""
    for op in body_of(spec, name).operations:
        if op.type == "const" and op.outputs[0].name == "w":
            op.outputs[0].name = "own"
            immediate = op.attributes["val"]
            data = np.linspace(-1, 1, 64 * 64).astype(np.float16)
            immediate.ClearField("blobFileValue")
            immediate.immediateValue.tensor.bytes.values = data.tobytes()
            op.attributes["name"].immediateValue.tensor.strings.values[0] = "own"
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name == "w":
                    binding.name = "own"


def test_functions_of_several_opsets(tmp_path: Path) -> None:
    """A function that needs the newer form takes those along that have the older one."""
    source = of_version(tmp_path, "iOS16", 7)
    with_second(source, lambda spec: own_weight(spec, "second"))
    rules = by_name({"w": {"nbits": 4}, "own": {"nbits": 3}})
    result = palettize(
        source,
        rules,
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    assert versions(result.path) == (9, {"main": "CoreML8", "second": "CoreML8"})
    assert len(result.report.palettized) == 2
    assert "'main' of CoreML6" in "".join(result.report.notes)
    check_judged(result.path, tmp_path)


def test_a_function_without_compressed_weights_stays(tmp_path: Path) -> None:
    source = of_version(tmp_path, "iOS16", 7)
    with_second(source, lambda spec: own_weight(spec, "second"))
    result = palettize(
        source,
        by_name({"own": {"nbits": 3}, "w": None}),
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    assert versions(result.path) == (9, {"main": "CoreML6", "second": "CoreML8"})
    check_judged(result.path, tmp_path)


def test_what_cannot_be_raised_keeps_its_opset(tmp_path: Path) -> None:
    """Core ML reads the older form by the opset; the request is no reason to refuse the model."""

    def body(x: Any) -> Any:
        x = mb.linear(x=x, weight=np.random.default_rng(0).random((64, 64)).astype(np.float16))
        return mb.clip(x=x, alpha=np.float16(1), beta=np.float16(1), name="flat")

    source = saved(converted(body, (1, 64), "iOS16"), tmp_path / "source.mlpackage")
    edited(source, lambda spec: setattr(spec, "specificationVersion", 9))
    result = palettize(source, global_config(nbits=4), output=tmp_path / "out.mlpackage")
    assert versions(result.path) == (9, {"main": "CoreML6"})
    (node,) = [
        node
        for node in open_package(result.path).programs[0].nodes()
        if node.op_type == "constexpr_lut_to_dense"
    ]
    assert "shape" in node.op.attributes
    unique = palettize(source, global_config(mode="unique"), output=tmp_path / "unique.mlpackage")
    assert all(row.nbits != 3 for row in unique.report.palettized)


def test_models_in_memory(tmp_path: Path) -> None:
    import coremltools as ct

    source = of_version(tmp_path, "iOS17", 9)
    model = ct.models.MLModel(str(source), skip_model_load=True)
    result = palettize(model, global_config(nbits=4))
    spec = result.model.get_spec()
    assert (spec.specificationVersion, spec.mlProgram.functions["main"].opset) == (9, "CoreML8")
    assert decompress_weights(result.model).get_spec().specificationVersion == 9


def test_options_are_those_of_the_form() -> None:
    for options in FORMS.values():
        OpPalettizerConfig(**options)
