"""Memory in which weights are widened: nobody sees that it is used again."""

import warnings

import coremltools as ct
import numpy as np
import torch
from torch import nn

from mlopt.runtime import load
from mlopt.runtime.weights.scratch import Scratch, aligned


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
