"""set_deployment_target and raise_target: what they take, give and refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    decompress,
    palettize,
    raise_target,
    set_deployment_target,
)
from mlopt.errors import DestinationError, ModelFormatError, TargetError
from mlopt.mil.opening import open_package
from tests import judges, models, odd_models
from tests.coreml.conftest import converted, global_config, nothing_beside, quietly
from tests.edited_models import body_of, edit

OPSETS = {"iOS15": "CoreML5", "iOS16": "CoreML6", "iOS17": "CoreML7", "iOS18": "CoreML8"}
OPSETS |= {"iOS26": "CoreML9"}


def opsets(package: Any) -> set[str]:
    return {f.opset for program in open_package(package).programs for f in program.functions}


def versions(package: Any) -> tuple[int, list[int]]:
    opened = open_package(package)
    return opened.spec.specificationVersion, [p.specification_version for p in opened.programs]


@pytest.mark.parametrize("target", ["iOS16", "macOS14", "ios 18", ct.target.iOS26])
def test_a_model_gives_a_model(package_of, target):
    source = package_of("convolutional", "iOS15")
    model = quietly(
        ct.models.MLModel, str(source), skip_model_load=True, compute_units=ct.ComputeUnit.CPU_ONLY
    )
    before = model.get_spec().SerializeToString(deterministic=True)
    newer = quietly(set_deployment_target, model, target)
    assert isinstance(newer, ct.models.MLModel)
    assert newer is not model
    assert newer.compute_unit == ct.ComputeUnit.CPU_ONLY
    assert model.get_spec().SerializeToString(deterministic=True) == before
    judges.load_program(newer)
    assert judges.messages_equal_except(model, newer, raised=True) == []


def test_a_path_gives_a_model(package_of):
    newer = quietly(set_deployment_target, package_of("recurrent", "iOS15"), "iOS18")
    assert isinstance(newer, ct.models.MLModel)
    assert newer.get_spec().specificationVersion == 9


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18", "iOS26"])
def test_from_file_to_file(package_of, tmp_path, target):
    source = package_of("transformer", "iOS15")
    output = raise_target(source, tmp_path / "out", target)
    assert output == tmp_path / "out.mlpackage"
    assert opsets(output) == {OPSETS[target]}
    assert versions(output) == (int(ct.target[target]), [int(ct.target[target])])
    assert nothing_beside(tmp_path, ["out.mlpackage"])


def test_the_source_itself_may_be_replaced(package_of, tmp_path):
    path = tmp_path / "model.mlpackage"
    shutil.copytree(package_of("convolutional", "iOS15"), path)
    raise_target(path, path, "iOS17")
    judges.load_program(path)
    assert opsets(path) == {"CoreML7"}
    assert nothing_beside(tmp_path, ["model.mlpackage"])


def test_the_same_target_gives_a_copy(package_of, tmp_path):
    source = package_of("redefined", "iOS16")
    output = raise_target(source, tmp_path / "out", "iOS16")
    assert judges.messages_equal_except(source, output) == []
    spec = judges.spec_and_weights(source)[0]
    copied = judges.spec_and_weights(output)[0]
    assert copied.description == spec.description


@pytest.mark.parametrize("target", ["iOS15", "macOS13"])
def test_an_older_target_is_refused(package_of, tmp_path, target):
    with pytest.raises(TargetError) as caught:
        raise_target(package_of("redefined", "iOS17"), tmp_path / "out", target)
    message = str(caught.value)
    assert "the model is for iOS17 (macOS14) and cannot be lowered" in message
    assert "Convert its source again with minimum_deployment_target=iOS1" in message
    assert nothing_beside(tmp_path)


def test_an_unknown_target_is_refused_first(tmp_path):
    with pytest.raises(TargetError, match="unknown deployment target 'iOS14'"):
        raise_target(tmp_path / "nothing", tmp_path / "out", "iOS14")
    with pytest.raises(ModelFormatError):
        raise_target(tmp_path / "nothing", tmp_path / "out", "iOS16")
    with pytest.raises(DestinationError):
        raise_target(tmp_path / "nothing", tmp_path / "out.onnx", "iOS16")


def test_all_refusals_at_once(tmp_path):
    """Those of nested blocks, and of every model of a pipeline."""

    def body(x: Any) -> Any:
        flat = mb.clip(x=x, alpha=np.float32(2), beta=np.float32(1), name="flat")
        sign = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0))
        return mb.cond(
            pred=sign,
            _true_fn=lambda: mb.clip(x=flat, alpha=np.float32(3), beta=np.float32(3), name="deep"),
            _false_fn=lambda: mb.identity(x=flat),
        )

    source = tmp_path / "in.mlpackage"
    edit(models.build("pipeline", "iOS15"), source, _with(body))
    with pytest.raises(TargetError) as caught:
        raise_target(source, tmp_path / "out", "iOS18")
    message = str(caught.value)
    assert message.count("clip 'flat' in function 'main': from CoreML7 on it clips to [2.0, 1") == 2
    assert message.count("clip 'deep' in function 'main': from CoreML7 on it clips to [3.0, 3") == 2
    assert "the model 'model0', of specification version 6, cannot be raised to iOS18" in message
    assert "the model 'model1', of specification version 6, cannot be raised to iOS18" in message
    assert nothing_beside(tmp_path, ["in.mlpackage"])
    raise_target(source, tmp_path / "out", "iOS16")


def _with(body: Callable[[Any], Any]) -> Callable[[Any, Path], None]:
    """Return an edit that gives every stage of a pipeline the operations of another program."""
    donor = converted(body, (1, 8), "iOS15", dtype="fp32").get_spec()
    extra = body_of(donor).operations

    def change(spec: Any, _: Path) -> None:
        for stage in spec.pipeline.models:
            stage.mlProgram.functions["main"].inputs.extend(
                donor.mlProgram.functions["main"].inputs
            )
            body_of(stage).operations.extend(extra)

    return change


KINDS = [
    "custom_layers",
    "decorated",
    "flexible_ranges",
    "images",
    "mixed_opsets",
    "mixed_pipeline",
    "nested_blocks",
    "several_functions",
    "shared_pipeline",
    "strange_names",
    "twins",
    "two_weight_files",
    "weights_in_operations",
]


@pytest.mark.parametrize("name", KINDS)
def test_odd_models_keep_everything_else(name, tmp_path):
    source = odd_models.build(name, tmp_path)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    output = raise_target(source, tmp_path / "out", "iOS26")
    assert judges.messages_equal_except(source, output, raised=True) == []
    assert opsets(output) == {"CoreML9"}
    assert set(versions(output)[1]) == {10}
    if odd_models.KINDS[name].loads:
        judges.load_programs(output)
    assert {path: path.read_bytes() for path in before} == before


def test_stages_that_are_no_programs_stay(tmp_path):
    source = odd_models.build("mixed_pipeline", tmp_path)
    output = raise_target(source, tmp_path / "out", "iOS18")
    old, new = (judges.spec_and_weights(path)[0] for path in (source, output))
    pairs = list(zip(_stages(old), _stages(new), strict=True))
    assert {a.WhichOneof("Type") for a, _ in pairs} > {"featureVectorizer", "neuralNetwork"}
    for before, after in pairs:
        kind = before.WhichOneof("Type")
        if kind == "mlProgram" or kind.startswith("pipeline"):
            assert after.specificationVersion == 9
        else:
            assert after == before


def _stages(model: Any) -> Iterator[Any]:
    yield model
    kind = model.WhichOneof("Type")
    if kind.startswith("pipeline"):
        inner = model.pipeline if kind == "pipeline" else getattr(model, kind).pipeline
        for stage in inner.models:
            yield from _stages(stage)


def test_functions_below_their_own_version_are_raised_too(tmp_path):
    """mixed_opsets is for iOS18, with functions of older opsets: the target makes them equal."""
    source = odd_models.build("mixed_opsets", tmp_path)
    assert len(opsets(source)) > 1
    output = raise_target(source, tmp_path / "out", "iOS18")
    assert opsets(output) == {"CoreML8"}
    judges.load_program(output)


@pytest.mark.parametrize("first", ["iOS15", "iOS16", "iOS17"])
def test_step_by_step_is_the_same_as_at_once(package_of, tmp_path, first):
    source = package_of("redefined", first, "float32")
    at_once = raise_target(source, tmp_path / "once", "iOS26")
    steps = [t for t in OPSETS if t >= first]
    path = source
    for target in steps:
        path = raise_target(path, tmp_path / target, target)
    assert judges.messages_equal_except(at_once, path) == []


def test_raised_models_palettize_and_decompress_to_the_same_numbers(package_of, tmp_path):
    """(c) A weight has the same palette before and after, in the older form and in the newer."""
    config = global_config(nbits=4)
    source = package_of("convolutional", "iOS15")
    dense = {}
    for target in ("iOS16", "iOS17", "iOS18", "iOS26"):
        higher = raise_target(source, tmp_path / f"raised-{target}", target)
        first = palettize(higher, config, output=tmp_path / f"palettized-{target}").path
        older = palettize(source, config, output=tmp_path / f"older-{target}").path
        second = raise_target(older, tmp_path / f"then-raised-{target}", target)
        for path in (first, second):
            assert opsets(path) == {OPSETS[target]}
            judges.load_program(path)
            plain = decompress(path, path.with_name(f"dense-{path.name}"))
            values = judges.decompressed_constants(plain)
            dense[path.name] = {k: v.tobytes() for k, v in values.items() if v.size > 2048}
    numbers = list(dense.values())
    assert len(numbers[0]) > 5
    assert all(each == numbers[0] for each in numbers)


def test_palettized_for_ios16_and_again_for_ios18(package_of, tmp_path):
    """Weights of the older form are repacked beside those that only the newer one can express."""
    old = OptimizationConfig(op_type_configs={"linear": OpPalettizerConfig(nbits=6)})
    new = OptimizationConfig(
        op_type_configs={
            "conv": OpPalettizerConfig(
                nbits=4, granularity="per_grouped_channel", group_size=8, on_indivisible="divisor"
            )
        }
    )
    source = package_of("convolutional", "iOS15")
    first = palettize(source, old, output=tmp_path / "first")
    assert first.report.target_after == "iOS16"
    with pytest.raises(TargetError, match="needs iOS18"):
        palettize(first.path, new, output=tmp_path / "second")
    second = palettize(
        first.path, new, output=tmp_path / "second", minimum_deployment_target="iOS18"
    )
    assert second.report.target_after == "iOS18"
    assert opsets(second.path) == {"CoreML8"}
    judges.load_program(second.path)
    before = judges.decompressed_constants(first.path)
    after = judges.decompressed_constants(second.path)
    (program,) = open_package(second.path).programs
    forms = {}
    for node in program.nodes():
        if node.op_type == "constexpr_lut_to_dense":
            (user,) = {use.op_type for use in node.outputs[0].consumers}
            forms.setdefault(user, set()).add(node.constant_input("indices").dtype)
            if user == "linear":
                name = node.outputs[0].name
                assert after[name].tobytes() == before[name].tobytes()
    assert forms == {"linear": {"uint6"}, "conv": {"uint4"}}
