"""Raised programs, against the same source converted for the newer target by coremltools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.errors import TargetError
from mlopt.mil.edits import Edits
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Program
from mlopt.mil.raising.upgrade import plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter
from tests.conftest import PackageOf

DATA = np.random.default_rng(0).standard_normal((4, 6, 8, 8)).astype(np.float32)


def raised(model: Any, target: str, output: Path) -> tuple[Package, Path]:
    package = open_package(model)
    with PackageWriter(package, output) as writer:
        for program in package.programs:
            plan_opset_raise(program, Target.parse(target)).apply(writer)
        return package, writer.finish()


def files(package: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(package): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file()
    }


def signature(program: Program) -> list[Any]:
    """Return what a program computes: its operations with constants resolved, without names."""
    result = []
    for node in program.nodes():
        if node.op_type == "const":
            continue
        inputs: dict[str, Any] = {}
        for parameter, bound in node.inputs.items():
            constant = node.constant_input(parameter)
            if constant is not None:
                value = np.asarray(constant.value())
                inputs[parameter] = (constant.dtype, constant.shape, value.tolist())
            else:
                inputs[parameter] = [getattr(item, "name", None) for item in bound]
        outputs = [str(output.type) for output in node.op.outputs]
        result.append((node.op_type, node.depth, inputs, outputs))
    return result


@pytest.mark.parametrize("kind", ["redefined", "pipeline", "multifunction"])
def test_added_to_edits_alone_it_is_the_same(
    package_of: PackageOf, tmp_path: Path, kind: str
) -> None:
    first, target = ("iOS18", "iOS26") if kind == "multifunction" else ("iOS15", "iOS17")
    at_once, _ = raised(package_of(kind, first), target, tmp_path / "at_once")
    package = open_package(package_of(kind, first))
    with PackageWriter(package, tmp_path / "added") as writer:
        edits = Edits()
        before = package.spec.SerializeToString(deterministic=True)
        for program in package.programs:
            plan_opset_raise(program, Target.parse(target)).add_to(edits, writer)
        assert package.spec.SerializeToString(deterministic=True) == before
        edits.apply()
        writer.finish()
    assert files(tmp_path / "added.mlpackage") == files(tmp_path / "at_once.mlpackage")
    assert at_once.spec.SerializeToString(deterministic=True) != before


@pytest.mark.parametrize("kind", ["convolutional", "transformer", "control_flow", "redefined"])
def test_converted_models_to_ios16(package_of: PackageOf, tmp_path: Path, kind: str) -> None:
    from tests.judges import load_program, messages_equal_except

    source = package_of(kind, "iOS15")
    _, output = raised(source, "iOS16", tmp_path / "out")
    load_program(output)
    assert messages_equal_except(source, output, raised=True) == []
    (program,), (direct,) = (
        open_package(path).programs for path in (output, package_of(kind, "iOS16"))
    )
    # From iOS16 on a model may return fp16, so that a direct conversion lacks the last cast.
    found, expected = ([op for op, *_ in signature(p) if op != "cast"] for p in (program, direct))
    assert found == expected


@pytest.mark.parametrize("first", ["iOS15", "iOS16", "iOS17"])
@pytest.mark.parametrize("last", ["iOS17", "iOS18", "iOS26"])
def test_redefined_operations_all_the_way(
    package_of: PackageOf, tmp_path: Path, first: str, last: str
) -> None:
    """coremltools loads it, and every redefined operation has its new parameters."""
    from tests.judges import load_program

    _, output = raised(package_of("redefined", first, "float32"), last, tmp_path / "out")
    load_program(output)
    (program,) = open_package(output).programs
    assert program.specification_version == Target.parse(last)
    for node in program.nodes():
        if node.op_type.startswith(("gather", "scatter")):
            assert node.scalar("validate_indices") is False
            constant = node.constant_input("indices")
            assert constant is None or (np.asarray(constant.value()) >= 0).all()
        if node.op_type == "topk":
            assert node.scalar("output_indices_dtype") == "int32"
            assert (node.scalar("sort"), node.scalar("return_indices")) == (True, True)
        if node.op_type == "gru" and last != "iOS17":
            assert node.scalar("reset_after") is False
            bias = node.constant_input("input_bias")
            assert bias is not None
            assert not bias.value().any()
    names = [output.name for node in program.nodes() for output in node.outputs]
    assert len(names) == len(set(names))


def test_negative_indices_point_where_they_did(
    build: Callable[..., Any], mb: Any, tmp_path: Path
) -> None:
    def body(x: Any) -> Any:
        where = mb.cast(x=mb.reduce_max(x=x, axes=[1, 2, 3]), dtype="int32")
        pairs = mb.stack(values=[where, where], axis=1)
        return (
            mb.gather(x=x, indices=np.int32([-1, 5, -6]), axis=1, name="constant"),
            mb.gather(x=x, indices=where, axis=-3, name="computed"),
            mb.gather_nd(x=x, indices=pairs, name="pairs"),
            mb.gather_nd(x=x, indices=np.int32([[-1, 0], [1, -2]]), name="pairs_constant"),
            mb.scatter_along_axis(
                data=x, indices=np.full((1, 6, 8, 8), -2, np.int32), updates=DATA[:1], axis=0
            ),
        )

    _, output = raised(build(body, DATA.shape, "iOS16"), "iOS17", tmp_path / "out")
    from tests.judges import load_program

    load_program(output)
    nodes = {node.name: node for node in open_package(output).programs[0].nodes()}

    def indices(name: str) -> Any:
        return nodes[name].constant_input("indices").value().tolist()  # type: ignore[union-attr]

    assert indices("constant") == [5, 5, 0]
    assert indices("pairs_constant") == [[3, 0], [1, 4]]
    for name, extent in (("computed", 6), ("pairs", [4, 6])):
        (select,) = (v.node for v in nodes[name].inputs["indices"])  # type: ignore[union-attr]
        assert select.op_type == "select"
        (moved,) = (v.node for v in select.inputs["b"])
        assert (moved.op_type, moved.constant_input("y").value().tolist()) == ("add", extent)
        (inside,) = (v.node for v in select.inputs["cond"])
        assert inside.op_type == "greater_equal"
        assert inside.inputs["x"][0] is select.inputs["a"][0] is moved.inputs["x"][0]


def test_positions_need_no_rewrite(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        where = mb.reduce_argmax(x=mb.reduce_max(x=x, axes=[2, 3]), axis=0)
        best, places = mb.topk(x=x, k=1, axis=1)
        places = mb.reshape(x=places, shape=[-1])
        values = mb.cast(x=mb.reshape(x=best, shape=[-1]), dtype="int32")
        return (
            mb.gather(x=DATA, indices=where, axis=0, name="position"),
            mb.gather(x=DATA, indices=places, axis=1, name="reshaped"),
            mb.gather(x=DATA, indices=values, axis=1, name="value"),
        )

    package, _ = raised(build(body, DATA.shape), "iOS17", tmp_path / "out")
    producers = {
        node.name: node.inputs["indices"][0].node.op_type  # type: ignore[union-attr]
        for node in package.programs[0].nodes()
        if node.op_type == "gather"
    }
    assert producers == {"position": "reduce_argmax", "reshaped": "reshape", "value": "select"}


def test_sizes_that_are_not_fixed(ct: Any, build: Callable[..., Any], mb: Any) -> None:
    """Only the size of the axis that is indexed has to be known."""

    def body(x: Any) -> Any:
        index = mb.cast(
            x=mb.slice_by_size(x=mb.reduce_max(x=x, axes=[1]), begin=[0], size=[2]), dtype="int32"
        )
        return mb.gather(x=x, indices=index, axis=1, name="known")

    (program,) = open_package(build(body, (8, 6), "iOS16")).programs
    gather = next(node for node in program.nodes() if node.op_type == "gather")
    dimensions = gather.inputs["x"][0].type.tensorType.dimensions  # type: ignore[union-attr]
    dimensions[0].unknown.variadic = False
    assert len(plan_opset_raise(program, Target.iOS17).changes) == 1
    dimensions[1].unknown.variadic = False
    (change,) = plan_opset_raise(program, Target.iOS17).changes
    assert "shape" in [op.type for op in change.before]
    dimensions[1].unknown.variadic = True
    with pytest.raises(TargetError, match=r"'known'.*the rank of x is not fixed"):
        plan_opset_raise(program, Target.iOS17)


def test_short_indices_are_widened_first(
    build: Callable[..., Any], mb: Any, tmp_path: Path
) -> None:
    from tests.judges import load_program

    package = open_package(
        build(
            lambda x: mb.gather(
                x=x,
                indices=mb.cast(x=mb.reduce_max(x=x, axes=[1]), dtype="int32"),
                axis=0,
                name="g",
            ),
            (8, 6),
            "iOS16",
        )
    )
    (program,) = package.programs
    for node in program.nodes():
        if node.op_type == "cast":
            node.op.outputs[0].type.tensorType.dataType = 22  # int16
    with PackageWriter(package, tmp_path / "out") as writer:
        plan_opset_raise(program, Target.iOS17).apply(writer)
        casts = [node for node in program.nodes() if node.op_type == "cast"]
        casts[0].op.outputs[0].type.tensorType.dataType = 23  # int32 again: it was made up
        load_program(writer.finish())
    assert [node.scalar("dtype") for node in casts] == ["int32", "int32"]


def test_refusals_name_every_operation_and_change_nothing(
    build: Callable[..., Any], mb: Any
) -> None:
    def body(x: Any) -> Any:
        roi = np.float32([0, 0, 0, 1, 1]).reshape(1, 1, 5, 1, 1)
        crop = mb.crop_resize(x=x, roi=roi, sampling_mode="ALIGN_CORNERS", name="crop")
        return crop, mb.clip(x=x, alpha=np.float32(1), beta=np.float32(1), name="flat")

    package = open_package(build(body, DATA.shape, "iOS15"))
    before = package.spec.SerializeToString(deterministic=True)
    with pytest.raises(TargetError) as caught:
        plan_opset_raise(package.programs[0], Target.iOS18)
    message = str(caught.value)
    assert "crop_resize 'crop' in function 'main': from CoreML7 on the newer opset takes" in message
    assert "clip 'flat' in function 'main': from CoreML7 on it clips to [1.0, 1.0]" in message
    assert "minimum_deployment_target=iOS18" in message
    assert package.spec.SerializeToString(deterministic=True) == before
    plan_opset_raise(package.programs[0], Target.iOS16)
    assert package.spec.SerializeToString(deterministic=True) == before


def test_nothing_to_raise(package_of: PackageOf) -> None:
    package = open_package(package_of("redefined", "iOS17", "float32"))
    before = package.spec.SerializeToString(deterministic=True)
    for target in (Target.iOS15, Target.iOS17):
        assert plan_opset_raise(package.programs[0], target).changes == ()
    assert package.spec.SerializeToString(deterministic=True) == before


def test_pipelines_are_raised_with_their_models(package_of: PackageOf, tmp_path: Path) -> None:
    package, output = raised(package_of("pipeline", "iOS15"), "iOS16", tmp_path / "out")
    assert package.spec.specificationVersion >= 7
    assert all(program.specification_version == 7 for program in package.programs)
    from tests.judges import load_programs

    load_programs(output)


def test_unknown_opset(package_of: PackageOf) -> None:
    (program,) = open_package(package_of("recurrent")).programs
    program.message.functions["main"].opset = "CoreML99"
    with pytest.raises(TargetError, match="unknown opset 'CoreML99'"):
        plan_opset_raise(program, Target.iOS16)


def test_body_that_exists_already(package_of: PackageOf) -> None:
    (program,) = open_package(package_of("recurrent")).programs
    program.message.functions["main"].block_specializations["CoreML6"].SetInParent()
    with pytest.raises(TargetError, match="already has a body for CoreML6"):
        plan_opset_raise(program, Target.iOS16)


def test_names_stay_unique(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        y = mb.relu(x=x, name="g_batch_dims_0")
        return mb.gather(x=y, indices=np.int32([0]), axis=0, name="g")

    _, output = raised(build(body, DATA.shape), "iOS16", tmp_path / "out")
    names = [v.name for n in open_package(output).programs[0].nodes() for v in n.outputs]
    assert len(names) == len(set(names))
    assert "g_batch_dims_0_1" in names
