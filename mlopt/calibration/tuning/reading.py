"""Reading the samples: what the original answers, and which of them are held out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mlopt.calibration.answers.losses import Loss
from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.programs import checked_sample
from mlopt.calibration.samples import errors_of_sample, numbered_samples
from mlopt.calibration.tuning.store import Store
from mlopt.errors import ConfigError, InputError


def read_samples(
    samples: Iterable[Any],
    compressed: Runner,
    original: Runner,
    store: Store,
    losses: Sequence[Loss],
) -> None:
    """Run the original on all samples; store its outputs, and have the losses note them.

    Raises
    ------
    InputError
        A sample does not fit; the message has its number, from 0.
    ConfigError
        An output of the original is NaN or infinite, or there is none of floats.
    """
    numbered, _ = numbered_samples(samples, None)
    for number, sample in numbered:
        given = checked_sample(sample, number)
        with errors_of_sample(number):
            inputs = compressed.converted(given)
            with torch.inference_mode():
                outputs = original.outputs(original.converted(given), number)
        if not outputs:
            raise ConfigError("the original has no output of floats that the loss could compare")
        for name, output in outputs.items():
            if not bool(torch.isfinite(output).all()):
                raise ConfigError(
                    f"sample {number}: output {name!r} of the original has NaN or infinite "
                    "elements, which cannot be aimed at; leave the sample out"
                )
        for loss in losses:
            loss.note(outputs)
        store.add(inputs, outputs)


def divided(count: int, share: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples to train on, and of those held out: a share, spread evenly.

    Raises
    ------
    InputError
        There are too few.
    """
    if not count:
        raise InputError("there are no samples; give a few dozen or more")
    # rounded: 10 * 0.3 is a little less than 3
    until = [math.floor(round(number * share, 9)) for number in range(count + 1)]
    kept = [number for number in range(count) if until[number + 1] > until[number]]
    if not kept:
        raise InputError(
            f"of {count} samples none is held out with held_out={share}; give "
            f"{math.ceil(1 / share)} or more, a few dozen are useful"
        )
    return [number for number in range(count) if number not in set(kept)], kept
