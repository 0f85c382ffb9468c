"""States over several predictions, against PyTorch's modules with buffers."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from mlopt.errors import InputError
from mlopt.mil.opening import open_package
from mlopt.runtime import load
from mlopt.runtime.ops import states
from mlopt.runtime.state import StateTensor
from tests import models

RANDOM = np.random.default_rng(0)
PRECISIONS = ("float32", "as_declared")


class Sums(torch.nn.Module):
    """Adds up what it is given, and remembers the last one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3))
        self.register_buffer("last", torch.zeros(2, 3))

    def forward(self, x):
        before = self.total * 1.0
        self.total.add_(x)
        self.last.mul_(0.0).add_(x)
        return before + 2 * self.total + self.last


def converted(module, shapes, precision=ct.precision.FLOAT32):
    """A model of a module whose buffers are its states."""
    example = torch.zeros(next(iter(shapes.values())))
    with torch.no_grad():
        traced = models.quietly(torch.jit.trace, module.eval(), example)
    for buffer in module.buffers():
        buffer.zero_()
    return models.quietly(
        ct.convert,
        traced,
        inputs=[ct.TensorType(shape=shape, name=name) for name, shape in shapes.items()],
        outputs=[ct.TensorType(name="out")],
        states=[
            ct.StateType(
                wrapped_type=ct.TensorType(shape=tuple(buffer.shape), dtype=np.float16), name=name
            )
            for name, buffer in module.named_buffers()
        ],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=precision,
        skip_model_load=True,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions_one_after_the_other(precision):
    module = Sums()
    program = load(converted(module, {"x": (2, 3)}), precision=precision)
    state = program.make_state()
    assert not state.read_state("total").any()
    for _ in range(4):
        x = RANDOM.integers(-8, 8, (2, 3)).astype(np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(x))
        np.testing.assert_array_equal(program.predict({"x": x}, state)["out"], wanted)
        np.testing.assert_array_equal(state.read_state("total"), module.total)
        np.testing.assert_array_equal(state.read_state("last"), module.last)


def test_states_are_apart_and_can_be_written():
    program = load(converted(Sums(), {"x": (2, 3)}))
    x = np.ones((2, 3), np.float32)
    first, second = program.make_state(), program.make_state()
    program.predict({"x": x}, first)
    program.predict({"x": x}, first)
    assert first.read_state("total").tolist() == (2 * x).tolist()
    assert not second.read_state("total").any()
    second.write_state("total", 10 * x)
    found = program.predict({"x": x}, second)["out"]
    np.testing.assert_array_equal(found, 10 * x + 2 * 11 * x + x)


def test_what_has_been_read_does_not_change():
    program = load(converted(Sums(), {"x": (2, 3)}))
    state, x = program.make_state(), np.ones((2, 3), np.float32)
    program.predict({"x": x}, state)
    kept = state.read_state("total")
    kept_tensor = state.tensors["total"].value
    program.predict({"x": x}, state)
    np.testing.assert_array_equal(kept, x)
    assert torch.equal(kept_tensor, torch.ones_like(kept_tensor))


def test_a_cache_of_attention():
    program = load(models.stateful(precision="float32"))
    state = program.make_state()
    plain = open_package(models.stateful(precision="float32")).programs[0]
    weights = {
        constant.name: torch.from_numpy(np.array(constant.value()))
        for constant in plain.constants()
        if constant.shape == (64, 64) or constant.shape == (64,)
    }

    def linear(name, x):
        weight, bias = (weights[f"{name}_{kind}"] for kind in ("weight", "bias"))
        return torch.nn.functional.linear(x, weight, bias)

    keys = values = torch.zeros(1, 16, 64)
    for _ in range(3):
        x = torch.from_numpy(RANDOM.normal(size=(1, 1, 64)).astype(np.float32))
        keys = torch.cat([keys[:, 1:], linear("key", x)], dim=1)
        values = torch.cat([values[:, 1:], linear("value", x)], dim=1)
        shares = (linear("query", x) @ keys.transpose(1, 2)).softmax(dim=-1)
        wanted = linear("out", shares @ values)
        found = program.predict({"x": x}, state)["out"]
        # what is written to a state is float16 in the program
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(state.read_state("keys"), keys, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def updates():
    """A program that reads and replaces a state several times."""

    @mb.program(
        input_specs=[
            mb.StateTensorSpec((2,), dtype=types.fp16),
            mb.TensorSpec((2,), dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def prog(memory, x):
        before = mb.read_state(input=memory)
        first = mb.coreml_update_state(state=memory, value=mb.add(x=before, y=x))
        # its result is not used
        mb.coreml_update_state(state=memory, value=mb.mul(x=first, y=np.float16(2)))
        after = mb.read_state(input=memory)
        return before, first, after, mb.mul(x=before, y=x)

    return models.quietly(
        ct.convert,
        prog,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_reads_and_writes_keep_their_order(updates, precision):
    assert [op.type for op in operations_of(updates) if op.type.endswith("_state")] == [
        "read_state",
        "write_state",
        "read_state",
        "write_state",
        "read_state",
    ]
    program = load(updates, precision=precision)
    state = program.make_state()
    held = np.zeros(2)
    for x in ([1, -2], [0.5, 3]):
        found = program.predict({"x": np.array(x, np.float16)}, state)
        before, first, after, product = found.values()
        np.testing.assert_array_equal(before, held)
        np.testing.assert_array_equal(first, held + x)
        np.testing.assert_array_equal(after, 2 * (held + x))
        np.testing.assert_array_equal(product, held * x)
        held = 2 * (held + x)


def operations_of(model):
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    return block.operations


def test_a_state_can_be_differentiated_through_after_a_prediction(updates):
    program = load(updates)
    state = program.make_state()
    x = np.array([1, 2], np.float16)
    program.predict({"x": x}, state)
    np.testing.assert_array_equal(state.read_state("memory"), [2, 4])
    found = program.gradients({"x": x}, lambda outputs: sum(outputs.values()).sum(), ["x"], state)
    # of state + x, twice that, and state * x
    np.testing.assert_array_equal(found["x"], [5, 7])


def test_a_state_is_needed(updates):
    with pytest.raises(InputError, match="the model has states"):
        load(updates).predict({"x": np.ones(2, np.float16)})


def test_bad_arguments():
    state = StateTensor(torch.zeros(2))
    with pytest.raises(ValueError, match=r"the state has shape \[2\], got data of \[3\]"):
        states.write_state(state, torch.ones(3))
    with pytest.raises(TypeError, match="a state is needed, got Tensor"):
        states.read_state(torch.ones(2))
    assert states.write_state(state, torch.ones(2, dtype=torch.float64)) == ()
    assert state.value.dtype == torch.float32
