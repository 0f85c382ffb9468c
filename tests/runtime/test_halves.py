"""``precision="as_declared"`` on the CPU: float32 within operations, float16 between them."""

import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt.runtime import load
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.make_plan import widens
from mlopt.runtime.registry import find_operation
from mlopt.runtime.weights.scratch import aligned
from tests.runtime.programs import assert_of_halves, convert, run

RANDOM = np.random.default_rng(16)


def halves(*shape, scale=1.0):
    return (RANDOM.normal(size=shape) * scale).astype(np.float16)


IMAGE = halves(1, 6, 9, 9)
KERNELS, GROUPED, BACK = halves(8, 6, 3, 3), halves(6, 1, 3, 3), halves(6, 8, 2, 2)
MATRIX = halves(40, 81)
GAINS, SHIFTS = halves(6), halves(6)
VARIANCE = np.abs(halves(6)) + np.float16(0.1)
GATES = halves(16, 9, scale=0.3), halves(16, 4, scale=0.3)
START = halves(6, 4)


def sequence(x):
    return mb.squeeze(x=x, axes=[0])


def lstm(x):
    steps = mb.transpose(x=sequence(x), perm=[1, 0, 2])
    return mb.lstm(
        x=steps,
        initial_h=START,
        initial_c=START,
        weight_ih=GATES[0],
        weight_hh=GATES[1],
        output_sequence=True,
    )[0]


ROUNDED_ONCE = {
    "conv": lambda x: mb.conv(x=x, weight=KERNELS, pad_type="same"),
    "depthwise": lambda x: mb.conv(x=x, weight=GROUPED, groups=6),
    "conv_transpose": lambda x: mb.conv_transpose(x=x, weight=BACK, strides=[2, 2]),
    "linear": lambda x: mb.linear(x=mb.reshape(x=x, shape=[6, 81]), weight=MATRIX),
    "matmul": lambda x: mb.matmul(x=x, y=x, transpose_y=True),
    "einsum": lambda x: mb.einsum(
        values=(x, mb.transpose(x=x, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"
    ),
    "batch_norm": lambda x: mb.batch_norm(
        x=x, mean=SHIFTS, variance=VARIANCE, gamma=GAINS, beta=SHIFTS
    ),
    "instance_norm": lambda x: mb.instance_norm(x=x, gamma=GAINS, beta=SHIFTS),
    "layer_norm": lambda x: mb.layer_norm(x=x, axes=[1, 2, 3]),
    "softmax": lambda x: mb.softmax(x=x, axis=-1),
    "avg_pool": lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"),
    "max_pool": lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"),
    "reduce_sum": lambda x: mb.reduce_sum(x=x, axes=[2, 3]),
    "reduce_mean": lambda x: mb.reduce_mean(x=x, axes=[1]),
    "reduce_max": lambda x: mb.reduce_max(x=x, axes=[1]),
    "cumsum": lambda x: mb.cumsum(x=x, axis=2),
    "resize_bilinear": lambda x: mb.resize_bilinear(
        x=x, target_size_height=20, target_size_width=14
    ),
    "gelu": lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "sigmoid gelu": lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
    "inverse": lambda x: mb.inverse(x=x),
    "rsqrt": lambda x: mb.rsqrt(x=mb.abs(x=x), epsilon=np.float16(0.1)),
    "pow": lambda x: mb.pow(x=mb.abs(x=x), y=np.float16(1.7)),
    "scaled_tanh": lambda x: mb.scaled_tanh(x=x, alpha=np.float16(1.7), beta=np.float16(0.7)),
    "linear_activation": lambda x: mb.linear_activation(
        x=x, alpha=np.float16(1.7), beta=np.float16(0.7)
    ),
    "prelu": lambda x: mb.prelu(x=x, alpha=GAINS),
    "softsign": lambda x: mb.softsign(x=x),
    "lstm": lstm,
    # computed in float16 there
    "add": lambda x: mb.add(x=x, y=np.float16(0.3)),
    "sub": lambda x: mb.sub(x=x, y=np.float16(0.3)),
    "mul": lambda x: mb.mul(x=x, y=x),
    "real_div": lambda x: mb.real_div(x=np.float16(1.3), y=x),
    "maximum": lambda x: mb.maximum(x=x, y=np.float16(0.3)),
    "clip": lambda x: mb.clip(x=x, alpha=np.float16(-0.3), beta=np.float16(0.3)),
    "relu6": lambda x: mb.relu6(x=x),
    "leaky_relu": lambda x: mb.leaky_relu(x=x, alpha=np.float16(0.1)),
    "exp": lambda x: mb.exp(x=x),
    "erf": lambda x: mb.erf(x=x),
    "tanh": lambda x: mb.tanh(x=x),
    "sigmoid": lambda x: mb.sigmoid(x=x),
    "silu": lambda x: mb.silu(x=x),
    "sqrt": lambda x: mb.sqrt(x=mb.abs(x=x)),
    "sin": lambda x: mb.sin(x=x),
    "cos": lambda x: mb.cos(x=x),
}


@pytest.mark.parametrize("name", ROUNDED_ONCE)
def test_results_are_those_of_float32_rounded_once(name):
    inputs = {"x": IMAGE}
    found, wanted = (
        run(ROUNDED_ONCE[name], inputs, target="iOS17", computed=computed)[0]
        for computed in ("as_declared", "float32")
    )
    assert_of_halves(found)
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_attention_is_rounded_once():
    inputs = {name: halves(1, 2, 12, 8) for name in ("query", "key", "value")}

    def build(query, key, value):
        return mb.scaled_dot_product_attention(query=query, key=key, value=value)

    found, wanted = (
        run(build, inputs, target="iOS18", computed=computed)[0]
        for computed in ("as_declared", "float32")
    )
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_range_is_that_of_float16_between_operations():
    weight = np.full((1, 4, 1, 1), 200, np.float16)
    x = np.full((1, 4, 2, 2), 300, np.float16)  # 240,000 is out of range
    tiny = np.full((1, 1, 2, 2), 2.0**-9, np.float16)

    def build(x, tiny):
        large = mb.conv(x=x, weight=weight)
        small = mb.conv(x=tiny, weight=np.full((1, 1, 1, 1), 2.0**-8, np.float16))
        smaller = mb.conv(x=small, weight=np.full((1, 1, 1, 1), 2.0**-8, np.float16))
        back = mb.mul(x=smaller, y=np.float16(2.0**15))
        return mb.mul(x=large, y=np.float16(0.01)), mb.mul(x=small, y=np.float16(2)), back

    inputs = {"x": x, "tiny": tiny}
    large, small, gone = run(build, inputs, target="iOS17", computed="as_declared")
    assert np.isposinf(large).all()
    assert (small == 2.0**-16).all()  # not a normal number
    assert (gone == 0).all()  # 2 ** -25 is half of the least number, and goes to the even one
    large, small, there = run(build, inputs, target="iOS17")
    np.testing.assert_allclose(large, 2400, rtol=1e-3)
    assert (there == 2.0**-10).all()


def test_values_between_operations_are_of_float16():
    x = np.array([[2048.0]], np.float16)

    def build(x):
        for _ in range(2):
            x = mb.linear(x=x, weight=np.ones((1, 1), np.float16), bias=np.ones(1, np.float16))
        return x

    (found,) = run(build, {"x": x}, target="iOS16", computed="as_declared")
    assert found.item() == 2048  # 2049 is none of float16
    program = load(convert(build, {"x": x}, target="iOS16"), precision="as_declared")
    tapped = program.run({"x": x}, taps=program.value_names).taps
    assert {tensor.dtype for tensor in tapped.values()} == {torch.float16}


class Wide(nn.Module):
    """Weights that are large enough not to be kept anyway."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 40, 6, bias=False)
        self.linear = nn.Linear(40, 200)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).flatten(1))


def wide():
    torch.manual_seed(0)
    module, x = Wide().eval(), torch.randn(1, 4, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.numpy(), ct.convert(
            torch.jit.trace(module, x),
            inputs=[ct.TensorType("x", x.shape)],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )


def test_weights_are_widened_once_where_they_are_kept():
    x, model = wide()
    plain = load(model, precision="as_declared")
    assert plain.plan.scratch_size == aligned(4 * 40 * 200)  # the bias is kept widened
    kept = load(model, precision="as_declared", keep_weights=True)
    (wanted,) = plain.predict({"x": x}).values()
    for _ in range(2):
        np.testing.assert_array_equal(*kept.predict({"x": x}).values(), wanted)
    held = {value.shape: value.dtype for value in kept.execution().kept.values()}
    assert held[(200, 40)] == held[(40, 4, 6, 6)] == torch.float32


def test_gradients_go_through_the_rounding():
    x, model = wide()
    program = load(model, precision="as_declared")
    found = program.gradients({"x": x}, lambda y: next(iter(y.values())).float().sum(), ["x"])
    exact = load(model).gradients({"x": x}, lambda y: next(iter(y.values())).sum(), ["x"])
    np.testing.assert_allclose(found["x"].float(), exact["x"], rtol=0.02, atol=0.02)


def test_other_devices_compute_in_float16_themselves():
    conv, types = find_operation("conv", "CoreML7"), ElementTypes("as_declared")
    assert widens(conv, types, torch.device("cpu"))
    assert not widens(conv, types, torch.device("cuda"))
    _, model = wide()
    steps = load(model, precision="as_declared").plan.body.steps
    assert {s.node.op_type for s in steps if s.widens} == {"conv", "linear"}
    assert not any(step.widens for step in load(model).plan.body.steps)
