"""Nothing but the chosen weights differs, message for message, on models of every kind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, decompress_weights, palettize
from tests import judges, models
from tests.coreml.conftest import by_name, global_config, operations_by_name, quietly, stored

CASES = [
    *((kind, "iOS15", "float16") for kind in models.kinds("iOS15")),
    *((kind, "iOS18", "float16") for kind in models.kinds("iOS18")),
    *((kind, "iOS16", "float32") for kind in models.kinds("iOS16")),
    ("redefined", "iOS17", "float16"),
]
FORMS = {
    "per tensor": {"nbits": 4},
    "vectors in groups, scaled": {
        "nbits": 3,
        "granularity": "per_grouped_channel",
        "group_size": 8,
        "on_indivisible": "divisor",
        "cluster_dim": 2,
        "enable_per_channel_scale": True,
    },
}
NEEDS_AXIS = FORMS["vectors in groups, scaled"]


def digest(package: Path) -> dict[str, str]:
    """Every file of a package by its relative path, with a digest of its bytes."""
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in package.rglob("*")
        if path.is_file()
    }


def constants(package: Path) -> dict[str, np.ndarray]:
    """coremltools' own reading, without the values in operations, which it only numbers."""
    found = judges.decompressed_constants(package)
    return {name: v for name, v in found.items() if not re.search(r"(^|/)const_\d+$", name)}


def requests():
    for kind, target, precision in CASES:
        yield pytest.param(kind, target, precision, "per tensor", id=f"{kind}-{target}-{precision}")
        if target == "iOS18":
            yield pytest.param(kind, target, precision, "vectors in groups, scaled")


@pytest.mark.parametrize(("kind", "target", "precision", "request_name"), [*requests()])
@pytest.mark.covering(1)
def test_only_chosen_weights_differ(kind, target, precision, request_name, package_of, tmp_path):
    source = package_of(kind, target, precision)
    before = digest(source)
    options = FORMS[request_name]
    result = palettize(source, global_config(**options), output=tmp_path / "out.mlpackage")
    assert digest(source) == before

    changed = {row.name for row in result.report.palettized}
    assert len(changed) >= (1 if kind in ("redefined", "pipeline", "classifier") else 2)
    raised = target == "iOS15"
    assert (result.report.target_after != result.report.target_before) == raised
    differences = judges.messages_equal_except(source, result.path, changed, raised=raised)
    assert differences == []

    # coremltools loads it, checks types, and has the old numbers for all that was kept
    old, new = constants(source), constants(result.path)
    compared = set()
    for key, value in old.items():
        name = key.rpartition("/")[2]
        assert new[key].dtype == value.dtype
        assert new[key].shape == value.shape
        if name not in changed:
            assert new[key].tobytes() == value.tobytes(), key
            compared.add(key)
        else:
            error = np.square(value.astype(float) - new[key].astype(float)).sum()
            # An incorrect table or a shuffled weight is no nearer than zeros.
            assert error < np.square(value.astype(float)).sum() * (
                0.25 if options["nbits"] > 3 else 0.7
            )
    assert compared
    extra = set(new) - set(old)
    # coremltools makes constants of what a constexpr operation holds, and lists them as well.
    parts = re.compile(r"_palettized$|_(indices|lut|shape|scale|vector_axis)_\d+$")
    gained = {name for name in extra if not parts.search(name)}
    assert bool(gained) <= raised, gained


@pytest.mark.parametrize(
    ("kind", "target"),
    [("convolutional", "iOS15"), ("transformer", "iOS18"), ("pipeline", "iOS18")],
)
def test_a_configuration_that_asks_for_nothing_changes_nothing(kind, target, package_of, tmp_path):
    source = package_of(kind, target)
    result = palettize(source, OptimizationConfig(), output=tmp_path / "out.mlpackage")
    assert judges.messages_equal_except(source, result.path) == []
    assert {row.outcome for row in result.report} == {"kept"}
    assert (result.report.target_before, result.report.target_after) == (target, target)
    weights = [path for path in digest(source) if path.endswith(".bin")]
    assert weights
    for path in weights:
        # Blobs that coremltools stored twice are stored once.
        assert (result.path / path).stat().st_size <= (source / path).stat().st_size
    other = set(digest(source)) - set(weights)
    assert {p for p in digest(result.path)} == set(digest(source))
    manifest = "Manifest.json"
    assert manifest in other
    assert (result.path / manifest).read_bytes() == (source / manifest).read_bytes()


@pytest.mark.parametrize("kind", ["stateful", "multifunction"])
def test_a_second_run_finds_everything_compressed(kind, package_of, tmp_path):
    once = palettize(
        package_of(kind, "iOS18"), global_config(nbits=2), output=tmp_path / "a.mlpackage"
    )
    twice = palettize(once.path, global_config(nbits=2), output=tmp_path / "b.mlpackage")
    assert judges.messages_equal_except(once.path, twice.path) == []
    reasons = {row.category for row in twice.report}
    assert "compressed already" in reasons
    assert {row.name for row in once.report} == {row.name for row in twice.report}
    assert not twice.report.palettized


# --- several functions, several models ------------------------------------------------------------


def test_a_shared_weight_is_compressed_once_and_stays_shared(package_of, tmp_path):
    source = package_of("multifunction", "iOS18")
    result = palettize(source, global_config(**NEEDS_AXIS), output=tmp_path / "out.mlpackage")
    names = {"first_weight_to_fp16": 2, "second_weight_to_fp16": 2, "head_0_weight_to_fp16": 1}
    for name, functions in names.items():
        rows = [row for row in result.report if row.name == name]
        assert len(rows) == 3 - functions
        assert all(len(row.functions) == functions for row in rows)
        assert all(row.is_palettized for row in rows)

    def offsets(function, name):
        found = {}
        ops = operations_by_name(result.path, function)
        for op in (ops[name], ops[f"{name}_palettized"]):
            for key, argument in op.inputs.items():
                value = argument.arguments[0].value
                if value.WhichOneof("value") == "blobFileValue":
                    found[key] = value.blobFileValue.offset
        return found

    for name, functions in names.items():
        base, adapted = offsets("base", name), offsets("adapted", name)
        assert set(base) == {"indices", "lut", "scale"}
        assert (base == adapted) == (functions == 2), name

    # The file holds each shared palette once: it is as large as the parts that differ.
    _, folder = judges.spec_and_weights(result.path)
    size = (folder / "weight.bin").stat().st_size
    blobs = 0
    seen = set()
    spec, _ = judges.spec_and_weights(result.path)
    for function in spec.mlProgram.functions.values():
        for op in judges.operations(function):
            for value in (
                *op.attributes.values(),
                *(b.value for a in op.inputs.values() for b in a.arguments),
            ):
                if value.HasField("blobFileValue") and value.blobFileValue.offset not in seen:
                    seen.add(value.blobFileValue.offset)
                    blobs += (
                        64 + -(-len(judges.read_blob(folder, value.blobFileValue)[2]) // 64) * 64
                    )
    assert size <= 64 + blobs
    assert result.report.bytes_after < result.report.bytes_before / 2


def test_each_function_reads_its_own_numbers(package_of, tmp_path):
    source = package_of("multifunction", "iOS18")
    result = palettize(source, global_config(nbits=8), output=tmp_path / "out.mlpackage")
    before, after = constants(source), constants(result.path)
    for function in ("base", "adapted"):
        for name in ("first", "second", "head_0"):
            key = f"{function}/{name}_weight_to_fp16"
            np.testing.assert_allclose(
                after[key].astype(float), before[key].astype(float), atol=0.02
            )
    assert (after["base/head_0_weight_to_fp16"] != after["adapted/head_0_weight_to_fp16"]).any()


def test_a_pipeline_keeps_a_weight_file_for_each_model(package_of, tmp_path):
    source = package_of("pipeline", "iOS18")
    result = palettize(source, global_config(**NEEDS_AXIS), output=tmp_path / "out.mlpackage")
    assert set(digest(source)) == set(digest(result.path))
    assert [row.name for row in result.report.palettized] == ["linear_weight_to_fp16"] * 2
    before, after = constants(source), constants(result.path)
    for index in "01":
        key = f"{index}/linear_weight_to_fp16"
        assert before[key].shape == after[key].shape
        correlation = np.corrcoef(
            before[key].ravel().astype(float), after[key].ravel().astype(float)
        )
        assert correlation[0, 1] > 0.8


# --- what a message may carry beside operations ---------------------------------------------------


@pytest.fixture
def decorated(package_of, tmp_path):
    """A package with doc strings, build information, unknown attributes, fields and operations."""
    from coremltools.proto import MIL_pb2

    source = tmp_path / "decorated.mlpackage"
    shutil.copytree(package_of("classifier", "iOS16"), source)
    path = source / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    text = MIL_pb2.Value()
    text.type.tensorType.dataType = MIL_pb2.DataType.STRING
    text.immediateValue.tensor.strings.values.append("a word")
    text.docString = "what the word is for"
    program = spec.mlProgram
    program.docString = "a program"
    program.attributes["buildInfo"].CopyFrom(text)
    function = program.functions["main"]
    function.attributes["mood"].CopyFrom(text)
    (block,) = function.block_specializations.values()
    block.attributes["colour"].CopyFrom(text)
    for op in block.operations:
        op.attributes["remark"].CopyFrom(text)
    strange = block.operations.add(type="teleport")
    strange.inputs["x"].arguments.add(name=block.operations[-2].outputs[0].name)
    strange.inputs["plan"].arguments.add().value.CopyFrom(text)
    strange.outputs.add(name="elsewhere", type=block.operations[-2].outputs[0].type)
    strange.attributes["name"].CopyFrom(text)
    strange.blocks.add(outputs=["elsewhere"])
    # A field that these messages do not have: number 15, of two bytes.
    path.write_bytes(spec.SerializeToString() + bytes([15 << 3 | 2, 2, 7, 7]))
    return source


def test_doc_strings_attributes_unknown_operations_and_fields_survive(decorated, tmp_path):
    from google.protobuf.unknown_fields import UnknownFieldSet

    result = palettize(decorated, global_config(), output=tmp_path / "out.mlpackage")
    changed = {row.name for row in result.report.palettized}
    assert changed == {"first_weight_to_fp16"}
    before, _ = judges.spec_and_weights(decorated)
    after, _ = judges.spec_and_weights(result.path)
    # The judge lets a changed operation differ, the other attributes of it are looked at here.
    assert judges.messages_equal_except(decorated, result.path, changed) == []
    op = operations_by_name(result.path)["first_weight_to_fp16"]
    assert op.attributes["remark"].docString == "what the word is for"
    assert after.mlProgram.docString == "a program"
    assert after.mlProgram.attributes["buildInfo"] == before.mlProgram.attributes["buildInfo"]
    assert "teleport" in [
        each.type for each in judges.operations(after.mlProgram.functions["main"])
    ]
    assert [f.field_number for f in UnknownFieldSet(after)] == [15]
    assert after.description == before.description
    metadata = after.description.metadata
    assert (metadata.author, metadata.license) == ("A. Author", "BSD-3-Clause")
    assert dict(metadata.userDefined)["trained on"] == "nothing at all"
    assert dict(metadata.userDefined)["empty"] == ""


def test_class_labels_survive(package_of, tmp_path):
    source = package_of("classifier", "iOS18")
    result = palettize(source, global_config(**NEEDS_AXIS), output=tmp_path / "out.mlpackage")

    def labels(package):
        spec, _ = judges.spec_and_weights(package)
        return [
            list(op.inputs["classes"].arguments[0].value.immediateValue.tensor.strings.values)
            or op.inputs["classes"].arguments[0].name
            for op in judges.operations(spec.mlProgram.functions["main"])
            if op.type == "classify"
        ]

    assert labels(result.path) == labels(source) != []
    names = json.dumps(str(judges.spec_and_weights(result.path)[0].description))
    assert "classLabel" in names


def test_metadata_edited_in_memory_is_kept(package_of):
    from mlopt.coreml import palettize_weights

    model = quietly(ct.models.MLModel, str(package_of("classifier", "iOS16")), skip_model_load=True)
    model.author = "Somebody Else"
    model.user_defined_metadata["note"] = "written later"
    model.short_description = "Edited."
    before = model.get_spec().SerializeToString(deterministic=True)
    smaller = palettize_weights(model, global_config())
    assert model.get_spec().SerializeToString(deterministic=True) == before
    assert smaller.author == "Somebody Else"
    assert smaller.user_defined_metadata["note"] == "written later"
    assert smaller.short_description == "Edited."
    assert judges.messages_equal_except(model, smaller, ["first_weight_to_fp16"]) == []
    dense = decompress_weights(smaller)
    assert judges.messages_equal_except(model, dense, ["first_weight_to_fp16"]) != []
    assert dense.author == "Somebody Else"


# --- weights with more than one reader ------------------------------------------------------------


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_a_tied_weight_gets_one_decision(target, package_of, tmp_path):
    """The embedding is read by a gather and by the linear operation at the end."""
    source = package_of("transformer", target)
    options = NEEDS_AXIS if target == "iOS18" else {"nbits": 2}
    result = palettize(source, global_config(**options), output=tmp_path / "out.mlpackage")
    row = result.report["embedding_weight_to_fp16"]
    assert row.is_palettized
    assert sorted(consumer.partition("(")[0] for consumer in row.consumers) == ["gather", "linear"]
    value = constants(source)["embedding_weight_to_fp16"]
    palette = stored(result.path, "embedding_weight_to_fp16")
    if target == "iOS18":  # scaled once, by the rows
        np.testing.assert_array_equal(palette.scale, np.abs(value).max(1, keepdims=True))
        np.testing.assert_array_equal(
            constants(result.path)["embedding_weight_to_fp16"], palette.dense
        )


def test_users_of_a_tied_weight_with_different_rules_get_the_careful_one(package_of, tmp_path):
    source = package_of("transformer", "iOS18")
    bits = {"linear": 2, "gather": 6}
    config = OptimizationConfig(
        op_type_configs={kind: OpPalettizerConfig(nbits=n) for kind, n in bits.items()}
    )
    row = palettize(source, config, output=tmp_path / "a.mlpackage").report[
        "embedding_weight_to_fp16"
    ]
    assert row.nbits == 6
    assert row.reason == "op_type_configs['gather']"
    assert "the more careful one wins" in row.note
    config.set_op_type("linear", None)
    row = palettize(source, config, output=tmp_path / "b.mlpackage").report[
        "embedding_weight_to_fp16"
    ]
    assert not row.is_palettized
    assert row.reason == "left alone by op_type_configs['linear']"
    assert "the more careful one wins" in row.note
    name = next(c for c in row.consumers if c.startswith("gather"))
    config.set_op_name(name.partition("(")[2][:-1], OpPalettizerConfig(nbits=1))
    row = palettize(source, config, output=tmp_path / "c.mlpackage").report[
        "embedding_weight_to_fp16"
    ]
    assert row.nbits == 1
    assert "the more specific one wins" in row.note


def test_an_axis_on_which_users_disagree_matters_only_where_one_is_needed(package_of, tmp_path):
    source = package_of("matmuls", "iOS18")
    plain = palettize(source, by_name({"both": {"nbits": 4}}), output=tmp_path / "a.mlpackage")
    assert plain.report["both"].is_palettized
    for index, options in enumerate(
        (
            {"granularity": "per_grouped_channel", "group_size": 8},
            {"cluster_dim": 2},
            {"enable_per_channel_scale": True},
            {"granularity": "per_grouped_channel", "group_size": 8, "channel_axis": 0}
            | {"enable_per_channel_scale": True},
        )
    ):
        path = tmp_path / f"{index}.mlpackage"
        row = palettize(source, by_name({"both": {"nbits": 4} | options}), output=path).report[
            "both"
        ]
        assert not row.is_palettized
        assert row.category == "its users want different channel axes"
        assert "([0, 1])" in row.reason
        assert "matmul" in row.reason
        assert judges.messages_equal_except(source, path) == []
    given = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 8, "channel_axis": -1}
    told = palettize(source, by_name({"both": given}), output=tmp_path / "told.mlpackage")
    assert told.report["both"].is_palettized
    assert stored(told.path, "both").table.shape == (1, 8, 16, 1)


def test_masks_keep_their_infinities(package_of, tmp_path):
    for target in ("iOS15", "iOS18"):
        source = package_of("transformer", target)
        result = palettize(source, global_config(), output=tmp_path / f"{target}.mlpackage")
        assert result.report["layers_0_mask_to_fp16"].category == "infinity or NaN"
        assert result.report["layers_1_mask_to_fp16"].category == "attention mask"
        new = constants(result.path)
        assert np.isneginf(new["layers_0_mask_to_fp16"]).sum() == 48 * 47 // 2
        assert new["layers_1_mask_to_fp16"].min() == np.float16(-1e4)
