"""SmolLM2-135M-Instruct with its real trained weights: 134.5 M of them, the head tied.

Where the weights come from: ``smollm2_weights.py``. They were stored in 4 bits (the embedding in
8), so what is called float here has their values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.models.convert import convert
from benchmarks.models.llama import Llama, LlamaShape
from benchmarks.models.smollm2_weights import model_file, read_fields, read_tensors

TOKENS = 128
_SIZES = {
    "vocabulary": "llama.vocab_size",
    "width": "llama.embedding_length",
    "hidden": "llama.feed_forward_length",
    "layers": "llama.block_count",
    "heads": "llama.attention.head_count",
    "key_heads": "llama.attention.head_count_kv",
    "rotary_base": "llama.rope.freq_base",
    "epsilon": "llama.attention.layer_norm_rms_epsilon",
}
_PARTS = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.out",
    "ffn_norm": "perceptron_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_WHOLE = {"token_embd": "words", "output_norm": "norm"}


def _our_name(name: str) -> str:
    """The parameter of ``Llama`` for a tensor's name in the file."""
    owner, _, kind = name.rpartition(".")
    if owner in _WHOLE:
        return f"{_WHOLE[owner]}.{kind}"
    index, _, part = owner.removeprefix("blk.").partition(".")
    return f"layers.{index}.{_PARTS[part]}.{kind}"


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head with its rotary pairs half a head apart; GGUF has them side by side."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def load_decoder(tokens: int = TOKENS) -> Llama:
    """The decoder in float32 for ``tokens`` tokens; every parameter is set exactly once."""
    file = model_file()
    shape = LlamaShape(**dict(zip(_SIZES, read_fields(file, *_SIZES.values()), strict=True)))
    heads = {"attention.query": shape.heads, "attention.key": shape.key_heads}
    state = {}
    for name, array in read_tensors(file):
        ours = _our_name(name)
        part = ours.removeprefix("layers.").partition(".")[2].removesuffix(".weight")
        if part in heads:
            array = _halves_apart(array, heads[part])
        state[ours] = torch.from_numpy(array)
    decoder = Llama(shape, tokens)
    decoder.load_state_dict(state, strict=True)
    return decoder.eval()


def build(path: Path) -> None:
    """Convert in fp16 for iOS18, 270 MB: token ids [1, TOKENS] to logits."""
    ids = torch.ones(1, TOKENS, dtype=torch.int32)
    convert(load_decoder(), {"input_ids": ids}, path, target="iOS18")
