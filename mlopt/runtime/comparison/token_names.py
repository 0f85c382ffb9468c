"""Recognition of the input that holds tokens, and of the output that holds their logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from mlopt.errors import ConfigError
from mlopt.runtime.comparison.answers import is_image
from mlopt.text.names import shortlist


@attrs.frozen
class TokenNames:
    """The input of token ids, [..., T], and the output of logits, [..., T, V] or [..., V]."""

    tokens: str
    logits: str

    def __str__(self) -> str:
        return f"tokens {self.tokens!r} with logits {self.logits!r}"


def token_names(
    sample: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    tokens: str | None,
    logits: str | None,
    vocabularies: Mapping[str, int],
) -> list[TokenNames]:
    """Return the pairs of an input and an output that can be tokens and logits.

    tokens, logits: names that are given; vocabularies: for inputs that look up rows of a table,
    the length of the table. The last axis of logits is as long as the table of the tokens.

    Where a name is given and no pair is like this, the other one is chosen by its shape: an input
    of integers [..., T], an output of floats [..., T, V], of several the one with the largest V.

    Raises
    ------
    ConfigError
        A name is given, and no input or output fits it.
    """
    inputs = {
        name: np.shape(value)
        for name, value in sample.items()
        if name == tokens or (tokens is None and (name in vocabularies or _is_whole(value)))
    }
    scores = {name: value.shape for name, value in outputs.items() if _may_be_logits(value)}
    if logits is not None:
        scores = {name: shape for name, shape in scores.items() if name == logits}
    fitting = [
        TokenNames(name, output)
        for name, shape in inputs.items()
        for output, of_output in scores.items()
        if shape and (has_all_positions(shape, of_output) or has_last_position(shape, of_output))
    ]
    in_table = [n for n in fitting if vocabularies.get(n.tokens) == scores[n.logits][-1]]
    if in_table or (tokens is None and logits is None):
        return in_table
    if not fitting:
        raise ConfigError(_misfit(sample, outputs, tokens, logits))
    if tokens is not None and logits is not None:
        return fitting
    full = [n for n in fitting if has_all_positions(inputs[n.tokens], scores[n.logits])]
    widest = max(scores[n.logits][-1] for n in full or fitting)
    return [n for n in full or fitting if scores[n.logits][-1] == widest]


def has_all_positions(tokens: tuple[int, ...], logits: tuple[int, ...]) -> bool:
    """Return whether logits [..., T, V] hold scores for each of the tokens [..., T]."""
    rows = int(np.prod(logits[:-1]))
    is_row_of_tokens = len(logits) == 1 or logits[-2] in (tokens[-1], rows)
    return rows == int(np.prod(tokens)) and is_row_of_tokens


def has_last_position(tokens: tuple[int, ...], logits: tuple[int, ...]) -> bool:
    """Return whether logits [..., V] hold scores for one position of each text of tokens."""
    return int(np.prod(logits[:-1])) == int(np.prod(tokens[:-1]))


def _is_whole(value: Any) -> bool:
    return not is_image(value) and np.asarray(value).dtype.kind in "iu"


def _may_be_logits(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return is_array and value.ndim > 0 and value.shape[-1] > 1 and value.size > 0


def _misfit(
    sample: Mapping[str, Any], outputs: Mapping[str, Any], tokens: str | None, logits: str | None
) -> str:
    given = {"tokens": tokens, "logits": logits}
    named = " and ".join(f"{role}={name!r}" for role, name in given.items() if name is not None)
    shapes = {
        **({tokens: sample.get(tokens)} if tokens else sample),
        **({logits: outputs.get(logits)} if logits else outputs),
    }
    described = [
        "an absent " + name if value is None else f"{name} {list(np.shape(value))}"
        for name, value in shapes.items()
    ]
    return (
        f"{named}: tokens of shape [..., T] and logits of floats [..., T, V], or [..., V] for the "
        f"last position, are needed, got {shortlist(described)}; name the input and the output "
        "that have these shapes"
    )
