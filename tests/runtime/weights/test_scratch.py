"""Memory in which weights are widened: nobody sees that it is used again."""

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from torch import nn

from mlopt.runtime import load
from mlopt.runtime.ops import compressed
from mlopt.runtime.weights.scratch import Scratch, aligned
from tests.runtime.programs import convert


def test_tensors_of_a_step_do_not_overlap():
    sizes = [3, 100, 1]
    scratch = Scratch(sum(aligned(4 * size) for size in sizes))
    for step in range(3):
        values = [
            torch.full((size,), step + i, dtype=torch.float16) for i, size in enumerate(sizes)
        ]
        found = [scratch.converted(value, torch.float32) for value in values]
        for value, copy in zip(values, found, strict=True):
            assert torch.equal(copy, value.float())
        assert len({copy.untyped_storage().data_ptr() for copy in found}) == 1
        scratch.release()


class Wide(nn.Module):
    """Weights and biases that are large, of every kind that is widened in scratch memory."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 5000, 1)
        self.back = nn.ConvTranspose2d(5000, 2, 2, bias=False)
        self.linear = nn.Linear(18, 5000)
        self.matrix = nn.Parameter(torch.randn(5000, 7))

    def forward(self, x):
        x = self.back(self.conv(x)).flatten(1)
        return self.linear(x) @ self.matrix, self.linear.bias * 1


def test_weights_are_right_step_after_step():
    torch.manual_seed(0)
    module, x = Wide().eval(), torch.randn(1, 2, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(module, x),
            inputs=[ct.TensorType("x", x.shape)],
            outputs=[ct.TensorType("y"), ct.TensorType("bias")],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    program = load(model)
    assert program.plan.scratch_size == aligned(4 * 18 * 5000) + aligned(4 * 5000)
    found = program.predict({"x": x.numpy()})
    # the same as where every weight has memory of its own
    kept = load(model, keep_weights=True).predict({"x": x.numpy()})
    for name, array in found.items():
        np.testing.assert_array_equal(array, kept[name])
    with torch.no_grad():
        wanted = module(x)[0].numpy()
    assert np.abs(found["y"] - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["float32", "as_declared"])
def test_weights_are_looked_up_in_memory_that_is_used_again(precision, monkeypatch):
    random = np.random.default_rng(0)
    indices = [random.integers(0, count, (96, 96)) for count in (16, 256, 8)]
    tables = [random.normal(size=(96, count)).astype(np.float16) for count in (16, 256, 8)]
    kinds = [types.np_uint4_dtype, np.uint8, types.np_uint3_dtype]

    def build(x):
        x = mb.cast(x=x, dtype="fp16")
        for taken, table, kind in zip(indices, tables, kinds, strict=True):
            lut = table.reshape(96, 1, -1, 1)
            weight = mb.constexpr_lut_to_dense(indices=taken.astype(kind), lut=lut)
            x = mb.linear(x=x, weight=weight)
        return [x]

    x = {"x": random.normal(size=(1, 96)).astype(np.float32)}
    model = convert(build, x, target="iOS18")
    kept = load(model, precision=precision, keep_weights=True).predict(x)
    program = load(model, precision=precision)
    assert program.plan.scratch_size == 4 * 96 * 96  # that of one weight
    seen = {}
    observed = program.run(
        x, observer=lambda run, step, given, results: seen.update({step.node.op_type: given})
    )
    assert "constexpr_lut_to_dense" in seen

    # nothing but memory is filled: no weight is computed in a tensor of its own
    monkeypatch.setattr(compressed, "looked_up", None)
    found = program.predict(x)
    wanted = x["x"].astype(np.float16).astype(np.float64)
    for taken, table in zip(indices, tables, strict=True):
        wanted = wanted @ np.take_along_axis(table, taken, axis=1).T.astype(np.float64)
    for name, array in found.items():
        np.testing.assert_array_equal(array, kept[name])
        np.testing.assert_array_equal(array, observed.outputs[name])
        assert np.abs(array - wanted).max() < 5e-3 * np.abs(wanted).max()  # outputs are float16
