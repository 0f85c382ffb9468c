"""What ``answers`` asks of each model: who judges it, and the forms it is palettized in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from benchmarks.tasks import answer_trials
from mlopt.choices import LossName, Statistics


@attrs.frozen
class Form:
    """A request: the options of all weights; layers_only: embeddings stay as they are."""

    options: dict[str, Any]
    layers_only: bool = False


@attrs.frozen
class Trial:
    """A model: who asks it, and its forms.

    statistics: those with which it is palettized in sequence; loss: what is tuned for.
    """

    judge: Callable[[str], tuple[list[answer_trials.Sample], answer_trials.Ask]]
    forms: dict[str, Form]
    statistics: Statistics = "hessian"
    loss: LossName = "squared"


def _groups(size: int) -> dict[str, Any]:
    return {"granularity": "per_grouped_channel", "group_size": size}


TRIALS = {
    "minilm": Trial(
        answer_trials.sentences,
        {
            "layers, 2 bits": Form({"nbits": 2}, layers_only=True),
            "layers, 3 bits": Form({"nbits": 3}, layers_only=True),
            "layers, 4 bits": Form({"nbits": 4}, layers_only=True),
            "3 bits": Form({"nbits": 3}),
            "3 bits, groups of 16": Form({"nbits": 3, **_groups(16), "on_indivisible": "divisor"}),
        },
        statistics="guided",
    ),
    "smollm2": Trial(
        answer_trials.language,
        {
            "4 bits": Form({"nbits": 4}),
            "4 bits, groups of 8": Form({"nbits": 4, **_groups(8)}),
            "3 bits, groups of 8": Form({"nbits": 3, **_groups(8)}),
        },
        loss="kl",
    ),
    "efficientnet-lite0": Trial(
        answer_trials.photographs,
        {
            "4 bits": Form({"nbits": 4}),
            "4 bits, scales": Form({"nbits": 4, "enable_per_channel_scale": True}),
            "6 bits": Form({"nbits": 6}),
        },
    ),
    "digits": Trial(
        answer_trials.digits,
        {
            "1 bit": Form({"nbits": 1, "weight_threshold": 0}),
            "2 bits": Form({"nbits": 2, "weight_threshold": 0}),
        },
    ),
}
