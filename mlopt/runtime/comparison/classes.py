"""Metrics of classifiers: agreement of the best classes, and accuracy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch

from mlopt.errors import ConfigError, InputError
from mlopt.runtime.comparison.answers import is_one_row
from mlopt.runtime.comparison.measures import Agreement
from mlopt.runtime.comparison.rows import MetricRow
from mlopt.text.names import shortlist


@attrs.define(eq=False)
class BestClasses:
    """How often two models have the same best classes, and the right one.

    output: the name of the output with scores [..., C], a dictionary or an array, None to recognize
    it: a dictionary of probabilities, or one row of scores; scores: names of outputs that can be
    scores; labels: the class of each row of scores, of all samples in order, None if unknown;
    samples: how many there will be.
    """

    output: str | None
    scores: Collection[str]
    labels: list[Any] | None
    samples: int
    _agreement: Agreement = attrs.Factory(Agreement)
    _right: list[int] = attrs.Factory(lambda: [0, 0])

    def add(
        self, sample: Mapping[str, Any], reference: Mapping[str, Any], candidate: Mapping[str, Any]
    ) -> None:
        """Add a sample: the outputs of both models.

        Raises
        ------
        ConfigError
            The output holds no scores, or it is unclear which one does.
        InputError
            Labels do not fit the scores.
        """
        if self.output is None:
            self.output = _scores_of(reference, self.scores)
        classes, first = _rows(self.output, reference[self.output])
        if isinstance(reference[self.output], Mapping):
            second = np.array([[candidate[self.output][name] for name in classes]], np.float64)
        else:
            _, second = _rows(self.output, candidate[self.output])
        labels = self._labels_of(len(first), classes)
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            self._agreement.add(torch.from_numpy(a), torch.from_numpy(b))
            if labels is not None:
                for role, scores in enumerate((a, b)):
                    is_number = not np.isnan(scores).any()
                    self._right[role] += bool(is_number and scores.argmax() == labels[number])

    def rows(self) -> Iterator[MetricRow]:
        """Yield the metrics of all samples."""
        agreement, output = self._agreement, self.output or ""
        rows, note = agreement.samples, ""
        if agreement.not_a_number:
            note = (
                f"{agreement.not_a_number} of {rows} rows have NaN among their scores, and count "
                "as no agreement and as wrong; `mlopt compare --float16 MODEL` shows where NaN "
                "enters"
            )
        shares = {"top-1 agreement": agreement.top1_share, "top-5 agreement": agreement.top5_share}
        for name, share in shares.items():
            if share is not None:
                yield MetricRow(name, output, pair=share, unit="share", count=rows, note=note)
        if self.labels is not None:
            first, second = (right / rows for right in self._right)
            yield MetricRow("accuracy", output, first, second, unit="share", count=rows, note=note)

    def _labels_of(self, rows: int, classes: Mapping[Any, int]) -> list[int] | None:
        """Return the positions of the right classes of the next rows."""
        if self.labels is None:
            return None
        done = self._agreement.samples
        is_first = done == 0
        if (is_first and len(self.labels) != rows * self.samples) or done + rows > len(self.labels):
            raise InputError(
                f"{len(self.labels)} labels for {self.samples} samples with {rows} rows of scores "
                f"each in {self.output!r}; give one label for each row"
            )
        given = self.labels[done : done + rows]
        wrong = [label for label in given if label not in classes]
        if wrong:
            names = list(classes)
            allowed = f"{names[0]!r} to {names[-1]!r}" if _are_numbers(names) else shortlist(names)
            raise InputError(
                f"label {wrong[0]!r} is not a class of {self.output!r}, whose {len(names)} classes "
                f"are {allowed}; give labels of the same kind"
            )
        return [classes[label] for label in given]


def plain_labels(labels: Any) -> list[Any]:
    """Return labels, an array of numbers or strings of any shape, as a list.

    Raises
    ------
    InputError
        They are not.
    """
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"labels cannot be an array: {error}; give one for each sample") from None
    if array.dtype.kind not in "iufUT":
        raise InputError(
            f"labels are an array of {array.dtype}; give whole numbers or strings, one for each "
            "sample"
        )
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _scores_of(outputs: Mapping[str, Any], scores: Collection[str]) -> str:
    names = [name for name, value in outputs.items() if isinstance(value, Mapping)]
    names = names or [n for n, value in outputs.items() if n in scores and is_one_row(value)]
    if len(names) == 1:
        return names[0]
    what = f"several outputs are: {shortlist(names)}" if names else "no output is recognized as one"
    raise ConfigError(
        f"labels need an output of scores of classes, and {what}; name one of "
        f"{', '.join(map(repr, outputs))} with classes"
    )


def _rows(name: str, value: Any) -> tuple[dict[Any, int], np.ndarray]:
    """Return the position of each class, and scores, float64 [rows, classes]."""
    if isinstance(value, Mapping):
        row = np.array([list(value.values())], np.float64)
        return {label: index for index, label in enumerate(value)}, row
    is_array = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0
    if not is_array or value.shape[-1] < 2 or not value.size:
        got = f"an array of {value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else ""
        raise ConfigError(
            f"output {name!r} is {got or type(value).__name__}; scores of classes are a dictionary "
            "of probabilities or an array of floats [..., C] of two or more classes; name another "
            "output with classes"
        )
    scores = value.reshape(-1, value.shape[-1]).astype(np.float64)
    return {index: index for index in range(scores.shape[1])}, scores


def _are_numbers(names: list[Any]) -> bool:
    return names == list(range(len(names)))
