"""MiniLM on English prose: which of eight sentences follows a given one.

The loss is the contrastive one that the model was trained with: the cosines of a sentence with
what follows it and with what follows seven others, times 20, as logits. Unlike a distance to the
model's own output, its gradient does not vanish at the trained weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.models.minilm import load_encoder
from benchmarks.models.minilm_weights import model_folder
from benchmarks.models.wordpiece import WordPiece
from benchmarks.tasks.prose import neighbours
from benchmarks.tasks.trial import Trial

PAIRS = 8
"""Pairs of neighbours in a sample."""
SAMPLES = 16
"""Calibration samples."""
HELD_OUT = 16
"""Samples held out."""
TOKENS = 64
SCALE = 20.0
SPLIT_SEED = 1

Texts = tuple[torch.Tensor, torch.Tensor]
"""Token ids and masks, [2 * pairs, tokens] each: first the sentences, then what follows each."""

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The same, and for each sentence the probability of each that may follow, [pairs, pairs]."""


def logits(vectors: torch.Tensor) -> torch.Tensor:
    """Of unit vectors [2 * pairs, width] in the order of ``Texts``: [pairs, pairs]."""
    sentences, following = vectors.chunk(2)
    return SCALE * sentences @ following.T


def contrastive(module: nn.Module, sample: Sample) -> torch.Tensor:
    ids, masks, target = sample
    return functional.cross_entropy(logits(module(ids, masks)), target)


def true_targets(chances: torch.Tensor, random: np.random.Generator | None) -> torch.Tensor:
    """What does follow: each sentence its neighbour."""
    return torch.eye(len(chances))


def own_targets(chances: torch.Tensor, random: np.random.Generator | None) -> torch.Tensor:
    """What the float model says, with its ``chances``; drawn from them where ``random`` is given.

    The gradient of the loss of drawn targets vanishes on average at the float weights but not in
    a sample; the mean of its square is the Fisher information, the curvature there.
    """
    if random is None:
        return chances
    drawn = [random.choice(len(row), p=row / row.sum()) for row in chances.double().numpy()]
    return functional.one_hot(torch.tensor(drawn), len(chances)).float()


def trial() -> Trial:
    """The loss of what does follow; FileNotFoundError says how to get the trained weights."""
    return _trial(true_targets)


def own_trial() -> Trial:
    """The loss of what the float model thinks that follows, which is least at its weights."""
    return _trial(own_targets)


def _trial(
    targets: Callable[[torch.Tensor, np.random.Generator | None], torch.Tensor],
) -> Trial:
    folder = model_folder()
    encoder, tokenizer, pairs = load_encoder(folder), WordPiece(folder / "vocab.txt"), neighbours()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pairs))
    kept_out, rest = order[: HELD_OUT * PAIRS], order[HELD_OUT * PAIRS :]

    def texts(chosen: np.ndarray) -> list[Texts]:
        batches = chosen.reshape(-1, PAIRS)
        return [_texts(tokenizer, [pairs[i] for i in batch]) for batch in batches]

    def draw(seed: int) -> tuple[Sample, ...]:
        random = np.random.default_rng(seed)
        drawn = texts(random.choice(rest, SAMPLES * PAIRS, replace=False))
        chances = [logits(vectors).softmax(dim=1) for vectors in _vectors(encoder, drawn)]
        return tuple(
            (*text, targets(chance, random)) for text, chance in zip(drawn, chances, strict=True)
        )

    held_out = texts(kept_out)
    expected = _vectors(encoder, held_out)
    wanted = [targets(logits(vectors).softmax(dim=1), None) for vectors in expected]

    def evaluate(module: nn.Module) -> tuple[float, float]:
        found = _vectors(module, held_out)
        losses = [
            float(functional.cross_entropy(logits(vectors), target))
            for vectors, target in zip(found, wanted, strict=True)
        ]
        cosines = (torch.cat(found) * torch.cat(expected)).sum(dim=1)
        return sum(losses) / len(losses), float(cosines.mean())

    return Trial(encoder, contrastive, draw, evaluate)


def _texts(tokenizer: WordPiece, pairs: list[tuple[str, str]]) -> Texts:
    """The pairs in tokens, padded no further than the longest needs."""
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    ids, masks = zip(*(tokenizer.encode(text, TOKENS) for text in texts), strict=True)
    longest = max(sum(mask) for mask in masks)
    return torch.tensor(ids)[:, :longest], torch.tensor(masks)[:, :longest]


def _vectors(module: nn.Module, texts: list[Texts]) -> list[torch.Tensor]:
    module.eval()
    with torch.no_grad():
        return [module(*each) for each in texts]
