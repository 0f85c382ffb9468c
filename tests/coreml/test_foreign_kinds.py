"""Foreign compression in models of every kind: several functions, pipelines, nested blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest

from mlopt.coreml import decompress, get_weights_metadata
from mlopt.coreml.inspection import inspect_weights
from mlopt.mil.opening import open_package
from tests import foreign, judges, models

# The models that coremltools compresses leave their folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


def compressed(model: Any, step: Any) -> Any:
    return models.quietly(step, model)


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> Path:
    """Functions ``a`` and ``b``, quantized alike but for the last weight, which is in 4 bits in b.

    coremltools stores the equal blobs once.
    """
    folder = tmp_path_factory.mktemp("functions")
    config = cto.OptimizationConfig(
        cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    )
    other = cto.OptimizationConfig(
        cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    )
    other.set_op_name(
        "product",
        cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int4", weight_threshold=0),
    )
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, rules in (("a", config), ("b", other)):
        model = models.quietly(
            cto.linear_quantize_weights, foreign.source("iOS18", "float16"), rules
        )
        models.quietly(model.save, str(folder / f"{name}.mlpackage"))
        descriptor.add_function(str(folder / f"{name}.mlpackage"), "main", name)
    descriptor.default_function_name = "a"
    models.quietly(ct.utils.save_multifunction, descriptor, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


def test_functions_stay_as_shared_as_they_were(functions, tmp_path):
    result = decompress(functions, tmp_path / "dense.mlpackage")
    shared = {weight.name for weight in result.weights if weight.functions == ("a", "b")}
    own = [weight.name for weight in result.weights if len(weight.functions) == 1]
    assert shared == {"conv_w_quantized", "up_w_quantized", "linear_w_quantized"}
    assert own == ["y_quantized", "y_quantized"]
    values = judges.decompressed_constants(result.path)
    offsets: dict[str, set[int]] = {}
    spec, _ = judges.spec_and_weights(result.path)
    for function in ("a", "b"):
        wanted = foreign.materialised_constants(functions, function)
        for name, value in wanted.items():
            np.testing.assert_array_equal(values[f"{function}/{name}"], value)
        for op in judges.operations(spec.mlProgram.functions[function]):
            if op.type == "const" and op.outputs[0].name in wanted:
                offset = op.attributes["val"].blobFileValue.offset
                offsets.setdefault(op.outputs[0].name, set()).add(offset)
    assert {name for name, found in offsets.items() if len(found) == 1} == shared


def test_rows_of_functions_are_joined_where_they_share(functions):
    metadata = get_weights_metadata(functions, weight_threshold=100)
    assert sorted(metadata) == [
        "a/y_quantized",
        "b/y_quantized",
        "conv_w_quantized",
        "linear_w_quantized",
        "up_w_quantized",
    ]
    assert len(metadata["conv_w_quantized"].child_ops) == 2
    assert metadata["a/y_quantized"].compression.nbits == 8
    assert metadata["b/y_quantized"].compression.nbits == 4
    rows = [row for row in inspect_weights(functions).rows if row.compression is not None]
    assert len(rows) == 5
    assert {row.functions for row in rows} == {("a", "b"), ("a",), ("b",)}


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_weights_of_nested_blocks(target, tmp_path):
    model = compressed(
        models.build("control_flow", target),
        foreign.quantized(mode="linear", granularity="per_channel"),
    )
    wanted = foreign.materialised_constants(model)
    (program,) = open_package(model).programs
    depths = {node.depth for node in program.nodes() if node.op_type.startswith("constexpr_")}
    assert max(depths) > 0
    result = decompress(model, tmp_path / "dense.mlpackage")
    assert {weight.name for weight in result.weights} == set(wanted)
    values = judges.decompressed_constants(result.path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(values[name], value)
    assert judges.messages_equal_except(model, result.path, wanted) == []
    listed = get_weights_metadata(model, weight_threshold=100)
    assert {name for name, weight in listed.items() if weight.compression} == set(wanted)


def test_the_models_of_a_pipeline(tmp_path):
    """Each model of another target and another form, each with a weight file of its own."""
    steps = {
        "iOS16": foreign.quantized(mode="linear", granularity="per_channel"),
        "iOS18": foreign.quantized(mode="linear_symmetric", dtype="int4", granularity="per_block"),
    }
    parts = []
    for (target, step), (columns, rows), name in zip(
        steps.items(), [(64, 96), (96, 48)], ["x", "between"], strict=True
    ):
        net = models.random_weights(models.nn.Linear(columns, rows), seed=columns)
        output = "between" if name == "x" else "out"
        model = models.convert(net, {name: (1, columns)}, [output], target=target)
        parts.append(compressed(model, step))
    pipeline = models.quietly(ct.utils.make_pipeline, *parts)
    source = tmp_path / "source.mlpackage"
    models.quietly(pipeline.save, str(source))
    result = decompress(source, tmp_path / "dense.mlpackage")
    assert len(result.weights) == 2
    for part, program in zip(parts, judges.load_programs(result.path), strict=True):
        wanted = foreign.materialised_constants(part)
        ops = {op.outputs[0].name: op for op in judges.pymil_operations(program.functions["main"])}
        for name, value in wanted.items():
            assert ops[name].op_type == "const"
            np.testing.assert_array_equal(ops[name].outputs[0].val, value)
    assert judges.load_programs(source)
    rows = [row for row in inspect_weights(source).rows if row.compression is not None]
    assert [row.compression.nbits for row in rows] == [8, 4]
