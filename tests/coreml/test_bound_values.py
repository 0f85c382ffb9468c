"""Weights that are bound to operations as values are dealt with as those of const operations are.

Each model stands beside itself with every constant bound directly, as go-coreml and editors of
messages write it, in the message and in the weight file. Whatever is done to both has to give the
same program, as coremltools reads it, and the same outputs.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import mlopt.runtime
from mlopt.coreml import (
    OptimizationConfig,
    decompress,
    get_weights_metadata,
    lint,
    palettize,
    preview,
    raise_target,
)
from mlopt.coreml.inspection import inspect_weights
from mlopt.mil.opening import open_package
from tests import judges, models
from tests.canonical import canonical
from tests.coreml.conftest import by_name, converted, global_config, saved
from tests.edited_models import bind_values, body_of, edit, operation

STORED = ("inline", "file")
MODELS = {
    "convolutional": "iOS15",
    "recurrent": "iOS16",
    "control_flow": "iOS15",
    "matmuls": "iOS17",
    "redefined": "iOS15",
    "multifunction": "iOS18",
    "stateful": "iOS18",
}
FORMS: dict[str, tuple[dict[str, Any], str | None]] = {
    "4 bits": ({}, None),
    "uniform": ({"mode": "uniform", "nbits": 6}, None),
    "groups": ({"granularity": "per_grouped_channel", "group_size": 16}, "iOS18"),
    "vectors": ({"cluster_dim": 2}, "iOS18"),
    "scale": ({"nbits": 3, "enable_per_channel_scale": True}, "iOS18"),
    "integer table": ({"lut_dtype": "int8"}, "iOS18"),
}


@attrs.frozen
class Pair:
    """A package, and the same with its constants bound as values."""

    plain: Path
    bound: Path


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Pair]:
    """Return a function that gives the packages of a model, written once."""
    folder = tmp_path_factory.mktemp("bound")

    @functools.cache
    def plain(name: str) -> Path:
        return saved(models.build(name, MODELS[name], "float16"), folder / f"{name}.mlpackage")

    @functools.cache
    def make(name: str, stored: str) -> Pair:
        bound = folder / f"{name}-{stored}.mlpackage"
        change = functools.partial(bind_values, stored=stored)
        edit(models.build(name, MODELS[name], "float16"), bound, change)
        return Pair(plain(name), bound)

    return make


PAIRS = [
    *((name, "file") for name in MODELS),
    *((name, "inline") for name in ("control_flow", "redefined", "multifunction")),
]
each_pair = pytest.mark.parametrize(("name", "stored"), PAIRS)


def values_of(source: Path) -> set[tuple[Any, ...]]:
    """The large constants that operations read, as coremltools decompresses them."""
    found = set()
    for function in judges.load_program(source).functions.values():
        for op in judges.pymil_operations(function):
            is_constexpr = op.op_type.startswith("constexpr_")
            if op.op_type != "const" and not is_constexpr:
                continue
            values = judges.materialised(op) if is_constexpr else (op.outputs[0].val,)
            for var, value in zip(op.outputs, map(np.asarray, values), strict=True):
                readers = [user.op_type for user in var.child_ops]
                if value.size >= 10 and not all(r.startswith("constexpr_") for r in readers):
                    content = hashlib.sha256(value.tobytes()).hexdigest()
                    found.add((value.dtype.name, value.shape, content))
    return found


def outputs(source: Path) -> list[np.ndarray]:
    """What every function of a package gives for one input."""
    found = []
    for function in sorted(judges.spec_and_weights(source)[0].mlProgram.functions):
        program = mlopt.runtime.load(source, function)
        generator = np.random.default_rng(0)
        given = {
            name: generator.standard_normal(feature.shape).astype(np.float32)
            for name, feature in program.inputs.items()
        }
        state = program.make_state()
        found += [np.asarray(value) for value in program.predict(given, state).values()]
    return found


def assert_equal_outputs(a: Path, b: Path) -> None:
    for x, y in zip(outputs(a), outputs(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_bound_models_are_what_they_are_to_be(pair_of):
    spec, folder = judges.spec_and_weights(pair_of("control_flow", "file").bound)
    ops = list(judges.operations(spec.mlProgram.functions["main"]))
    assert {op.outputs[0].name for op in ops if op.type == "const"} == {
        "branch_value",
        "other_branch_value",
    }
    with pytest.raises(AssertionError, match="blobFileValue"):
        judges.load_program(pair_of("control_flow", "file").bound)
    assert folder is not None
    spec, _ = judges.spec_and_weights(pair_of("matmuls", "inline").bound)
    assert b"weight.bin" not in spec.SerializeToString()


@each_pair
def test_they_run(name, stored, pair_of):
    pair = pair_of(name, stored)
    assert_equal_outputs(pair.plain, pair.bound)


@each_pair
def test_inspection_and_metadata_list_the_same_weights(name, stored, pair_of):
    pair = pair_of(name, stored)

    def listed(source: Path) -> set[tuple[Any, ...]]:
        rows = inspect_weights(source).rows
        return {(r.shape, r.dtype, r.nbytes, r.consumers, r.distinct, r.sparsity) for r in rows}

    def known(source: Path) -> set[tuple[Any, ...]]:
        return {
            (m.val.tobytes(), m.unique_values, tuple((c.op_type, c.name) for c in m.child_ops))
            for m in get_weights_metadata(source, weight_threshold=10).values()
        }

    if stored == "file":
        assert listed(pair.bound) == listed(pair.plain)
    assert {row[:3] for row in listed(pair.bound)} == {row[:3] for row in listed(pair.plain)}
    assert {row[0] for row in known(pair.bound)} == {row[0] for row in known(pair.plain)}
    rows = [row for row in inspect_weights(pair.bound).rows if len(row.consumers) == 1]
    assert any(
        row.name == f"{row.consumers[0].partition('(')[2][:-1]}_{parameter}_0"
        for row in rows
        for parameter in ("weight", "weight_ih", "y")
    )


@each_pair
def test_palettizing_gives_the_same_program(name, stored, pair_of, tmp_path):
    check_palettized(pair_of(name, stored), "4 bits", tmp_path, shared=stored == "file")


@pytest.mark.parametrize(
    ("name", "stored", "form"),
    [
        *(("matmuls", "file", form) for form in FORMS if form != "4 bits"),
        # not matmuls: copies in the message do not disagree about the axis of channels
        *(("convolutional", "inline", form) for form in ("groups", "scale")),
    ],
)
def test_every_form_gives_the_same_program(name, stored, form, pair_of, tmp_path):
    check_palettized(pair_of(name, stored), form, tmp_path, shared=stored == "file")


def check_palettized(pair: Pair, form: str, folder: Path, *, shared: bool) -> None:
    options, target = FORMS[form]
    config = global_config(**options)
    before = package_hash(pair.bound)
    plain, bound = (
        palettize(
            source, config, output=folder / f"{index}.mlpackage", minimum_deployment_target=target
        )
        for index, source in enumerate((pair.plain, pair.bound))
    )
    assert package_hash(pair.bound) == before
    assert values_of(bound.path) == values_of(plain.path)
    assert len(bound.report.palettized) >= len(plain.report.palettized) > 0
    dense = [
        decompress(result.path, folder / f"{index}-dense.mlpackage").path
        for index, result in enumerate((plain, bound))
    ]
    texts = [canonical(judges.load_program(path)) for path in dense]
    assert texts[0] == texts[1]
    expected = preview(pair.bound, config, minimum_deployment_target=target)
    assert [row.bytes_after for row in expected] == [row.bytes_after for row in bound.report]
    if shared:
        # One weight of all that is in one place, palettized once.
        sizes = [sorted(r.bytes_after for r in x.report.palettized) for x in (plain, bound)]
        assert sizes[0] == sizes[1]
        sizes = [(x.path / WEIGHTS).stat().st_size for x in (plain, bound)]
        assert abs(sizes[0] - sizes[1]) < 64  # the last blob ends where it ends
    assert_equal_outputs(plain.path, bound.path)


def package_hash(package: Path) -> str:
    files = sorted(path for path in package.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@each_pair
def test_raising_gives_the_same_program(name, stored, pair_of, tmp_path):
    pair = pair_of(name, stored)
    paths = [
        raise_target(source, tmp_path / f"{index}.mlpackage", "iOS26")
        for index, source in enumerate((pair.plain, pair.bound))
    ]
    texts = [canonical(judges.load_program(path)) for path in paths]
    assert texts[0] == texts[1]
    assert_equal_outputs(*paths)


@pytest.mark.parametrize("stored", STORED)
def test_raising_what_is_palettized(stored, pair_of, tmp_path):
    pair = pair_of("convolutional", stored)
    texts = []
    for index, source in enumerate((pair.plain, pair.bound)):
        old = palettize(source, global_config(), output=tmp_path / f"{index}.mlpackage").path
        new = raise_target(old, tmp_path / f"{index}-raised.mlpackage", "iOS18")
        assert values_of(new) == values_of(old)
        dense = decompress(new, tmp_path / f"{index}-dense.mlpackage").path
        texts.append(canonical(judges.load_program(dense)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["convolutional", "control_flow"])
def test_lint_finds_the_same(name, stored, pair_of):
    pair = pair_of(name, stored)
    plain, bound = (lint(source).counts_by_rule for source in (pair.plain, pair.bound))
    if stored == "inline":  # duplicates that were one, and no file
        plain, bound = ({k: v for k, v in c.items() if k not in SIZES} for c in (plain, bound))
    assert bound == plain


SIZES = ("duplicate-weights", "unreferenced-bytes")


def two_readers(target: str = "iOS16") -> tuple[Any, np.ndarray]:
    """A model in which a weight of two linear layers, and another, are concatenated as well."""
    from coremltools.converters.mil import Builder as mb

    weight = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float16)

    def body(x: Any) -> Any:
        shared = mb.const(val=weight, name="shared")
        x = mb.linear(x=x, weight=shared, name="first")
        x = mb.linear(x=x, weight=shared, name="second")
        both = mb.concat(values=[x, shared, shared], axis=0, name="joined")
        return mb.reduce_sum(x=both, axes=[0])

    return converted(body, (2, 64), target), weight


@pytest.mark.parametrize("keep", [True, False])
def test_names_rules_and_sharing(keep, tmp_path):
    """Four bindings of one blob, or three beside a constant that one operation still reads."""
    model, weight = two_readers()

    def change(spec: Any, weights: Path) -> None:
        const = operation(spec, "shared")
        first = operation(spec, "first").inputs["weight"].arguments[0]
        bind_values(spec, weights, stored="file")
        if keep:
            body_of(spec).operations.insert(0, const)
            operation(spec, "first").inputs["weight"].arguments[0].CopyFrom(first)

    edit(model, tmp_path / "source.mlpackage", change)
    names = {"second_weight_0", "joined_values_1", "joined_values_2"}
    names |= {"shared"} if keep else {"first_weight_0"}
    (row,) = inspect_weights(tmp_path / "source.mlpackage", min_size=2048).rows
    assert row.consumers == ("linear(first)", "linear(second)", "concat(joined)")
    assert row.name == ("shared" if keep else "first_weight_0")
    output = tmp_path / "output.mlpackage"
    config = OptimizationConfig(
        global_config=None,
        op_name_configs=by_name({"joined_values_2": {"nbits": 4}}).op_name_configs,
    )
    report = palettize(tmp_path / "source.mlpackage", config, output=output, strict=True).report
    assert len(report.palettized) == 1
    found = judges.decompressed_constants(output)
    assert names <= set(found)
    assert len({found[name].tobytes() for name in names}) == 1
    assert not np.array_equal(found["second_weight_0"], weight)
    spec, _ = judges.spec_and_weights(output)
    offsets = {
        op.attributes["indices"].blobFileValue.offset
        for op in judges.operations(spec.mlProgram.functions["main"])
        if op.type == "constexpr_lut_to_dense"
    }
    assert len(offsets) == 1
    assert (output / WEIGHTS).stat().st_size < 4096
    for name in names:
        left = palettize(
            tmp_path / "source.mlpackage",
            OptimizationConfig(
                global_config=global_config().global_config, op_name_configs={name: None}
            ),
            strict=True,
        )
        assert not left.report.palettized


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    model, weight = two_readers()

    def change(spec: Any, weights: Path) -> None:
        bind_values(spec, weights, stored="file")
        taken = operation(spec, "second")
        taken.outputs[0].name = "first_weight_0"
        operation(spec, "joined").inputs["values"].arguments[0].name = "first_weight_0"

    edit(model, tmp_path / "source.mlpackage", change)
    (row,) = inspect_weights(tmp_path / "source.mlpackage", min_size=2048).rows
    assert row.name == "first_weight_0_1"
    raised = raise_target(tmp_path / "source.mlpackage", tmp_path / "raised.mlpackage", "iOS17")
    np.testing.assert_array_equal(judges.decompressed_constants(raised)["first_weight_0_1"], weight)


def test_operations_without_a_name_are_called_by_their_output(tmp_path):
    """go-coreml writes no name attributes."""
    model, _ = two_readers()

    def change(spec: Any, weights: Path) -> None:
        bind_values(spec, weights, stored="inline")
        for op in body_of(spec).operations:
            del op.attributes["name"]

    edit(model, tmp_path / "source.mlpackage", change)
    (tmp_path / "source.mlpackage" / WEIGHTS).unlink()
    result = palettize(
        tmp_path / "source.mlpackage", global_config(), output=tmp_path / "output.mlpackage"
    )
    names = [row.name for row in result.report.palettized]
    assert names == ["first_weight_0", "second_weight_0", "joined_values_1", "joined_values_2"]
    assert set(names) <= set(judges.decompressed_constants(result.path))
    dense = decompress(result.path, tmp_path / "dense.mlpackage").path
    assert_equal_outputs(result.path, dense)


def test_options_stay_values(tmp_path):
    """What is no weight stays where it is, so that the message stays what it was."""
    model, _ = two_readers()

    def change(spec: Any, weights: Path) -> None:
        bind_values(spec, weights, stored="file")

    edit(model, tmp_path / "source.mlpackage", change)
    raised = raise_target(tmp_path / "source.mlpackage", tmp_path / "raised.mlpackage", "iOS16")
    spec, _ = judges.spec_and_weights(raised)
    assert operation(spec, "joined").inputs["axis"].arguments[0].HasField("value")
    assert judges.messages_equal_except(tmp_path / "source.mlpackage", raised) == []


def test_joint_compression_of_bound_parts(tmp_path):
    """A quantized weight whose parts are values, beside a plain one that is a value as well."""
    from coremltools.converters.mil import Builder as mb

    generator = np.random.default_rng(5)
    data = generator.integers(-128, 128, (64, 64)).astype(np.int8)
    plain = generator.standard_normal((64, 64)).astype(np.float16)

    def body(x: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(
            data=data, scale=np.full((64, 1), 0.01, np.float16), name="quantized"
        )
        x = mb.linear(x=x, weight=weight, name="first")
        return mb.linear(x=x, weight=mb.const(val=plain, name="plain"), name="second")

    edit(
        converted(body, (2, 64), "iOS18"),
        tmp_path / "source.mlpackage",
        functools.partial(bind_values, stored="file"),
    )
    result = palettize(
        tmp_path / "source.mlpackage",
        global_config(),
        output=tmp_path / "output.mlpackage",
        joint_compression=True,
    )
    assert {row.name for row in result.report.palettized} == {"quantized", "second_weight_0"}
    assert {"quantized", "second_weight_0"} <= set(judges.decompressed_constants(result.path))
    dense = decompress(result.path, tmp_path / "dense.mlpackage").path
    assert_equal_outputs(result.path, dense)


def test_attributes_that_are_no_parameters_are_kept(tmp_path):
    model, weight = two_readers()

    def change(spec: Any, weights: Path) -> None:
        remark = operation(spec, "first").attributes["remark"]
        remark.CopyFrom(operation(spec, "shared").attributes["val"])

    edit(model, tmp_path / "source.mlpackage", change)
    result = palettize(
        tmp_path / "source.mlpackage", global_config(), output=tmp_path / "output.mlpackage"
    )
    reasons = {row.name: row.reason for row in result.report.kept}
    assert reasons["first.remark"] == "an attribute of its operation"
    (value,) = [
        c.value()
        for program in open_package(result.path).programs
        for c in program.constants()
        if c.name == "first.remark"
    ]
    np.testing.assert_array_equal(value, weight)
