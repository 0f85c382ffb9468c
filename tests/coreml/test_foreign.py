"""Packages that coremltools compressed, in every form that it writes."""

from __future__ import annotations

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest

from mlopt.coreml import decompress, decompress_weights, get_weights_metadata
from mlopt.coreml.inspection import inspect_weights
from tests import foreign, judges, models

# The models that coremltools compresses leave their folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

WEIGHTS = {
    "conv_w": (32, 8, 3, 3),
    "up_w": (32, 16, 2, 2),
    "linear_w": (48, 16),
    "y": (48, 40),
}


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two arrays are the same to the last bit."""
    return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and (
        ours.tobytes() == theirs.tobytes()
    )


def weights_read(model) -> set[str]:
    """The outputs of constexpr operations that ordinary operations of a model read."""
    names, read = set(), set()
    for op in judges.operations(model.get_spec().mlProgram.functions["main"]):
        compressed = op.type.startswith("constexpr_")
        if compressed:
            names |= {output.name for output in op.outputs}
        else:
            for argument in op.inputs.values():
                read |= {binding.name for binding in argument.arguments}
    return names & read


@pytest.mark.parametrize("case", foreign.CASES, ids="-".join)
@pytest.mark.covering(1)
def test_decompresses_to_what_coremltools_gives(case, tmp_path):
    model = foreign.build(*case)
    wanted = foreign.materialised_constants(model)
    names = weights_read(model)
    assert names
    result = decompress(model, tmp_path / "dense.mlpackage")
    values = judges.decompressed_constants(result.path)
    for name in names:
        assert same(values[name], wanted[name]), name
    assert {weight.name for weight in result.weights} == names
    spec, _ = judges.spec_and_weights(result.path)
    kinds = [op.type for op in judges.operations(spec.mlProgram.functions["main"])]
    assert not [kind for kind in kinds if kind.startswith("constexpr_")]
    assert judges.messages_equal_except(model, result.path, names) == []


@pytest.mark.parametrize("name", sorted(foreign.FORMS))
def test_is_what_coremltools_itself_decompresses_to(name):
    model = foreign.build(name, "iOS18")
    ours = judges.decompressed_constants(decompress_weights(model))
    theirs = judges.decompressed_constants(models.quietly(cto.decompress_weights, model))
    for weight in weights_read(model):
        assert same(ours[weight], theirs[weight]), weight


@pytest.mark.parametrize("case", foreign.CASES, ids="-".join)
@pytest.mark.covering(1)
def test_metadata_has_a_row_for_each_logical_weight(case):
    model = foreign.build(*case)
    wanted = foreign.materialised_constants(model)
    metadata = get_weights_metadata(model, weight_threshold=100)
    names = weights_read(model)
    assert {name for name, weight in metadata.items() if weight.compression} == names
    assert sorted(weight.val.shape for weight in metadata.values()) == sorted(WEIGHTS.values())
    for name in names:
        weight = metadata[name]
        value = wanted[name]
        assert same(weight.val, value)
        assert weight.sparsity == np.count_nonzero(np.abs(value) <= 1e-12) / value.size
        assert weight.unique_values == len(np.unique(value.astype(np.float32)))
        (child,) = weight.child_ops
        assert name in child.params_name_mapping.values()
        assert child.op_type in {"conv", "conv_transpose", "linear", "matmul"}


def stored_bytes(model, name: str) -> int:
    """Bytes of everything that makes up a weight, counted in the message by its definitions."""
    sizes = {"shape", "axis", "vector_axis", "output_dtype", "name"}
    operations = {
        output.name: op
        for op in judges.operations(model.get_spec().mlProgram.functions["main"])
        for output in op.outputs
    }
    blobs, pending, done = {}, [name], set()
    while pending:
        op = operations[pending.pop()]
        if op.outputs[0].name in done:
            continue
        done.add(op.outputs[0].name)
        values = [(key, item) for key, item in op.attributes.items() if key not in sizes]
        for key, argument in op.inputs.items():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    pending.append(binding.name)
                elif key not in sizes:
                    values.append((key, binding.value))
        for _, item in values:
            tensor = item.type.tensorType
            count = int(np.prod([d.constant.size for d in tensor.dimensions], dtype=int))
            bits = {
                "FLOAT16": 16,
                "FLOAT32": 32,
                "INT8": 8,
                "UINT8": 8,
                "INT4": 4,
                **{f"UINT{n}": n for n in (1, 2, 3, 4, 6)},
            }[ct.proto.MIL_pb2.DataType.Name(tensor.dataType)]
            key = item.blobFileValue.offset if item.HasField("blobFileValue") else id(item)
            blobs[key] = -(-count * bits // 8)
    return sum(blobs.values())


@pytest.mark.parametrize("case", foreign.CASES, ids="-".join)
@pytest.mark.covering(1)
def test_inventory_has_exact_bytes(case):
    model = foreign.build(*case)
    inventory = inspect_weights(model, statistics=False)
    rows = {row.name: row for row in inventory.rows if row.compression is not None}
    assert set(rows) == weights_read(model)
    for name, row in rows.items():
        assert row.nbytes == row.compression.nbytes == stored_bytes(model, name)
        assert row.compression.bits_per_weight == 8 * row.nbytes / row.size


DESCRIPTIONS = {
    ("lut kmeans 4", "iOS16"): ("palettized", 4, 1, (32, 8, 3, 3), 1, False, False),
    ("lut 3", "iOS18"): ("palettized", 3, 1, (32, 8, 3, 3), 1, False, False),
    ("lut grouped", "iOS18"): ("palettized", 4, 4, (8, 8, 3, 3), 1, False, False),
    ("lut vectors, grouped", "iOS18"): ("palettized", 2, 4, (8, 8, 3, 3), 4, False, False),
    ("quantized int8", "iOS16"): ("quantized", 8, None, (1, 8, 3, 3), None, False, False),
    ("quantized int8 per tensor", "iOS16"): (
        *("quantized", 8, None, (32, 8, 3, 3), None, False, False),
    ),
    ("quantized uint4", "iOS18"): ("quantized", 4, None, (1, 8, 3, 3), None, False, False),
    ("quantized int4 per block", "iOS18"): (
        *("quantized", 4, None, (1, 8, 3, 3), None, False, False),
    ),
    ("quantized uint4 per block", "iOS18"): (
        *("quantized", 4, None, (1, 2, 3, 3), None, False, False),
    ),
    ("sparse threshold", "iOS16"): ("sparse", 16, None, None, None, False, True),
    ("sparse threshold", "iOS18"): ("sparse", 16, None, None, None, False, True),
    ("sparse, palettized in groups", "iOS18"): (
        *("palettized + sparse", 2, 4, (8, 8, 3, 3), 1, False, True),
    ),
    ("sparse, quantized", "iOS18"): (
        *("quantized + sparse", 8, None, (1, 8, 3, 3), None, False, True),
    ),
    ("palettized, quantized", "iOS18"): (
        *("palettized, int8 table", 4, 1, (32, 8, 3, 3), 1, False, False),
    ),
    ("sparse, palettized, quantized", "iOS18"): (
        *("palettized + sparse, int8 table", 4, 1, (32, 8, 3, 3), 1, False, True),
    ),
}


@pytest.mark.parametrize("case", DESCRIPTIONS, ids="-".join)
def test_the_convolution_is_described(case):
    metadata = get_weights_metadata(foreign.build(*case), weight_threshold=100)
    form = next(w.compression for w in metadata.values() if w.val.shape == WEIGHTS["conv_w"])
    assert (
        form.form,
        form.nbits,
        form.tables,
        form.block,
        form.cluster_dim,
        form.has_scale,
        form.sparsity is not None,
    ) == DESCRIPTIONS[case]
    if form.sparsity is not None:
        weight = next(w for w in metadata.values() if w.compression is form)
        assert form.sparsity == pytest.approx(weight.sparsity, abs=0.01)
