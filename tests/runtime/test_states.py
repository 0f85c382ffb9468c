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

from mlopt.errors import InputError
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
