"""Metrics of language models: perplexity, agreement of the next token, and KL divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import ConfigError, InputError
from mlopt.runtime.comparison.rows import MetricRow
from mlopt.runtime.comparison.token_names import TokenNames, has_all_positions, token_names

_PERPLEXITY = "perplexity"
_AGREEMENT = "next-token agreement"
_DIVERGENCE = "next-token KL divergence"
_ELEMENTS_AT_ONCE = 1 << 22
"""Number of logits that are held in float64 at the same time, of each model."""
_NO_TOKEN = -1


@attrs.define(eq=False)
class NextToken:
    """How well two models predict the next token, accumulated over samples.

    tokens, logits: names of the input and the output, None to recognize them in the first sample,
    see :func:`token_names`; mask: the name of an input whose zeros are positions to leave out;
    vocabularies: for inputs that look up rows of a table, the length of the table; probabilities:
    outputs that are probabilities, whose logarithms are taken; are_drawn: whether the tokens are
    random, so that their perplexity means nothing.

    Without a name that is given, samples and outputs that are none of a language model are passed
    over.
    """

    tokens: str | None
    logits: str | None
    mask: str | None
    vocabularies: Mapping[str, int]
    probabilities: frozenset[str]
    are_drawn: bool
    _names: TokenNames | None = None
    _is_recognized: bool = False
    _unclear: str = ""
    _no_perplexity: str = ""
    _sums: _Sums = attrs.Factory(lambda: _Sums())

    @property
    def is_requested(self) -> bool:
        """Whether an option asks for these metrics."""
        return any(name is not None for name in (self.tokens, self.logits, self.mask))

    def add(
        self, sample: Mapping[str, Any], reference: Mapping[str, Any], candidate: Mapping[str, Any]
    ) -> None:
        """Add a sample: the inputs, and the outputs of both models.

        Raises
        ------
        ConfigError
            The options leave open which input or output is meant.
        InputError
            Tokens, mask and logits do not fit each other.
        """
        if not self._is_recognized:
            self._recognize(sample, reference)
        if self._names is None:
            return
        tokens = self._array(sample, self._names.tokens)
        first, second = (outputs[self._names.logits] for outputs in (reference, candidate))
        if has_all_positions(tokens.shape, first.shape):
            targets, is_counted = self._targets(sample, tokens, first.shape[-1])
        else:
            self._no_perplexity = (
                f"{self._names.logits!r} has the last position only, shape {list(first.shape)} "
                f"for tokens {list(tokens.shape)}: the other tokens have no prediction"
            )
            is_counted = np.ones(math.prod(first.shape[:-1]), bool)
            targets = np.full(is_counted.size, _NO_TOKEN, np.int64)
        if targets.size * first.shape[-1] != first.size:
            raise InputError(
                f"output {self._names.logits!r} has shape {list(first.shape)} for tokens "
                f"{list(tokens.shape)}; logits [..., T, V], or [..., V] for the last position, "
                "are needed for all samples; leave the sample out"
            )
        self._add(first, second, targets, is_counted)

    def rows(self) -> Iterator[MetricRow]:
        """Yield the metrics of all samples."""
        if self._unclear:
            yield MetricRow("next token", note=self._unclear)
        if self._names is None:
            return
        sums, output = self._sums, self._names.logits
        note = sums.note if sums.positions else f"the mask {self.mask!r} leaves no position"
        reason = self._without_perplexity
        if reason:
            yield MetricRow(_PERPLEXITY, output, note=reason if sums.positions else note)
        else:
            first, second = sums.perplexities
            yield MetricRow(_PERPLEXITY, output, first, second, count=sums.predicted, note=note)
        for name, total, unit in (
            (_AGREEMENT, float(sums.same), "share"),
            (_DIVERGENCE, sums.divergence, "nats"),
        ):
            pair = total / sums.positions if sums.positions else None
            yield MetricRow(name, output, pair=pair, unit=unit, count=sums.positions, note=note)

    @property
    def _without_perplexity(self) -> str:
        """Why there is no perplexity, empty if there is one."""
        if self._no_perplexity:
            return self._no_perplexity
        if self.are_drawn:
            return "the tokens are random; give samples of text"
        if not self._sums.predicted:
            return "no token follows another one; give samples of several tokens"
        return ""

    def _recognize(self, sample: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._is_recognized = True
        pairs = token_names(
            sample,
            outputs,
            tokens=self.tokens,
            logits=self.logits,
            vocabularies=self.vocabularies,
        )
        if len(pairs) == 1:
            (self._names,) = pairs
        elif pairs:
            self._unclear = (
                f"not measured, since several inputs or outputs fit: {'; '.join(map(str, pairs))}; "
                "name the input and the output with tokens and logits"
            )
        if self._names is None and self.is_requested:
            raise ConfigError(
                f"next-token metrics are {self._unclear}"
                if self._unclear
                else f"mask={self.mask!r}: no input of tokens and output of logits was recognized; "
                "name them with tokens and logits"
            )

    def _array(self, sample: Mapping[str, Any], name: str) -> np.ndarray:
        if name not in sample:
            raise InputError(
                f"a sample has no {name!r}, which the next-token metrics need; it has "
                f"{', '.join(map(repr, sample))}"
            )
        return np.asarray(sample[name])

    def _targets(
        self, sample: Mapping[str, Any], tokens: np.ndarray, words: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return for each position the next token, ``_NO_TOKEN`` without one, and if it counts."""
        assert self._names is not None
        is_counted = np.ones(tokens.shape, bool)
        if self.mask is not None:
            mask = self._array(sample, self.mask)
            if mask.size != tokens.size or mask.shape[-1:] != tokens.shape[-1:]:
                raise InputError(
                    f"mask {self.mask!r} has shape {list(mask.shape)}, the tokens "
                    f"{self._names.tokens!r} have {list(tokens.shape)}; a mask with one number for "
                    "each token is needed; name another input, or leave the mask out"
                )
            is_counted = mask.reshape(tokens.shape) != 0
        is_known = is_counted[..., :-1] & is_counted[..., 1:]
        targets = np.full(tokens.shape, _NO_TOKEN, np.int64)
        if self._are_tokens(tokens[..., 1:][is_known], words):
            targets[..., :-1][is_known] = tokens[..., 1:][is_known]
        return targets.reshape(-1), is_counted.reshape(-1)

    def _are_tokens(self, tokens: np.ndarray, words: int) -> bool:
        wrong = tokens[~((tokens >= 0) & (tokens < words) & (tokens == np.rint(tokens)))]
        if not wrong.size:
            return True
        assert self._names is not None
        what = (
            f"tokens {self._names.tokens!r} hold {wrong[0]}; the logits have {words} words, so "
            f"tokens are whole numbers from 0 to {words - 1}; padding can be left out with mask"
        )
        if self.is_requested:
            raise InputError(what)
        self._no_perplexity = what
        return False

    def _add(
        self, first: np.ndarray, second: np.ndarray, targets: np.ndarray, is_counted: np.ndarray
    ) -> None:
        assert self._names is not None
        words = first.shape[-1]
        a, b = first.reshape(-1, words), second.reshape(-1, words)
        chosen = np.flatnonzero(is_counted)
        is_softmax = self._names.logits in self.probabilities
        at_once = max(1, _ELEMENTS_AT_ONCE // words)
        for start in range(0, chosen.size, at_once):
            rows = chosen[start : start + at_once]
            p, q = (_log_probabilities(t[rows], are_probabilities=is_softmax) for t in (a, b))
            self._sums.add(p, q, torch.from_numpy(targets[rows]))


@attrs.define(eq=False)
class _Sums:
    """Sums over positions: each has the logarithms of the probabilities of all next tokens."""

    positions: int = 0
    predicted: int = 0
    surprises: list[float] = attrs.Factory(lambda: [0.0, 0.0])
    same: int = 0
    divergence: float = 0.0
    not_numbers: list[int] = attrs.Factory(lambda: [0, 0])

    def add(self, p: Tensor, q: Tensor, targets: Tensor) -> None:
        """Add positions: log-probabilities [N, V] of both models, and next tokens [N]."""
        are_nan = [t.isnan().any(dim=-1) for t in (p, q)]
        is_number = ~(are_nan[0] | are_nan[1])
        has_target = targets != _NO_TOKEN
        self.positions += len(targets)
        self.predicted += int(has_target.sum())
        for role, (logarithms, is_nan) in enumerate(zip((p, q), are_nan, strict=True)):
            of_targets = logarithms[has_target].gather(1, targets[has_target, None])
            self.surprises[role] -= float(of_targets.sum())
            self.not_numbers[role] += int(is_nan.sum())
        # numpy takes the first of equal ones
        best = [t.numpy().argmax(axis=-1) for t in (p, q)]
        self.same += int((best[0] == best[1])[is_number.numpy()].sum())
        # 0 log 0 is 0
        terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(dim=-1)
        self.divergence += float(torch.where(is_number, terms, math.nan).sum())

    @property
    def perplexities(self) -> tuple[float, float]:
        """The exponential of the mean surprise, of both models."""
        first, second = (_exponential(total / self.predicted) for total in self.surprises)
        return first, second

    @property
    def note(self) -> str:
        """What is not a number, empty if nothing."""
        models = [
            f"{count} of {self.positions} positions of the {role}"
            for role, count in zip(("reference", "candidate"), self.not_numbers, strict=True)
            if count
        ]
        if not models:
            return ""
        return (
            f"{' and '.join(models)} have logits that are NaN or infinite, and count as no "
            "agreement; `mlopt compare --float16 MODEL` shows where they enter"
        )


def _log_probabilities(rows: np.ndarray, *, are_probabilities: bool) -> Tensor:
    logits = torch.from_numpy(np.ascontiguousarray(rows, np.float64))
    return (logits.log() if are_probabilities else logits).log_softmax(dim=-1)


def _exponential(value: float) -> float:
    return math.exp(value) if not value > 700.0 else math.inf
