"""A language model on English prose: how well it foretells the next token."""

from __future__ import annotations

import re
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.tasks.prose import is_prose


def windows(tokenizer: Any, count: int, tokens: int) -> npt.NDArray[np.int32]:
    """Pieces of ``tokens`` tokens [count, tokens], spread evenly over the manual of ``pydoc``."""
    paragraphs = (
        " ".join(text.split())
        for topic in sorted(topics)
        for text in re.split(r"\n\s*\n", topics[topic])
    )
    ids = tokenizer.encode("\n".join(filter(is_prose, paragraphs))).ids
    pieces = np.array(ids[: len(ids) // tokens * tokens], np.int32).reshape(-1, tokens)
    return pieces[:: len(pieces) // count][:count]


def perplexity(program: Any, pieces: npt.NDArray[np.int32]) -> float:
    """The exponential of the mean negative log-likelihood of each token but the first.

    program: a loaded model that gives logits [1, tokens, vocabulary] for ``input_ids``.
    """
    losses = []
    for piece in pieces:
        (logits,) = program.predict({"input_ids": piece[None]}).values()
        logits = torch.from_numpy(np.asarray(logits)[0, :-1]).float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(piece[1:]).long()))
    return float(torch.stack(losses).mean().exp())
