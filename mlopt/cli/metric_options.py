"""Options of ``mlopt compare`` about what models are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import typer

from mlopt.cli.functions import imported_function

if TYPE_CHECKING:
    import numpy as np

_METRIC = "'--metric'"


@attrs.frozen(eq=False)
class MetricOptions:
    """Names of inputs and outputs, the array of labels in the data file, and functions."""

    tokens: str | None
    logits: str | None
    mask: str | None
    classes: str | None
    labels: str | None
    metric: Sequence[str]

    @property
    def given(self) -> list[str]:
        """The options that are given."""
        return [f"--{field.name}" for field in attrs.fields(type(self)) if self._has(field.name)]

    def check(self, inputs: Path | None) -> None:
        """Refuse labels without a file that has them."""
        from mlopt.cli.sample_files import is_archive

        if self.labels is not None and (inputs is None or not is_archive(inputs)):
            raise typer.BadParameter(
                "it names an array of the file of --inputs; give --inputs FILE.npz",
                param_hint="'--labels'",
            )

    def taken_from(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the arguments of ``compare``, and take the labels out of the arrays of a file."""
        labels = None
        if self.labels is not None:
            if self.labels not in arrays:
                raise typer.BadParameter(
                    f"the file of --inputs has no array {self.labels!r}; it has "
                    f"{', '.join(map(repr, arrays)) or 'none'}",
                    param_hint="'--labels'",
                )
            labels = arrays.pop(self.labels)
        names = {name: getattr(self, name) for name in ("tokens", "logits", "mask", "classes")}
        return {**names, "labels": labels, "metrics": _functions(self.metric)}

    def _has(self, name: str) -> bool:
        return bool(getattr(self, name))


def _functions(texts: Sequence[str]) -> Mapping[str, Any] | None:
    """Return functions by their text; None without any, so that no outputs are held."""
    wanted = (
        "give module:function, a function of the outputs of both models and the inputs, three "
        "lists of dictionaries"
    )
    for text in texts:
        if ":" not in text:
            raise typer.BadParameter(
                f"{text!r} does not name a function; {wanted}", param_hint=_METRIC
            )
    return {text: imported_function(text, _METRIC, wanted) for text in texts} or None
