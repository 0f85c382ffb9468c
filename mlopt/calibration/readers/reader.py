"""A reader: an operation that multiplies inputs by a weight, and how to get these inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import attrs
from torch import Tensor

from mlopt.palette.moments import Arrangement
from mlopt.runtime.plan import Source, Step

Arguments = Mapping[str, Any]
"""Arguments of a step by parameter."""


class NoStatisticsError(Exception):
    """An operation does not multiply inputs by the weight as matrices do; the message says why."""


@attrs.frozen(eq=False)
class Use:
    """One use of a weight: its shape, and the step that reads it as an argument of a parameter."""

    shape: tuple[int, ...]
    step: Step
    parameter: str
    index: int = 0

    def constant(self, parameter: str, default: Any) -> Any:
        """Return an option of the operation.

        Raises
        ------
        NoStatisticsError
            The program computes it.
        """
        if any(spec.name == parameter for spec, _ in self.step.arguments):
            raise NoStatisticsError(f"{self.step.title} has a {parameter} that is computed")
        return self.step.fixed.get(parameter, default)

    def sources(self, parameter: str) -> tuple[Source, ...]:
        """Return where an argument that is a tensor comes from."""
        return next((s for spec, s in self.step.arguments if spec.name == parameter), ())


@attrs.frozen(eq=False, kw_only=True)
class Reader:
    """How one use of a weight multiplies inputs.

    arrangement: the matrices of the weight; sources: where the inputs come from, for steps of a
    program; geometry: how these are cut into columns, equal where equal inputs give equal columns;
    inputs: from the arguments and results of the step parts of [blocks, positions, columns];
    counts: for lookups instead how often each row was read, [blocks, columns], and the number of
    positions; a second argument weights them, float [blocks, positions]; outputs: from the
    arguments and a tensor of the result's shape its parts of [blocks, positions, rows], at the
    positions of the inputs; None where the products are not a result of the step.
    """

    arrangement: Arrangement
    sources: tuple[Source, ...] = ()
    geometry: Hashable = ()
    inputs: Callable[[Arguments, tuple[Any, ...]], Iterable[Tensor]] | None = None
    counts: Callable[[Arguments, Tensor | None], tuple[Tensor, int]] | None = None
    outputs: Callable[[Arguments, Tensor], Iterable[Tensor]] | None = None

    @property
    def is_lookup(self) -> bool:
        """Whether the operation looks up rows; of these the second moments are diagonal."""
        return self.counts is not None
