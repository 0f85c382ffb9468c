"""Rows of compressed embeddings, against coremltools' decompressed models."""

from __future__ import annotations

import functools
import warnings

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from torch import nn

import mlopt
from mlopt.errors import RunError
from mlopt.runtime import load
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Lazy
from tests import foreign

WORDS = 300
PALETTES = {
    "one table, 4 bits": ("iOS16", 64, {"nbits": 4}),
    "one table, 6 bits": ("iOS16", 64, {"nbits": 6}),
    "one table, 8 bits": ("iOS16", 64, {"nbits": 8}),
    "one table, 1 bit, iOS18": ("iOS18", 64, {"nbits": 1}),
    "one table, 3 bits, iOS18": ("iOS18", 64, {"nbits": 3}),
    "groups of rows": ("iOS18", 64, {"nbits": 4, "group_size": 4, "channel_axis": 0}),
    "groups of columns": ("iOS18", 64, {"nbits": 2, "group_size": 16, "channel_axis": 1}),
    "scales": ("iOS18", 64, {"nbits": 4, "enable_per_channel_scale": True}),
}
QUANTIZED = {
    "steps of int8": ("iOS16", {"dtype": "int8", "mode": "linear"}),
    "steps of uint8": ("iOS16", {"dtype": "uint8", "mode": "linear"}),
    "a scale for all": ("iOS16", {"dtype": "int8", "granularity": "per_tensor"}),
    "blocks of int4": ("iOS18", {"dtype": "int4", "granularity": "per_block", "block_size": 16}),
    "rows of uint4": ("iOS18", {"dtype": "uint4", "mode": "linear"}),
}
WHOLE = {
    "rows within a byte": ("iOS16", 63, {"nbits": 4}),
    "vectors of several rows": ("iOS18", 64, {"nbits": 2, "cluster_dim": 2}),
}


@functools.cache
def embedding(target, width):
    module = nn.Embedding(WORDS, width)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        module.weight.copy_(torch.randn(WORDS, width, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(module, torch.zeros(2, 5, dtype=torch.int32)),
            inputs=[ct.TensorType("tokens", (2, 5), dtype=np.int32)],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
        )


def palettized(target, width, options):
    grouped = {"granularity": "per_grouped_channel"} if "group_size" in options else {}
    op_config = cto.OpPalettizerConfig(
        mode="kmeans", weight_threshold=100, **grouped, **{"group_size": 32, **options}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cto.palettize_weights(embedding(target, width), cto.OptimizationConfig(op_config))


def quantized(target, options):
    op_config = cto.OpLinearQuantizerConfig(weight_threshold=100, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cto.linear_quantize_weights(embedding(target, 64), cto.OptimizationConfig(op_config))


def assert_rows_are_right(model, monkeypatch, *, whole):
    """For indices from both ends; ``whole``: whether all of the weight is computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = cto.decompress_weights(model)
    computed = []
    value = Execution.value

    def watch(self, source, **options):
        if isinstance(source, Lazy):
            computed.append(source.step.node)
        return value(self, source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Execution, "value", watch)
        tokens = {"tokens": np.array([[0, 299, 7, 7, 150], [1, 2, 298, -1, -300]])}
        for precision in ("float32", "as_declared"):
            program = load(model, precision=precision)
            (weight,) = nodes(program)
            found = program.predict(tokens)["y"]
            np.testing.assert_array_equal(
                found, load(plain, precision=precision).predict(tokens)["y"]
            )
            assert (weight in computed) == whole


def nodes(program):
    (gather,) = [s for s in program.plan.body.steps if s.node.op_type == "gather"]
    return [
        source.step.node
        for _, sources in gather.arguments
        for source in sources
        if isinstance(source, Lazy)
    ]


@pytest.mark.parametrize("name", PALETTES)
def test_rows_of_palettes(name, monkeypatch):
    assert_rows_are_right(palettized(*PALETTES[name]), monkeypatch, whole=False)


@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_of_steps(name, monkeypatch):
    assert_rows_are_right(quantized(*QUANTIZED[name]), monkeypatch, whole=False)


@pytest.mark.parametrize("name", WHOLE)
def test_weights_of_which_rows_cannot_be_told_apart(name, monkeypatch):
    assert_rows_are_right(palettized(*WHOLE[name]), monkeypatch, whole=True)


def test_rows_of_vectors_along_a_row(monkeypatch):
    op_config = mlopt.coreml.OpPalettizerConfig(
        nbits=2,
        cluster_dim=2,
        granularity="per_grouped_channel",
        group_size=32,
        channel_axis=1,
        weight_threshold=100,
    )
    config = mlopt.coreml.OptimizationConfig(global_config=op_config)
    model = mlopt.coreml.palettize_weights(embedding("iOS18", 64), config)
    assert_rows_are_right(model, monkeypatch, whole=False)


def test_sparse_weights_are_computed_whole(monkeypatch):
    op_config = cto.OpThresholdPrunerConfig(threshold=1.5, weight_threshold=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cto.prune_weights(embedding("iOS16", 64), cto.OptimizationConfig(op_config))
    assert_rows_are_right(model, monkeypatch, whole=True)


def test_an_observer_sees_the_weight():
    model = palettized("iOS18", 64, {"nbits": 4})
    seen = {}

    def watch(execution, step, arguments, results):
        seen[step.node.op_type] = arguments

    program = load(model)
    program.run({"tokens": np.zeros((2, 5), int)}, observer=watch)
    (weight,) = nodes(program)
    name = weight.outputs[0].name
    tapped = program.run({"tokens": np.zeros((2, 5), int)}, taps=[name]).taps[name]
    assert torch.equal(seen["gather"]["x"], tapped)


def test_gradients_of_a_table_of_which_rows_are_used():
    program = load(palettized("iOS18", 64, {"nbits": 4}))
    (weight,) = nodes(program)
    name = weight.outputs[0].name
    tokens = {"tokens": np.array([[0, 1, 1, 2, 299]] * 2)}
    found = program.gradients(tokens, lambda outputs: outputs["y"].sum(), [name])[name]
    wanted = np.bincount(tokens["tokens"].reshape(-1), minlength=WORDS)
    np.testing.assert_array_equal(found, np.repeat(wanted[:, None], 64, axis=1))


def test_tokens_that_are_out_of_range_are_refused_as_ever():
    program = load(palettized("iOS18", 64, {"nbits": 4}))
    with pytest.raises(RunError, match="gather"):
        program.predict({"tokens": np.full((2, 5), WORDS)})


def damaged(edit):
    """An embedding of int8 with a scale for each row, its operation edited."""
    model = quantized("iOS16", {"dtype": "int8", "mode": "linear"})
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (operation,) = (op for op in block.operations if op.type.startswith("constexpr"))
    edit(operation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def fewer_scales(operation):
    scales = np.ones(100, np.float16)
    operation.attributes["scale"].CopyFrom(foreign.value(scales, "fp16"))


def fewer_rows(operation):
    operation.outputs[0].type.tensorType.dimensions[0].constant.size = 200


@pytest.mark.parametrize(
    ("edit", "message"),
    [(fewer_scales, "100 scales"), (fewer_rows, r"gave shape \[300, 64\]")],
)
def test_weights_that_contradict_themselves_are_refused_for_few_rows_too(edit, message):
    with pytest.raises(RunError, match=message):
        load(damaged(edit)).predict({"tokens": np.zeros((2, 5), int)})


def test_a_model_loaded_where_nothing_is_differentiated():
    with torch.inference_mode():
        program = load(embedding("iOS18", 64))
    (name,) = [n for n in program.value_names if "weight" in n]
    found = program.gradients({"tokens": np.zeros((2, 5))}, lambda o: o["y"].sum(), [name])[name]
    assert found.sum() == 10 * 64
