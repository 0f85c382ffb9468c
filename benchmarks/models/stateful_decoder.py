"""A decoder in the form of GPT-2, whose keys and values are states; 14 M weights.

One token a step. The head is tied to the embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.lib.quiet import import_coremltools
from benchmarks.models.random_weights import fill
from benchmarks.models.transformer import Perceptron, in_heads, joined

VOCABULARY, WIDTH, HEADS, LAYERS = 8000, 384, 6, 6
POSITIONS = 64
"""How many keys and values there is place for."""
STEPS = 50
STATES = ("keys", "values")
_SHAPE = (LAYERS, HEADS, POSITIONS, WIDTH // HEADS)


class Block(nn.Module):
    """Attention to what has been written, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.joint = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.perceptron_norm, self.perceptron = nn.LayerNorm(WIDTH), Perceptron(WIDTH)


class Decoder(nn.Module):
    """The scores [1, 1, VOCABULARY] of the token after this one.

    token: int32 [1, 1]; place: int32 [1]; mask: [1, POSITIONS], added to the scores of attention.
    The buffers ``keys`` and ``values`` are written at the place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for name in STATES:
            self.register_buffer(name, torch.zeros(_SHAPE))

    def restart(self) -> None:
        """Forget all keys and values."""
        self.keys.zero_()
        self.values.zero_()

    def forward(self, token: torch.Tensor, place: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(token) + self.places(place)
        for index, block in enumerate(self.blocks):
            joint = block.joint(block.attention_norm(x))
            query, key, value = (in_heads(part, HEADS) for part in joint.chunk(3, dim=-1))
            # slices, as coremltools 9.0 loses what is assigned to an index that is a tensor
            self.keys[index, :, place : place + 1] = key[0]
            self.values[index, :, place : place + 1] = value[0]
            keys, values = self.keys[index : index + 1], self.values[index : index + 1]
            mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + block.out(joined(mixed))
            x = x + block.perceptron(block.perceptron_norm(x))
        return functional.linear(self.norm(x), self.words.weight)


def decoder() -> Decoder:
    """With random weights."""
    module = Decoder()
    fill(module, seed=50)
    return module.eval()


def steps() -> list[dict[str, torch.Tensor]]:
    """The inputs of ``STEPS`` steps, of random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (STEPS, 1, 1), generator=generator, dtype=torch.int32)
    places = torch.arange(STEPS, dtype=torch.int32)
    later = torch.arange(POSITIONS) > places[:, None]
    masks = later * -1e4
    return [
        {"token": token, "place": place, "mask": mask}
        for token, place, mask in zip(tokens, places[:, None], masks[:, None], strict=True)
    ]


def build(path: Path) -> None:
    """An iOS18 fp16 package with the states ``STATES``."""
    ct = import_coremltools()
    import numpy as np

    module, example = decoder(), steps()[0]
    with torch.no_grad():
        # the second run, which checks the first, would find other states
        traced = torch.jit.trace(module, tuple(example.values()), check_trace=False)
    module.restart()
    model = ct.convert(
        traced,
        inputs=[
            ct.TensorType("token", (1, 1), np.int32),
            ct.TensorType("place", (1,), np.int32),
            ct.TensorType("mask", (1, POSITIONS)),
        ],
        outputs=[ct.TensorType("scores")],
        states=[ct.StateType(ct.TensorType(shape=_SHAPE), name=name) for name in STATES],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,  # which states need
        skip_model_load=True,
    )
    model.save(str(path))
