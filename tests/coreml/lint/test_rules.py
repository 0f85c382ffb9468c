"""Every rule of the lint, found where it applies and silent where it just does not."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import coremltools as ct
import coremltools.optimize.coreml as reference
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

import mlopt
from mlopt.coreml import lint, palettize
from mlopt.coreml.lint import RULES, rules_target
from mlopt.errors import ConfigError, ModelFormatError, TargetError
from mlopt.mil import constexpr_forms
from mlopt.mil.messages import MIL_pb2, Model_pb2
from mlopt.mil.targets import Target
from tests import judges
from tests.coreml.conftest import by_name, chain, converted, global_config, quietly, saved

UNSIGNED = {2: types.np_uint2_dtype, 4: types.np_uint4_dtype, 8: np.uint8}
GENERATOR = np.random.default_rng(7)


# --- models


def normal(*shape: int) -> np.ndarray:
    return (GENERATOR.standard_normal(shape) / 8).astype(np.float16)


def lut(*groups: int, shape=(64, 64), nbits=4, used=None, table=None, name="w") -> Any:
    """A palettized weight: indices below `used` (None: all), tables for `groups`."""
    count = int(np.prod(shape))
    indices = GENERATOR.permutation(np.arange(count) % (used or 1 << nbits)).reshape(shape)
    if table is None:
        table = normal(*groups, 1 << nbits, 1)
    return mb.constexpr_lut_to_dense(indices=indices.astype(UNSIGNED[nbits]), lut=table, name=name)


def linear(weight: Callable[[], Any], target="iOS18", width=64) -> Any:
    return converted(lambda x: mb.linear(x=x, weight=weight()), (1, width), target)


def convolution(shape, groups=1, stride=1) -> Any:
    def body(x):
        weight = lut(1, 1, 1, 1, shape=shape)
        return mb.conv(x=x, weight=weight, groups=groups, strides=[stride, stride])

    return converted(body, (1, shape[1] * groups, 16, 16), "iOS18")


def quantized(offset_dtype=None, width=64) -> Any:
    def weight():
        data = GENERATOR.integers(-128, 128, (64, width)).astype(np.int8)
        scale = np.abs(normal(64, 1)) + np.float16(0.01)
        offset = None if offset_dtype is None else np.ones((64, 1), offset_dtype)
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset, name="w")

    return linear(weight, width=width)


def integer_table() -> Any:
    def weight():
        table = mb.constexpr_blockwise_shift_scale(
            data=np.arange(16, dtype=np.int8).reshape(1, 1, 16, 1),
            scale=np.full((1, 1, 1, 1), 0.25, np.float16),
        )
        return lut(1, 1, table=table)

    return linear(weight)


def sparse(share: float, nbits: int | None = None) -> Any:
    """A weight of which `share` is not zero; with tables for the rest if `nbits` is given."""

    def weight():
        mask = (np.arange(64 * 64) < share * 64 * 64).reshape(64, 64)
        count = int(mask.sum())
        bits = mask.astype(types.np_uint1_dtype)
        if nbits is None:
            values = normal(count)
        else:
            indices = (np.arange(count) % (1 << nbits)).astype(UNSIGNED[nbits])
            bits, values = mb.constexpr_lut_to_sparse(
                indices_mask=bits, indices_nonzero_data=indices, lut=normal(1, 1, 1 << nbits, 1)
            )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits, name="w")

    return linear(weight)


def plain(dtype="float16", target="iOS18", rows=64, count=1) -> Any:
    return chain({f"w{i}": normal(64, 64)[:rows].astype(dtype) for i in range(count)}, target)


def palettized(model: Any, config: Any, path: Path) -> Path:
    source = saved(model, path.with_name("source.mlpackage"))
    return palettize(source, config, output=path).path


def edited(path: Path, edit: Callable[[Any, dict[str, Any]], None]) -> Path:
    """A package whose message was changed by `edit(model, operations by output)`."""
    file = next(path.rglob("model.mlmodel"))
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (function,) = spec.mlProgram.functions.values()
    edit(spec, {op.outputs[0].name: op for op in judges.operations(function) if op.outputs})
    file.write_bytes(spec.SerializeToString())
    return path


def reshape(parameter: str, *shape: int) -> Callable[[Any, dict[str, Any]], None]:
    """Change the declared shape of a parameter of the weight ``w``, of as many elements."""

    def edit(spec, ops):
        tensor = ops["w"].inputs[parameter].arguments[0].value.type.tensorType
        for dimension, size in zip(tensor.dimensions, shape, strict=True):
            dimension.constant.size = size

    return edit


# --- one case that a rule finds, and one close to it that it does not, for every rule


@attrs.frozen
class Case:
    """A model, an edit of its package, the target to check for, and what is to be found."""

    model: Callable[[], Any]
    what: str = ""
    count: int = 1
    edit: Any = attrs.field(default=None, kw_only=True)
    target: Any = None
    config: Any = None

    def package(self, folder: Path) -> Path:
        path = folder / "model.mlpackage"
        if self.config is None:
            saved(self.model(), path)
        else:
            palettized(self.model(), self.config, path)
        return edited(path, self.edit) if self.edit is not None else path


def reference_palettized(nbits: int) -> Any:
    config = reference.OptimizationConfig(
        global_config=reference.OpPalettizerConfig(nbits=nbits, mode="uniform", weight_threshold=0)
    )
    return quietly(reference.palettize_weights, plain(target="iOS16"), config)


def eight_entries(spec, ops):
    (op,) = (op for op in ops.values() if op.type == "constexpr_lut_to_dense")
    value = op.attributes["lut"]
    value.type.tensorType.dimensions[0].constant.size = 8
    value.immediateValue.tensor.bytes.values = bytes(16)


def bf16_table(spec, ops):
    ops["w"].inputs["lut"].arguments[0].value.type.tensorType.dataType = MIL_pb2.BFLOAT16


def without_axis(spec, ops):
    del ops["w0"].inputs["vector_axis"]


def with_output(spec, ops):
    body = spec.mlProgram.functions["main"]
    body.block_specializations[body.opset].outputs.append("w")


def input_of(dtype):
    def edit(spec, ops):
        spec.description.input[0].type.multiArrayType.dataType = dtype

    return edit


def second_unread(spec, ops):
    for op in ops.values():
        if "weight" in op.inputs:
            op.inputs["weight"].arguments[0].name = "w0"


def newer_opset(spec, ops):
    body = spec.mlProgram.functions["main"]
    body.block_specializations["CoreML8"].CopyFrom(body.block_specializations[body.opset])
    body.opset = "CoreML8"


def pixel_unshuffle() -> Any:
    return converted(
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), (1, 1, 8, 8), "iOS16"
    )


def grouped(*groups: int, **options: Any) -> Callable[[], Any]:
    return lambda: linear(lambda: lut(*groups, **options))


def matmul_by_columns() -> Any:
    return converted(lambda x: mb.matmul(x=x, y=lut(1, 4), transpose_y=False), (1, 64), "iOS18")


def halves(body: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: converted(body, (1, 64), "iOS17")


def mean_square(x: Any) -> Any:
    return mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)


def looked_up(rows: int) -> Callable[[], Any]:
    table = np.ones((rows, 2), np.float16)

    def body(x):
        places = mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="int16")
        return mb.gather(x=table, indices=places, axis=0, validate_indices=False)

    return lambda: converted(body, (1, 4), "iOS17", dtype="fp32")


def with_infinity() -> Any:
    table = normal(1, 1, 16, 1)
    table[0, 0, 3] = -np.inf
    return linear(lambda: lut(table=table))


GOOD = grouped(4, 1)
VECTORS = global_config(cluster_dim=2)
FLOAT16, INT8 = 65552, 131080  # ArrayFeatureType

FOUND = {
    "table-size": Case(lambda: reference_palettized(4), "3 bits", edit=eight_entries),
    "table-groups": Case(
        lambda: linear(lambda: lut(4, 1, shape=(64, 62)), width=62),
        "[1, 4, 16, 1] for indices of shape [64, 62]",
        edit=reshape("lut", 1, 4, 16, 1),
    ),
    "vector-axis": Case(plain, "vectors of 2", edit=without_axis, config=VECTORS),
    "table-type": Case(GOOD, "bf16", edit=bf16_table),
    "scale-blocks": Case(
        lambda: quantized(width=48), "[1, 64] for data", edit=reshape("scale", 1, 64)
    ),
    "not-finite-table": Case(with_infinity, "1 stored number"),
    "compressed-block-output": Case(GOOD, "returns", edit=with_output),
    "float-scale-on-float-data": Case(
        plain, "fp16", config=global_config(enable_per_channel_scale=True)
    ),
    "float-zero-point": Case(lambda: quantized(np.float16), "int8 data with fp16 offsets"),
    "table-per-block": Case(grouped(4, 2), "4x2 tables"),
    "table-along-other-axis": Case(grouped(1, 4), "axis 1; output channels are on 0"),
    "group-size": Case(grouped(16, 1), "groups of 4 channels"),
    "integer-table": Case(integer_table, "scaled integers"),
    "palettized-depthwise-conv": Case(lambda: convolution((32, 1, 3, 3), groups=32), "32 channels"),
    "palettized-large-stride": Case(lambda: convolution((16, 8, 4, 4), stride=4), "stride 4"),
    "compressed-larger-than-plain": Case(
        lambda: linear(lambda: lut(1, 1, shape=(16, 16), nbits=8), width=16),
        "768 B compressed, 512 B plain",
    ),
    "sparse-larger-than-dense": Case(lambda: sparse(0.97), "8.5 kB, all values 8.2 kB"),
    "partly-filled-table": Case(grouped(1, 1, used=8), "4 bits, 3 would do: 512 B of 2.0 kB"),
    "uncompressed-share": Case(
        functools.partial(plain, count=2), "w1 (8.2 kB)", config=by_name({"w0": {"nbits": 4}})
    ),
    "float32-weights": Case(lambda: plain("float32"), "16.4 kB"),
    "duplicate-weights": Case(functools.partial(plain, count=3), "stored 2 times, again for w2"),
    "unread-weight": Case(functools.partial(plain, count=2), "8.2 kB unread", edit=second_unread),
    "unreferenced-bytes": Case(plain, "8.0 kB of Data"),
    "newer-than-target": Case(plain, "version 9 is for iOS18", count=2, target="iOS17"),
    "operation-newer-than-target": Case(pixel_unshuffle, "from iOS16 on", target="iOS15"),
    "compression-newer-than-target": Case(
        GOOD, "needs iOS18: 4-bit indices, 4 tables of fp16", target="iOS17"
    ),
    "interface-newer-than-target": Case(
        lambda: plain(target="iOS15"), "array of float16", edit=input_of(FLOAT16)
    ),
    "decompressed-at-load": Case(
        lambda: plain(target="iOS16"),
        "2.1 kB of compressed weights take",
        config=global_config(),
    ),
    "elementwise-constant": Case(
        lambda: converted(lambda x: mb.add(x=x, y=lut(1, 1)), (64, 64), "iOS18"),
        "palettized, 8.2 kB before; op_name_configs: {w: null}",
    ),
    "epsilon-lost-in-float16": Case(
        halves(lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(1e-12))), "0 in float16"
    ),
    "beyond-float16": Case(
        halves(lambda x: mb.softmax(x=mb.add(x=x, y=np.full(64, -np.inf, np.float16)))),
        "rows of infinities",
    ),
    "squares-in-float16": Case(halves(mean_square), "squares are summed"),
    "exponentials-in-float16": Case(halves(lambda x: mb.softplus(x=x)), "softplus in float16"),
    "narrowing-cast": Case(looked_up(40000), "indices into 40,000 rows"),
}

SILENT = {
    "table-size": Case(lambda: reference_palettized(4)),
    "table-groups": Case(GOOD),
    "vector-axis": Case(plain, config=VECTORS),
    "table-type": Case(GOOD),
    "scale-blocks": Case(quantized),
    "not-finite-table": Case(GOOD),
    "compressed-block-output": Case(GOOD),
    "float-scale-on-float-data": Case(quantized),
    "float-zero-point": Case(lambda: quantized(np.int8)),
    "table-per-block": Case(grouped(1, 4)),
    "table-along-other-axis": Case(matmul_by_columns),
    "group-size": Case(grouped(8, 1)),
    "integer-table": Case(GOOD),
    "palettized-depthwise-conv": Case(lambda: convolution((32, 32, 3, 3))),
    "palettized-large-stride": Case(lambda: convolution((16, 8, 4, 4), stride=2)),
    "compressed-larger-than-plain": Case(grouped(1, 1, nbits=8)),
    "sparse-larger-than-dense": Case(lambda: sparse(0.9)),
    "partly-filled-table": Case(grouped(1, 1, used=9)),
    "uncompressed-share": Case(functools.partial(plain, count=2)),
    "float32-weights": Case(plain),
    "duplicate-weights": Case(functools.partial(plain, count=3)),
    "unread-weight": Case(functools.partial(plain, count=2)),
    "unreferenced-bytes": Case(plain),
    "newer-than-target": Case(plain, target="iOS18"),
    "operation-newer-than-target": Case(pixel_unshuffle, target="iOS16"),
    "compression-newer-than-target": Case(lambda: reference_palettized(4), target="iOS16"),
    "interface-newer-than-target": Case(plain, edit=input_of(FLOAT16)),
    "decompressed-at-load": Case(lambda: reference_palettized(4), target="iOS17"),
    "elementwise-constant": Case(GOOD),
    "epsilon-lost-in-float16": Case(
        halves(lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(1e-5)))
    ),
    "beyond-float16": Case(
        halves(lambda x: mb.softmax(x=mb.add(x=x, y=np.full(64, -1e4, np.float16))))
    ),
    "squares-in-float16": Case(
        lambda: converted(mean_square, (1, 64), "iOS17", dtype="fp32"),
    ),
    "exponentials-in-float16": Case(halves(lambda x: mb.softmax(x=x))),
    "narrowing-cast": Case(looked_up(32768)),
}


def weight_file(path: Path) -> Path:
    return next(path.rglob("weight.bin"))


def copy_first_blob_over_third(path: Path) -> None:
    spec, _ = judges.spec_and_weights(path)
    ops = {op.outputs[0].name: op for op in judges.operations(spec.mlProgram.functions["main"])}
    first, third = (ops[name].attributes["val"].blobFileValue.offset for name in ("w0", "w2"))
    content = bytearray(weight_file(path).read_bytes())
    content[third + 64 : third + 64 + 8192] = content[first + 64 : first + 64 + 8192]
    weight_file(path).write_bytes(content)


def append_to_weights(path: Path) -> None:
    with weight_file(path).open("ab") as file:
        file.write(bytes(8000))


def bf16_blob(path: Path) -> None:
    spec, _ = judges.spec_and_weights(path)
    ops = {op.outputs[0].name: op for op in judges.operations(spec.mlProgram.functions["main"])}
    offset = ops["w"].inputs["lut"].arguments[0].value.blobFileValue.offset
    content = bytearray(weight_file(path).read_bytes())
    content[offset + 4] = 5
    weight_file(path).write_bytes(content)


FILE_EDITS = {
    "table-type": bf16_blob,
    "duplicate-weights": copy_first_blob_over_third,
    "unreferenced-bytes": append_to_weights,
}


def test_every_rule_has_its_cases():
    others = {name for name, rule in RULES.items() if rule.check.__module__.endswith("rules_file")}
    assert set(FOUND) == set(SILENT) == set(RULES) - others  # those are in test_rules_file


@pytest.mark.parametrize("rule", FOUND)
def test_a_rule_finds_what_it_is_for(rule, tmp_path):
    path = FOUND[rule].package(tmp_path)
    if rule in FILE_EDITS:
        FILE_EDITS[rule](path)
    findings = list(lint(path, FOUND[rule].target, select=[rule]))
    assert len(findings) == FOUND[rule].count
    finding = findings[0]
    assert FOUND[rule].what in finding.what
    assert (finding.rule, finding.severity) == (rule, RULES[rule].severity)
    assert finding.why == RULES[rule].why
    assert finding.remedy
    assert (finding.source is None) or finding.certainty != "fact"


@pytest.mark.parametrize("rule", FOUND)
def test_a_rule_is_silent_where_it_just_does_not_apply(rule, tmp_path):
    path = SILENT[rule].package(tmp_path)
    assert list(lint(path, SILENT[rule].target, select=[rule])) == []


# --- rules closer


def test_a_clean_model_says_so(tmp_path):
    report = lint(saved(GOOD(), tmp_path / "good.mlpackage"))
    assert (list(report), len(report), bool(report)) == ([], 0, True)
    assert str(report) == "Nothing found. Target: iOS18."
    assert not report.has("note")


def test_sparse_palettes_are_compared_with_palettes(tmp_path):
    # 4096 weights: a mask of 512 bytes, and 4 bits for each that is not zero.
    for share, found in ((0.76, True), (0.74, False)):
        path = saved(sparse(share, nbits=4), tmp_path / f"{share}.mlpackage")
        assert bool(len(lint(path, select=["sparse-*"]))) is found


def test_sparse_palettes_keep_to_the_format(tmp_path):
    path = saved(sparse(0.5, nbits=4), tmp_path / "model.mlpackage")
    assert list(lint(path)) == []


def test_scaled_tables_of_floats_are_no_integers(tmp_path):
    def weight():
        table = mb.constexpr_blockwise_shift_scale(
            data=normal(1, 1, 16, 1), scale=np.full((1, 1, 1, 1), 0.25, np.float16)
        )
        return lut(1, 1, table=table)

    path = saved(linear(weight), tmp_path / "model.mlpackage")
    assert set(lint(path).counts_by_rule) == {"float-scale-on-float-data"}


def test_large_groups_are_a_note(tmp_path):
    path = saved(linear(lambda: lut(2, 1, shape=(128, 64))), tmp_path / "model.mlpackage")
    (finding,) = lint(path, select=["group-size"])
    assert (finding.severity, "groups of 64" in finding.what) == ("note", True)


def test_the_old_form_has_no_three_bits(tmp_path):
    def package(distinct):
        weight = GENERATOR.permutation(np.arange(64 * 64) % distinct).reshape(64, 64)
        model = chain({"w": weight.astype(np.float16)}, "iOS16")
        config = global_config(nbits=4)  # more than there are values
        return palettized(model, config, tmp_path / f"{distinct}.mlpackage")

    assert list(lint(package(8), select=["partly*"])) == []
    (finding,) = lint(package(4), select=["partly*"])
    assert "4 bits, 2 would do: 1.0 kB of 2.0 kB" in finding.what


def test_the_fullest_table_decides(tmp_path):
    indices = np.zeros((64, 64), int)
    indices[:32] = np.arange(64) % 3
    indices[32:] = np.arange(64) % 7

    def weight(table):
        return mb.constexpr_lut_to_dense(
            indices=indices.astype(types.np_uint4_dtype), lut=table, name="w"
        )

    table = normal(2, 1, 16, 1)
    path = saved(linear(lambda: weight(table)), tmp_path / "seven.mlpackage")
    (finding,) = lint(path, select=["partly*"])
    assert "3 would do" in finding.what
    table[1, 0, 3:7] = table[1, 0, 2]  # equal entries are one
    path = saved(linear(lambda: weight(table)), tmp_path / "three.mlpackage")
    (finding,) = lint(path, select=["partly*"])
    assert "2 would do" in finding.what


def test_a_function_newer_than_its_model(tmp_path):
    path = edited(saved(plain(target="iOS16"), tmp_path / "model.mlpackage"), newer_opset)
    version, opset = lint(path, "iOS16", select=["newer-than-target"])
    assert "specification version 9 is for iOS18" in version.what
    assert "opset CoreML8; iOS16 knows CoreML6" in opset.what
    assert opset.place.functions == ("main",)
    report = lint(path)
    assert (report.model_target, report.has("error")) == ("iOS18", True)
    (finding,) = report.of_rule("version-below-opset")
    assert "specification version 7, and opset CoreML8 belongs to 9" in finding.what


def test_int8_inputs_need_the_newest_target(tmp_path):
    path = edited(saved(plain(), tmp_path / "model.mlpackage"), input_of(INT8))
    (finding,) = lint(path, select=["interface*"])
    assert "int8, available from iOS26 on" in finding.what
    assert list(lint(path, "macOS26", select=["interface*"])) == []


@pytest.mark.parametrize("target", ["iOS17", "macos 14", ct.target.iOS17])
def test_targets_are_given_by_any_name(target, tmp_path):
    report = lint(saved(GOOD(), tmp_path / "model.mlpackage"), target)
    assert (report.target, report.model_target) == ("iOS17", "iOS18")
    assert report.counts_by_rule == {"newer-than-target": 2, "compression-newer-than-target": 1}
    assert report.summary() == "3 errors. Target: iOS17 (the model's own: iOS18)."


def test_an_unknown_target_is_refused(digits):
    with pytest.raises(TargetError, match="iOS99"):
        lint(digits, "iOS99")


# --- kinds of models


def test_functions_that_share_a_weight_give_one_finding(package_of, tmp_path):
    config = global_config(nbits=4, granularity="per_grouped_channel", group_size=2)
    path = palettize(package_of("multifunction", "iOS18"), config, output=tmp_path / "out").path
    report = lint(path, select=["group-size"])
    places = [(f.place.weight, f.place.functions) for f in report]
    assert sorted(places) == [
        ("first_weight_to_fp16", ("adapted", "base")),
        ("head_0_weight_to_fp16", ("adapted",)),  # two weights of one name
        ("head_0_weight_to_fp16", ("base",)),
        ("second_weight_to_fp16", ("adapted", "base")),
    ]
    (interface,) = lint(path, "iOS17", select=["interface*"])
    assert "several are available from iOS18 on" in interface.what


def test_the_models_of_a_pipeline_are_named(package_of, tmp_path):
    path = palettize(
        package_of("pipeline"), global_config(weight_threshold=0), output=tmp_path / "out"
    ).path
    models = {f.place.model for f in lint(path, "iOS15", select=["compression*"])}
    assert len(models) == 2
    assert "" not in models


def test_weights_in_nested_blocks_are_seen(package_of, tmp_path):
    source = package_of("control_flow")
    path = palettize(source, global_config(weight_threshold=0), output=tmp_path / "out").path
    constexprs = [
        op
        for op in judges.operations(judges.spec_and_weights(path)[0].mlProgram.functions["main"])
        if op.type.startswith("constexpr_")
    ]
    report = lint(path, "iOS15", select=["compression*"])
    assert sorted(f.place.weight for f in report) == sorted(op.outputs[0].name for op in constexprs)


@pytest.mark.parametrize("kind", ["convolutional", "transformer", "recurrent", "matmuls"])
def test_nothing_is_said_twice(kind, package_of, tmp_path):
    config = global_config(nbits=2, weight_threshold=0)
    path = palettize(package_of(kind), config, output=tmp_path / "out").path
    report = lint(path, "iOS15")
    said = [(f.rule, f.what, f.place) for f in report]
    assert len(set(said)) == len(said) > 0


@pytest.mark.parametrize("kind", ["convolutional", "transformer", "stateful", "classifier"])
def test_models_as_converted_have_no_errors(kind, package_of):
    path = package_of(kind, "iOS18")
    assert not lint(path).has("error")


def test_an_mlmodel_is_taken_too(tmp_path):
    model = GOOD()
    assert len(lint(model, "iOS17")) == len(lint(saved(model, tmp_path / "m.mlpackage"), "iOS17"))


def test_a_damaged_model_is_refused(tmp_path):
    path = saved(GOOD(), tmp_path / "model.mlpackage")
    without_table = Path(shutil.copytree(path, tmp_path / "table.mlpackage"))
    edited(without_table, lambda spec, ops: ops["w"].inputs.pop("lut"))
    with pytest.raises(ModelFormatError, match=r"constexpr_lut_to_dense 'w'.*'lut' is missing"):
        lint(without_table)
    weight_file(path).write_bytes(weight_file(path).read_bytes()[:200])
    with pytest.raises(ModelFormatError, match=r"weight\.bin"):
        lint(path)


def test_operations_are_as_old_as_coremltools_says():
    oldest = {}
    for name, versions in SSAOpRegistry.core_ops.items():
        first = min(versions, key=lambda version: version.value)
        if first.value > ct.target.iOS15.value:
            oldest[name] = Target.parse(first)
    # The registry of the core dialect does not have the operation that writes a state.
    assert {**oldest, "write_state": Target.iOS18} == (
        rules_target._FIRST_TARGET | constexpr_forms._FIRST_TARGETS
    )


# --- choosing rules and silencing


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A model with two palettized weights in groups of 4, and 16 tables each."""

    def body(x):
        for name in ("first", "second"):
            x = mb.linear(x=x, weight=lut(16, 1, used=4, name=name), name=f"{name}_linear")
        return x

    return saved(converted(body, (1, 64), "iOS18"), tmp_path_factory.mktemp("many") / "m.mlpackage")


def test_rules_are_selected_and_left_out(many):
    assert lint(many).counts_by_rule == {"group-size": 2, "partly-filled-table": 2}
    assert lint(many, select=["group-*"]).rules == ("group-size",)
    assert lint(many, ignore=["group-size"]).counts_by_rule == {"partly-filled-table": 2}
    assert lint(many, select=["*table*", "group-size"], ignore=["partly*"]).counts_by_rule == {
        "group-size": 2
    }
    assert list(lint(many, select=[])) == []


def test_findings_are_silenced_by_name(many):
    report = lint(many, ignore=["group-size:first", "*:second_lin*", "partly*:nothing*"])
    assert [(f.rule, f.place.weight) for f in report] == [("partly-filled-table", "first")]
    assert report.silenced == 3
    assert report.unused_ignores == ("partly*:nothing*",)
    assert "Silenced: 3." in report.summary()
    assert "Silences nothing: partly*:nothing*" in report.summary()


@pytest.mark.parametrize("parameter", ["select", "ignore"])
def test_unknown_rules_are_refused_with_near_ones(parameter, digits):
    with pytest.raises(ConfigError, match=rf"{parameter}: 'grup-size'.*mean 'group-size'"):
        lint(digits, **{parameter: ["grup-size"]})


# --- the report


def test_errors_come_first_and_are_counted(many):
    report = lint(many, "iOS17")
    severities = [finding.severity for finding in report]
    assert severities == sorted(severities)  # error, warning
    assert report.counts_by_severity == {"error": 4, "warning": 4, "note": 0}
    assert report.has("error")
    assert sum(report.counts_by_rule.values()) == len(report)
    assert len(report.of_rule("group-size")) == 2


def test_the_report_as_values(many):
    values = lint(many, "iOS17", select=["group-size", "compression*"]).as_dict()
    assert values["totals"] == {
        "findings": 4,
        "error": 2,
        "warning": 2,
        "note": 0,
        "silenced": 0,
        "by_rule": {"compression-newer-than-target": 2, "group-size": 2},
    }
    row = values["findings"][-1]
    assert row["where"] == {
        "model": "",
        "functions": ["main"],
        "operations": ["linear(second_linear)"],
        "weight": "second",
    }
    assert (row["rule"], row["certainty"]) == ("group-size", "documented")
    assert row["why"]
    assert row["remedy"]


def test_the_report_as_text(many):
    assert (
        lint(many, select=["group-size"]).to_text(100)
        == """\
warning: group-size (2)
  The more tables a weight has, the slower it runs. Groups of 8 to 32 channels are what models are
    shipped with; larger ones (a note) are merely untested.
  What to do: use a group_size of 8 to 32, or measure where it runs on the devices that count
    (Xcode's performance report)
  How sure: documented by Apple (coremltools guide, Palettization: Performance)
    weight  operation              found
    -----------------------------------------------------------------
    first   linear(first_linear)   16 tables for groups of 4 channels
    second  linear(second_linear)  16 tables for groups of 4 channels

2 warnings. Target: iOS18."""
    )


def test_text_is_as_narrow_as_asked(many):
    text = lint(many, "iOS17").to_text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert "error: newer-than-target (2)\n" in text


def test_lint_is_public():
    assert mlopt.coreml.lint is lint


def test_rules_explain_themselves():
    for rule in RULES.values():
        assert rule.title.endswith(".")
        assert rule.why.endswith(".")
        text = rule.explanation()
        for part in (rule.name, rule.severity, "Why:", "What to do:", "How sure:"):
            assert part in text
        assert "#2688" in RULES["float-scale-on-float-data"].explanation()
