"""all-MiniLM-L6-v2 with its real trained weights, 22.4 M of them in the converted program.

Where the weights come from: ``minilm_weights.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.models.bert import SentenceEncoder
from benchmarks.models.convert import convert
from benchmarks.models.minilm_weights import model_folder
from benchmarks.models.safetensors import read_safetensors
from benchmarks.models.wordpiece import WordPiece

TOKENS = 128
_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "contracted_norm",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
}


def _our_name(name: str) -> str | None:
    """The parameter of ``SentenceEncoder`` for a stored name; None: not part of it."""
    owner, _, kind = name.rpartition(".")
    if owner in _EMBEDDINGS:
        return f"{_EMBEDDINGS[owner]}.{kind}"
    if owner.startswith("encoder.layer."):
        index, _, part = owner.removeprefix("encoder.layer.").partition(".")
        return f"layers.{index}.{_PARTS[part]}.{kind}"
    return None


def load_encoder(folder: Path) -> SentenceEncoder:
    """The encoder in float32 with the trained weights; every parameter is set exactly once."""
    config = json.loads((folder / "config.json").read_text())
    encoder = SentenceEncoder(
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        width=config["hidden_size"],
        hidden=config["intermediate_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
    )
    state = {}
    for name, array in read_safetensors(folder / "model.safetensors").items():
        ours = _our_name(name)
        if ours is not None:
            state[ours] = torch.from_numpy(array.copy())
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


def similarities(encoder: SentenceEncoder, folder: Path) -> tuple[float, float]:
    """Cosines of a pair that says the same and of the more alike of two unrelated pairs."""
    tokenizer = WordPiece(folder / "vocab.txt")
    sentences = (
        "A man is playing the guitar.",
        "Someone plays an acoustic guitar.",
        "The central bank raised interest rates again.",
    )
    ids, masks = zip(*(tokenizer.encode(text, TOKENS) for text in sentences), strict=True)
    with torch.no_grad():
        vectors = encoder(torch.tensor(ids), torch.tensor(masks))
    cosines = (vectors @ vectors.T).tolist()
    return cosines[0][1], max(cosines[0][2], cosines[1][2])


def build(path: Path, target: str = "iOS18") -> None:
    """Convert in fp16; RuntimeError where the encoder does not tell meanings apart."""
    folder = model_folder()
    encoder = load_encoder(folder)
    alike, unrelated = similarities(encoder, folder)
    if not alike > 0.6 > 0.3 > unrelated:
        raise RuntimeError(f"the encoder is wrong: cosines alike {alike}, unrelated {unrelated}")
    ids = torch.ones(1, TOKENS, dtype=torch.int32)
    convert(encoder, {"input_ids": ids, "attention_mask": ids.clone()}, path, target=target)


def build_ios16(path: Path) -> None:
    """Convert for iOS16."""
    build(path, target="iOS16")
