"""What observers of a run are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlopt.runtime.plan import Step
from mlopt.runtime.values import copied
from mlopt.runtime.weights.row_selection import Rows


class Observed(Mapping[str, Any]):
    """The arguments of a step as an observer gets them, while it runs.

    Weights are copied when they are asked for: they may be the mapped file, or kept for other runs.
    """

    def __init__(self, step: Step, arguments: Mapping[str, Any]) -> None:
        self._step, self._arguments = step, arguments

    def __getitem__(self, name: str) -> Any:
        value = self._arguments[name]
        value = value.whole() if isinstance(value, Rows) else value
        sources = next((s for spec, s in self._step.arguments if spec.name == name), ())
        return value if all(isinstance(s, int) for s in sources) else copied(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)
