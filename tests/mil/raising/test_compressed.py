"""Compressed weights of CoreML6 and CoreML7 in the forms of CoreML8."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlopt.errors import ModelFormatError, TargetError
from mlopt.mil.edits import Edits
from mlopt.mil.messages import Operation
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Node
from mlopt.mil.raising import compressed
from mlopt.mil.raising.upgrade import plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.values import string_value, tensor_type_of
from mlopt.mil.writer import PackageWriter
from tests.judges import decompressed_constants, load_program, package_bytes
from tests.mil.memory import peak_memory
from tests.mil.raising.test_upgrade import raised

RANDOM = np.random.default_rng(3)
Bodies = dict[str, Callable[[Any], Any]]


def palette(mb: Any, shape: tuple[int, ...], nbits: int, dtype: Any = np.float16) -> Any:
    nbytes = -(-int(np.prod(shape)) * nbits // 8)
    indices = RANDOM.integers(0, 256, nbytes).astype(np.uint8)
    lut = RANDOM.integers(-100, 100, 1 << nbits).astype(dtype)
    return mb.constexpr_lut_to_dense(indices=indices, lut=lut, shape=np.uint32(shape))


def sparse(mb: Any, shape: tuple[int, ...], dtype: Any = np.float16) -> Any:
    bits = RANDOM.random(int(np.prod(shape))) < 0.4
    mask = np.packbits(bits, bitorder="little")
    data = RANDOM.standard_normal(bits.sum()).astype(dtype)
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, shape=np.uint32(shape))


def quantized(mb: Any, zero_point: Any, scale: Any, axis: int = 0, dtype: Any = np.int8) -> Any:
    limits = np.iinfo(dtype)
    data = RANDOM.integers(limits.min, limits.max + 1, (4, 6, 2)).astype(dtype)
    return mb.constexpr_affine_dequantize(
        quantized_data=data, zero_point=zero_point, scale=scale, axis=axis
    )


def scales(size: int, dtype: Any = np.float16) -> np.ndarray:
    return (RANDOM.random(size) + 0.01).astype(dtype)


# Weights of CoreML6: sizes that fill no byte, immediate values and blobs, every type.
FORMS: Bodies = {
    **{
        f"lut_{nbits}_rank_{len(shape)}": lambda mb, n=nbits, s=shape: palette(mb, s, n)
        for nbits in (1, 2, 4, 6, 8)
        for shape in ((3,), (5, 7), (3, 5, 1, 7))
    },
    "lut_float32": lambda mb: palette(mb, (5, 9), 4, np.float32),
    "sparse_small": lambda mb: sparse(mb, (3, 3)),
    "sparse": lambda mb: sparse(mb, (5, 7, 11)),
    "sparse_float32": lambda mb: sparse(mb, (5, 70), np.float32),
    "scalars": lambda mb: quantized(mb, np.int8(3), np.float16(0.3)),
    "symmetric": lambda mb: quantized(mb, np.int8(0), scales(4)),
    "axis": lambda mb: quantized(mb, np.int8([1, 2, 3, 4, 5, -128]), scales(6), -2),
    "unsigned": lambda mb: quantized(mb, np.uint8([0, 255]), scales(2), 2, np.uint8),
    "float32_scales": lambda mb: quantized(mb, np.int8(-3), scales(4, np.float32)),
    "one_zero_point": lambda mb: quantized(mb, np.int8(-3), scales(4)),
    "one_scale": lambda mb: quantized(mb, np.int8([1, 0, -1, 5]), np.float16(0.7)),
    "float_zero_points": lambda mb: quantized(
        mb, np.float32([1, 0, 200, 255]), scales(4), 0, np.uint8
    ),
    "cast": lambda mb: mb.constexpr_cast(
        source_val=RANDOM.standard_normal((3, 5)).astype(np.float16), output_dtype="fp32"
    ),
    "small_cast": lambda mb: mb.constexpr_cast(
        source_val=RANDOM.standard_normal(3).astype(np.float16), output_dtype="fp32"
    ),
}


def program_of(build: Callable[..., Any], mb: Any, bodies: Bodies, target: str) -> Any:
    """Return a model with a relu of each of these weights, by the name of the form."""

    def body(x: Any) -> Any:
        kept = mb.identity(x=x, name="kept")
        weights = [mb.relu(x=make(mb), name=name) for name, make in bodies.items()]
        return (kept, *weights)

    return build(body, (1, 2), target)


@pytest.fixture(scope="module")
def sources(
    build: Callable[..., Any], mb: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return the packages with every form, for both older targets."""
    folder = tmp_path_factory.mktemp("compressed")
    paths = {}
    for target in ("iOS16", "iOS17"):
        paths[target] = folder / f"{target}.mlpackage"
        program_of(build, mb, FORMS, target).save(str(paths[target]))
    return paths


def weights(package: Path) -> dict[str, np.ndarray]:
    """Return what coremltools decompresses, by the name of the relu behind it."""
    values = decompressed_constants(package)
    (program,) = open_package(package).programs
    return {
        node.name: values[node.inputs["x"][0].name]  # type: ignore[union-attr]
        for node in program.nodes()
        if node.op_type == "relu"
    }


def test_replacements_in_the_same_edits_win(sources: dict[str, Path], tmp_path: Path) -> None:
    """Some weights become constants of zeros, among them compressed ones that the raise changes."""
    package = open_package(sources["iOS16"])
    (program,) = package.programs
    replaced = {"lut_6_rank_4", "sparse", "axis", "cast"}
    assert replaced < FORMS.keys()
    with PackageWriter(package, tmp_path / "out") as writer:
        raising = plan_opset_raise(program, Target.iOS18)
        edits = Edits()
        raising.add_to(edits, writer)
        before = package.spec.SerializeToString(deterministic=True)
        for node in program.nodes():
            if node.op_type == "relu" and node.name in replaced:
                weight = node.inputs["x"][0].node  # type: ignore[union-attr]
                zeros = zeros_like(weight, raising.names["main"]("zeros"), writer)
                edits.replace(weight.block, weight.op, [zeros])
        assert package.spec.SerializeToString(deterministic=True) == before
        assert all(constant.value() is not None for constant in program.constants())
        edits.apply()
        output = writer.finish()
    load_program(output)
    old, new = weights(sources["iOS16"]), weights(output)
    for name, value in old.items():
        expected = np.zeros_like(value) if name in replaced else value
        assert (new[name].dtype, new[name].tobytes()) == (value.dtype, expected.tobytes()), name
    (program,) = open_package(output).programs
    assert [function.opset for function in program.functions] == ["CoreML8"]
    assert program.specification_version == 9
    assert sorted(n.name for n in program.nodes() if n.name.startswith("zeros")) == [
        "zeros", "zeros_1", "zeros_2", "zeros_3",
    ]  # fmt: skip


def zeros_like(node: Node, name: str, writer: PackageWriter) -> Any:
    """Return a const operation of the same output as a constexpr operation's."""
    typed = tensor_type_of(node.op.outputs[0].type)
    assert typed is not None
    dtype, shape = typed
    op = Operation(type="const")
    op.attributes["name"].CopyFrom(string_value(name))
    op.attributes["val"].CopyFrom(
        writer.add_value(np.zeros(shape, dtype.numpy), specification_version=9)
    )
    op.outputs.add().CopyFrom(node.op.outputs[0])
    return op


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
@pytest.mark.parametrize("source", ["iOS16", "iOS17"])
def test_the_same_numbers_in_the_newer_form(
    sources: dict[str, Path], tmp_path: Path, source: str, target: str
) -> None:
    _, output = raised(sources[source], target, tmp_path / "out")
    load_program(output)
    before, after = weights(sources[source]), weights(output)
    assert before.keys() == after.keys() == FORMS.keys()
    for name, value in before.items():
        assert (after[name].dtype, after[name].shape) == (value.dtype, value.shape), name
        assert after[name].tobytes() == value.tobytes(), name
    for node in open_package(output).programs[0].nodes():
        if node.op_type.startswith("constexpr_"):
            assert list(node.op.attributes) == ["name"]
            assert "shape" not in node.inputs
            assert node.op_type != "constexpr_affine_dequantize"


def test_they_stay_as_they_are_before_ios18(sources: dict[str, Path], tmp_path: Path) -> None:
    _, output = raised(sources["iOS16"], "iOS17", tmp_path / "out")
    load_program(output)
    before, after = weights(sources["iOS16"]), weights(output)
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    nodes = open_package(output).programs[0].nodes()
    assert any(node.op_type == "constexpr_affine_dequantize" for node in nodes)


def test_types_and_shapes(sources: dict[str, Path], tmp_path: Path) -> None:
    _, output = raised(sources["iOS16"], "iOS18", tmp_path / "out")
    nodes = {
        node.outputs[0].consumers[0].op_name: node
        for node in open_package(output).programs[0].nodes()
        if node.op_type.startswith("constexpr_")
    }

    def forms(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        node = nodes[name]
        constants = {key: node.constant_input(key) for key in node.inputs}
        return {key: (c.dtype, c.shape) for key, c in constants.items() if c is not None}

    assert forms("lut_6_rank_4") == {
        "indices": ("uint6", (3, 5, 1, 7)),
        "lut": ("fp16", (1, 1, 1, 1, 64, 1)),
    }
    assert forms("lut_1_rank_1") == {"indices": ("uint1", (3,)), "lut": ("fp16", (1, 2, 1))}
    assert forms("sparse")["mask"] == ("uint1", (5, 7, 11))
    assert forms("symmetric") == {"data": ("int8", (4, 6, 2)), "scale": ("fp16", (4, 1, 1))}
    assert forms("scalars")["scale"] == ("fp16", (1, 1, 1))
    assert forms("one_zero_point")["offset"] == ("int8", (4, 1, 1))
    assert forms("float_zero_points")["offset"] == ("uint8", (4, 1, 1))


def test_shared_blobs_stay_shared(
    build: Callable[..., Any], mb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight under two names and two shapes is stored once, and read no more often."""
    indices = RANDOM.integers(0, 256, 5000).astype(np.uint8)
    lut = RANDOM.standard_normal(16).astype(np.float16)

    def make(shape: tuple[int, ...]) -> Callable[[Any], Any]:
        return lambda mb: mb.constexpr_lut_to_dense(
            indices=indices, lut=lut, shape=np.uint32(shape)
        )

    shapes = {"a": (100, 100), "b": (100, 100), "c": (50, 200)}
    model = program_of(build, mb, {name: make(shape) for name, shape in shapes.items()}, "iOS16")
    model.save(str(tmp_path / "in.mlpackage"))
    _, source = raised(tmp_path / "in.mlpackage", "iOS17", tmp_path / "shared")
    _, output = raised(source, "iOS18", tmp_path / "out")
    before, after = weights(source), weights(output)
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    packages = [open_package(path) for path in (source, output)]
    for package in packages:
        offsets = {
            c.storage
            for c in package.programs[0].constants()
            if c.parameter in ("indices", "lut") and c.storage
        }
        assert len(offsets) == 2
    assert package_bytes(output) < package_bytes(source) + 500


def test_memory_follows_one_weight(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    size = 4 << 20

    def make(mb: Any) -> Any:
        return mb.constexpr_lut_to_dense(
            indices=RANDOM.integers(0, 256, size).astype(np.uint8),
            lut=np.float16(np.arange(4)),
            shape=np.uint32([4, size]),
        )

    model = program_of(build, mb, {f"w{index}": make for index in range(6)}, "iOS16")
    model.save(str(tmp_path / "in.mlpackage"))
    assert package_bytes(tmp_path / "in.mlpackage") > 6 * size
    imports = """
        from mlopt.mil.raising.upgrade import plan_opset_raise
        from mlopt.mil.opening import open_package
        from mlopt.mil.targets import Target
        from mlopt.mil.writer import PackageWriter
    """
    code = """
        package = open_package(sys.argv[1])
        with PackageWriter(package, sys.argv[2]) as writer:
            plan_opset_raise(package.programs[0], Target.iOS18).apply(writer)
            writer.finish()
    """
    taken = peak_memory(
        textwrap.dedent(imports), textwrap.dedent(code), tmp_path / "in.mlpackage", tmp_path / "out"
    )
    load = open_package(tmp_path / "out.mlpackage").programs[0].constants()
    assert sum(constant.dtype == "uint2" for constant in load) == 6
    assert taken < 2 * size


def test_spare_bits_are_cleared(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    """The newer form counts them as padding, which is zero."""
    body = {
        "w": lambda mb: mb.constexpr_lut_to_dense(
            indices=np.uint8([255] * 12), lut=np.float16([1, 2]), shape=np.uint32([91])
        )
    }
    _, output = raised(program_of(build, mb, body, "iOS16"), "iOS18", tmp_path / "out")
    (constant,) = (
        c for c in open_package(output).programs[0].constants() if c.parameter == "indices"
    )
    assert constant.value().tolist() == [255] * 11 + [7]
    assert (weights(output)["w"] == 2).all()


def test_spare_bits_of_a_mask_mark_nothing() -> None:
    mask: Any = SimpleNamespace(value=lambda: np.uint8([5, 254]), release=lambda: None)
    assert compressed._count_bits(mask, 10) == 3


def test_attributes_that_are_no_parameters_stay(sound: Any, tmp_path: Path) -> None:
    package = open_package(sound)
    for node in package.programs[0].nodes():
        if node.op_type.startswith("constexpr_"):
            node.op.attributes["remark"].CopyFrom(string_value(f"of {node.op_type}"))
    with PackageWriter(package, tmp_path / "out") as writer:
        plan_opset_raise(package.programs[0], Target.iOS18).apply(writer)
        output = writer.finish()
    remarks = {}
    for node in open_package(output).programs[0].nodes():
        if node.op_type.startswith("constexpr_"):
            assert sorted(node.op.attributes) == ["name", "remark"]
            remarks[node.op_type] = node.scalar("remark")
    assert remarks == {
        "constexpr_lut_to_dense": "of constexpr_lut_to_dense",
        "constexpr_sparse_to_dense": "of constexpr_sparse_to_dense",
        "constexpr_blockwise_shift_scale": "of constexpr_affine_dequantize",
        "constexpr_cast": "of constexpr_cast",
    }


# Zero points that the newer form cannot hold.
@pytest.mark.parametrize(
    ("zero_point", "dtype"),
    [
        (np.float32([0.5, 0, 0, 0]), np.int8),
        (np.float32(128), np.int8),
        (np.int8(-1), np.uint8),
        (np.uint8(200), np.int8),
        (np.float32(np.nan), np.uint8),
    ],
)
def test_zero_points_that_are_no_data(
    build: Callable[..., Any], mb: Any, zero_point: Any, dtype: Any
) -> None:
    body = {"w": lambda mb: quantized(mb, zero_point, scales(4), 0, dtype)}
    (program,) = open_package(program_of(build, mb, body, "iOS16")).programs
    with pytest.raises(TargetError, match=r"constexpr_affine_dequantize .* zero points"):
        plan_opset_raise(program, Target.iOS18)
    assert not plan_opset_raise(program, Target.iOS17).changes


def _shape(node: Node, *sizes: int) -> None:
    import struct

    value = node.op.attributes["shape"]
    value.type.tensorType.dimensions[0].constant.size = len(sizes)
    value.immediateValue.tensor.bytes.values = struct.pack(f"<{len(sizes)}I", *sizes)


def _dimension(node: Node, parameter: str, size: int) -> None:
    node.op.attributes[parameter].type.tensorType.dimensions[0].constant.size = size


def _dtype(node: Node, parameter: str, number: int) -> None:
    node.op.attributes[parameter].type.tensorType.dataType = number


DAMAGE: dict[str, tuple[str, Callable[[Node], Any], str]] = {
    "other shape": ("lut", lambda n: _shape(n, 5, 8), r"values make fp16 \[5, 8\]"),
    "huge shape": ("lut", lambda n: _shape(n, 1 << 31, 1 << 31, 4), r"declared as"),
    "empty shape": ("lut", lambda n: _shape(n, 0, 9), "sizes must be positive"),
    "no shape": ("lut", lambda n: _shape(n), "shape"),
    "shape gone": ("lut", lambda n: n.op.attributes.pop("shape"), "shape is missing"),
    "indices gone": ("lut", lambda n: n.op.attributes.pop("indices"), "indices is missing"),
    "more indices": ("lut", lambda n: _dimension(n, "indices", 24), "take 23 bytes"),
    "odd table": ("lut", lambda n: _dimension(n, "lut", 15), "2, 4, 16, 64, 256 entries"),
    "float indices": ("lut", lambda n: _dtype(n, "indices", 10), "holds fp16, allowed are uint8"),
    "another output": ("lut", lambda n: _output(n, 46), r"declared as fp16 \[46\]"),
    "shorter mask": ("sparse", lambda n: _dimension(n, "mask", 4), "take 44 bytes"),
    "fewer values": ("sparse", lambda n: _dimension(n, "nonzero_data", 12), "marks .* holds 12"),
    "axis": ("affine", lambda n: _axis(n, 3), r"axis is 3, allowed is \[-3, 3\)"),
    "scale": ("affine", lambda n: _dimension(n, "scale", 3), "4 elements of axis 0"),
    "integer scale": ("affine", lambda n: _dtype(n, "scale", 23), "allowed are fp16, fp32"),
    "data gone": ("affine", lambda n: n.op.attributes.pop("quantized_data"), "missing"),
    "cast": ("cast", lambda n: n.op.attributes.pop("source_val"), "source_val is missing"),
}


def _output(node: Node, size: int) -> None:
    dimensions = node.op.outputs[0].type.tensorType.dimensions
    del dimensions[1:]
    dimensions[0].constant.size = size
    node.op.outputs[0].type.tensorType.rank = 1


def _axis(node: Node, axis: int) -> None:
    node.op.attributes["axis"].immediateValue.tensor.ints.values[:] = [axis]


@pytest.fixture(scope="module")
def sound(build: Callable[..., Any], mb: Any) -> Any:
    """Return a model with one weight of each form."""
    bodies: Bodies = {
        "lut": lambda mb: palette(mb, (5, 9), 4),
        "sparse": lambda mb: sparse(mb, (5, 70)),
        "affine": lambda mb: quantized(mb, np.int8(3), scales(4)),
        "cast": FORMS["cast"],
    }
    return program_of(build, mb, bodies, "iOS16")


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_contradict_themselves(sound: Any, damage: str) -> None:
    which, change, message = DAMAGE[damage]
    package: Package = open_package(sound)
    (program,) = package.programs
    (node,) = (n for n in program.nodes() if n.op_type.startswith(f"constexpr_{which}"))
    change(node)
    with pytest.raises(ModelFormatError, match=message) as caught:
        plan_opset_raise(program, Target.iOS18)
    assert f"{node.op_type} {node.name!r} in function 'main'" in str(caught.value)


def test_a_gru_of_compressed_weights(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    """Its new bias takes only the type of a weight that no constant holds any more."""

    def body(x: Any) -> Any:
        return mb.gru(
            x=x,
            initial_h=np.zeros((1, 3), np.float32),
            weight_ih=palette(mb, (9, 4), 4, np.float32),
            weight_hh=palette(mb, (9, 3), 4, np.float32),
        )[0]

    _, output = raised(build(body, (2, 1, 4), "iOS16"), "iOS18", tmp_path / "out")
    load_program(output)
    (gru,) = (n for n in open_package(output).programs[0].nodes() if n.op_type == "gru")
    bias = gru.constant_input("input_bias")
    assert bias is not None
    assert (bias.dtype, bias.value().tolist()) == ("fp32", [0] * 9)
