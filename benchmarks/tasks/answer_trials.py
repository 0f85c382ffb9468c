"""Models with trained weights, samples to calibrate them with, and others to ask them about.

Each function returns the samples of a calibration, and what asks a package: its measures by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.tasks.texts import Text

TEXTS: tuple[Text, ...] = ("held-out", "other")

Sample: TypeAlias = "dict[str, npt.NDArray[Any]]"
Ask: TypeAlias = "Callable[[str], dict[str, float]]"


def sentences(path: str) -> tuple[list[Sample], Ask]:
    """MiniLM: the signal-to-noise ratio of its embeddings of passages, in dB."""
    from benchmarks.models.minilm import TOKENS
    from benchmarks.models.minilm_weights import model_folder
    from benchmarks.models.wordpiece import WordPiece
    from benchmarks.tasks.texts import paragraphs

    tokenizer = WordPiece(model_folder() / "vocab.txt")

    def samples(text: Text, count: int) -> list[Sample]:
        words = " ".join(paragraphs(text)).split()
        made = []
        for start in np.arange(count) * (len(words) - TOKENS) // count:
            # A word has a token at least, so that a passage fills the model's whole length.
            ids, mask = tokenizer.encode(" ".join(words[start : start + TOKENS]), TOKENS)
            both = {"input_ids": ids, "attention_mask": mask}
            made.append({name: np.array([part], np.int32) for name, part in both.items()})
        return made

    asked = {text: samples(text, 64) for text in TEXTS}
    wanted = {text: answers(path, asked[text]) for text in TEXTS}

    def ask(candidate: str) -> dict[str, float]:
        return {text: decibels(wanted[text], answers(candidate, asked[text])) for text in TEXTS}

    return samples("calibration", 256), ask


def language(_: str) -> tuple[list[Sample], Ask]:
    """SmolLM2: its perplexity."""
    from benchmarks.models.smollm2 import TOKENS
    from benchmarks.models.smollm2_weights import model_file, tokenizer
    from benchmarks.tasks.language_model import perplexity
    from benchmarks.tasks.texts import token_windows
    from mlopt import runtime

    made = tokenizer(model_file())

    def windows(text: Text, count: int) -> npt.NDArray[np.int32]:
        return token_windows(lambda t: made.encode(t).ids, text, count, TOKENS)

    asked = {text: windows(text, 8) for text in TEXTS}

    def ask(candidate: str) -> dict[str, float]:
        program = runtime.load(candidate, keep_weights=True)
        return {text: perplexity(program, asked[text]) for text in TEXTS}

    return [{"input_ids": piece[None]} for piece in windows("calibration", 64)], ask


def photographs(path: str) -> tuple[list[Sample], Ask]:
    """EfficientNet-lite0: its logits in dB, and the share of crops that keep their first class.

    Other data are the negatives of the crops.
    """
    from benchmarks.models.efficientnet_lite import SIZE
    from benchmarks.tasks.photographs import crops

    held_out = [{"image": crop[None]} for crop in crops("held-out", 64, SIZE)]
    asked = {"held-out": held_out, "other": [{"image": -each["image"]} for each in held_out]}
    wanted = {name: answers(path, samples) for name, samples in asked.items()}

    def ask(candidate: str) -> dict[str, float]:
        given = {name: answers(candidate, samples) for name, samples in asked.items()}
        classes, kept = wanted["held-out"].argmax(axis=1), given["held-out"].argmax(axis=1)
        found = {name: decibels(wanted[name], given[name]) for name in asked}
        return {**found, "top-1": float((kept == classes).mean())}

    return [{"image": crop[None]} for crop in crops("calibration", 64, SIZE)], ask


def digits(path: str) -> tuple[list[Sample], Ask]:
    """The digit classifier: its logits in dB, and its accuracy, for digits held out.

    Other data are these digits upside down.
    """
    from fixtures.digits import data

    images, held_out, _labels, labels = (part.numpy() for part in data())
    turned = np.ascontiguousarray(held_out[:, :, ::-1])
    asked = {"held-out": _images(held_out), "other": _images(turned)}
    wanted = {name: answers(path, samples) for name, samples in asked.items()}

    def ask(candidate: str) -> dict[str, float]:
        given = {name: answers(candidate, samples) for name, samples in asked.items()}
        found = {name: decibels(wanted[name], given[name]) for name in asked}
        right = given["held-out"].argmax(axis=1) == labels
        return {**found, "top-1": float(right.mean())}

    return _images(images[:256]), ask


def noise(path: str) -> tuple[list[Sample], Ask]:
    """A model with random weights: its first output in dB, for normal noise.

    Other data are the magnitudes of such noise, whose mean is not 0.
    """
    from mlopt import runtime
    from mlopt.runtime.comparison.random_samples import random_samples

    drawn: list[Sample] = random_samples(runtime.load(path), 24, seed=1)
    held_out = drawn[:4]
    asked = {
        "held-out": held_out,
        "other": [{name: np.abs(value) for name, value in each.items()} for each in held_out],
    }
    wanted = {name: answers(path, samples) for name, samples in asked.items()}

    def ask(candidate: str) -> dict[str, float]:
        return {
            name: decibels(wanted[name], answers(candidate, samples))
            for name, samples in asked.items()
        }

    return drawn[8:], ask


def _images(images: npt.NDArray[Any]) -> list[Sample]:
    return [{"image": image[None]} for image in images]


def answers(path: str, samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """The first output of a package for each of the samples, along the first axis."""
    from mlopt import runtime

    program = runtime.load(path, keep_weights=True)
    outputs = [next(iter(program.predict(sample).values())) for sample in samples]
    return np.concatenate([np.asarray(output, np.float64) for output in outputs])


def decibels(wanted: npt.NDArray[np.float64], given: npt.NDArray[np.float64]) -> float:
    """The signal-to-noise ratio of answers; infinity for equal ones."""
    noise = float(((given - wanted) ** 2).sum())
    return float(10 * np.log10((wanted**2).sum() / noise)) if noise else float("inf")
