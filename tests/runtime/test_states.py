"""A language model whose keys and values are states, step by step against PyTorch."""

from __future__ import annotations

import functools
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlopt.errors import InputError, ModelFormatError
from mlopt.runtime import load

STEPS, WIDTH, HEADS, LAYERS, WORDS = 50, 32, 4, 2, 60


class Decoder(nn.Module):
    """One token a step; ``place`` says which, and masks what has not been written yet."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(STEPS, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(LAYERS))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(LAYERS))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(LAYERS, HEADS, STEPS, WIDTH // HEADS))

    def forward(self, token, place, mask):
        x = self.words(token) + self.places(place)
        written = F.one_hot(place.long(), STEPS)[0, :, None].to(self.keys.dtype)
        for layer in range(LAYERS):
            q, k, v = (
                part.reshape(1, HEADS, WIDTH // HEADS).transpose(0, 1)
                for part in self.qkv[layer](self.norms[2 * layer](x)).chunk(3, -1)
            )
            self.keys[layer] = self.keys[layer] * (1 - written) + k * written
            self.values[layer] = self.values[layer] * (1 - written) + v * written
            scores = q @ self.keys[layer].transpose(1, 2) / (WIDTH // HEADS) ** 0.5 + mask
            attended = (scores.softmax(-1) @ self.values[layer]).transpose(0, 1).reshape(1, WIDTH)
            x = x + self.out[layer](attended)
            x = x + self.down[layer](F.gelu(self.up[layer](self.norms[2 * layer + 1](x))))
        return x @ self.words.weight.T


def step_inputs(token, place):
    mask = np.where(np.arange(STEPS) <= place, 0.0, -1e4).astype(np.float32)[None, None]
    return {
        "token": np.array([token], np.int32),
        "place": np.array([place], np.int32),
        "mask": mask,
    }


@functools.cache
def decoder():
    torch.manual_seed(0)
    module = Decoder().eval()
    example = tuple(map(torch.from_numpy, step_inputs(1, 0).values()))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(module, example, check_trace=False),
            inputs=[
                ct.TensorType("token", (1,), np.int32),
                ct.TensorType("place", (1,), np.int32),
                ct.TensorType("mask", (1, 1, STEPS)),
            ],
            outputs=[ct.TensorType("scores")],
            states=[
                ct.StateType(ct.TensorType(shape=(LAYERS, HEADS, STEPS, WIDTH // HEADS)), name=name)
                for name in ("keys", "values")
            ],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,  # which states need
            skip_model_load=True,
        )
    return module, model


def test_fifty_steps_of_decoding():
    module, model = decoder()
    with torch.no_grad():
        module.keys.zero_()
        module.values.zero_()
    program = load(model)
    state = program.make_state()
    token = 7
    said = []
    for place in range(STEPS):
        inputs = step_inputs(token, place)
        found = program.predict(inputs, state)["scores"]
        with torch.no_grad():
            wanted = module(*map(torch.from_numpy, inputs.values())).numpy()
        # weights are rounded to float16
        assert np.abs(found - wanted).max() <= 5e-3 * np.abs(wanted).max()
        token = int(wanted.argmax())
        said.append(token)
    assert len(set(said)) > 1
    keys = state.read_state("keys")
    assert np.abs(keys - module.keys.numpy()).max() <= 5e-3 * np.abs(keys).max()
    assert (np.abs(keys).max((0, 1, 3)) > 0).all()  # every step has left something


def test_states_are_separate_and_can_be_set():
    _, model = decoder()
    program = load(model)
    first, second = program.make_state(), program.make_state()
    alone = program.predict(step_inputs(3, 0), first)["scores"]
    kept = first.read_state("keys")
    assert not second.read_state("keys").any()
    after = program.predict(step_inputs(4, 1), first)["scores"]
    np.testing.assert_array_equal(program.predict(step_inputs(3, 0), second)["scores"], alone)
    second.write_state("keys", kept)
    np.testing.assert_array_equal(program.predict(step_inputs(4, 1), second)["scores"], after)


def test_runs_that_fork_do_not_change_each_others_states():
    program = load(decoder()[1])
    wanted = program.make_state()
    program.predict(step_inputs(3, 0), wanted)
    steps = program.plan.body.steps
    for number in (0, len(steps) // 3, len(steps) // 2, len(steps)):
        state = program.make_state()
        with torch.inference_mode():
            run = program.begin(step_inputs(3, 0), state)
            for step in steps[:number]:
                run.advance(step)
            before = state.read_state("keys")
            forked = run.fork().finish(number)
            np.testing.assert_array_equal(state.read_state("keys"), before)
            finished = run.finish(number)
        for one, other in zip(forked, finished, strict=True):
            assert torch.equal(one, other)
        np.testing.assert_array_equal(state.read_state("keys"), wanted.read_state("keys"))
    assert wanted.read_state("keys").any()


def test_states_that_are_lacking_or_wrong():
    _, model = decoder()
    program = load(model)
    with pytest.raises(InputError, match=r"has states \(keys, values\); give what make_state"):
        program.predict(step_inputs(1, 0))
    state = program.make_state()
    with pytest.raises(InputError, match=r"no state 'other'; there are 'keys', 'values'"):
        state.read_state("other")
    with pytest.raises(InputError, match=r"state 'keys' has shape"):
        state.write_state("keys", np.zeros(3))
    with pytest.raises(InputError, match="one dictionary"):
        program.predict([step_inputs(1, 0)], state)


def counter(shape=(1, 4), name="total"):
    """A program that adds its input to a state."""

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer(name, torch.zeros(shape))

        def forward(self, x):
            total = getattr(self, name)
            total.add_(x)
            return total * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            torch.jit.trace(Adds(), torch.zeros(shape)),
            inputs=[ct.TensorType("x", shape)],
            outputs=[ct.TensorType("y")],
            states=[ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name=name)],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )


def test_gradients_of_a_model_with_a_state():
    program = load(counter())
    state = program.make_state()
    ones = {"x": np.ones((1, 4), np.float32)}
    for count in (1, 2):
        found = program.gradients(ones, lambda outputs: outputs["y"].sum(), ["x"], state)
        assert torch.equal(found["x"], torch.full((1, 4), 2.0))
        np.testing.assert_array_equal(state.read_state("total"), np.full((1, 4), count))
        assert not state.tensors["total"].value.requires_grad


def test_what_is_no_state_of_the_model():
    program = load(counter())
    ones = {"x": np.ones((1, 4), np.float32)}
    for state, problem in (
        ({"total": np.zeros((1, 4))}, "a state is what make_state.. returns, got dict"),
        (load(counter(name="other")).make_state(), "another model: it has 'other', .* 'total'"),
        (load(counter((1, 5))).make_state(), r"'total' has shape \[1, 5\], not \[1, 4\]"),
    ):
        with pytest.raises(InputError, match=problem):
            program.predict(ones, state)
    with pytest.raises(InputError, match="an array of numbers"):
        program.make_state().write_state("total", np.full((1, 4), "a"))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda kind: setattr(kind.dimensions[0].constant, "size", 1 << 46), "more than this"),
        (lambda kind: kind.dimensions[0].unknown.SetInParent(), "known shape"),
        (lambda kind: setattr(kind, "dataType", 2), "known shape"),  # strings
    ],
)
def test_declarations_of_states_that_cannot_be(edit, problem):
    model = counter()
    spec = model.get_spec()
    for item in spec.mlProgram.functions["main"].inputs:
        if item.type.WhichOneof("type") == "stateType":
            edit(item.type.stateType.wrappedType.tensorType)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damaged = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    with pytest.raises(ModelFormatError, match=rf"state 'total': .*{problem}"):
        load(damaged)


def test_a_state_of_another_precision_is_refused():
    model = counter()
    ones = {"x": np.ones((1, 4), np.float32)}
    program = load(model)
    with pytest.raises(InputError, match=r"another precision: 'total' is torch\.float16"):
        program.predict(ones, load(model, precision="as_declared").make_state())


def test_a_tap_of_a_state_is_a_copy_of_what_it_holds_then():
    program = load(counter())
    state = program.make_state()
    ones = {"x": np.ones((1, 4), np.float32)}
    tap = program.run(ones, state, taps=["total"]).taps["total"]
    program.predict(ones, state)
    assert torch.equal(tap, torch.ones(1, 4))


def test_states_are_written_from_anything_that_holds_numbers():
    state = load(counter()).make_state()
    values = np.arange(4.0).reshape(1, 4)
    for value in (
        values.astype(">f4"),
        values.astype(np.longdouble),
        torch.from_numpy(values).requires_grad_(),
        values.astype(int),
        values.tolist(),
    ):
        state.write_state("total", np.zeros((1, 4)))
        state.write_state("total", value)
        np.testing.assert_array_equal(state.read_state("total"), values)
