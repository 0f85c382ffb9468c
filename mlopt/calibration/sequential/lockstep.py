"""Lockstep: the float model and the one that is being compressed, step by step on all samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from mlopt.errors import InputError, RunError
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Source, Step
from mlopt.runtime.program import Program


@attrs.frozen(eq=False)
class Pair:
    """The runs of one sample: by the float model, and with what has replaced weights so far."""

    number: int
    reference: Execution
    compressed: Execution


class Lockstep:
    """Runs of a program on samples, with all weights and with those that replace them.

    Both have taken the same steps, all those before ``position``. Memory holds for each sample,
    twice, the values that later steps read; weights in float32 as far as the steps between two
    calls of :meth:`advance` use them; and what replaces weights.

    In ``torch.inference_mode()``.
    """

    def __init__(self, program: Program, samples: Sequence[Mapping[str, Any]]) -> None:
        self.steps = program.plan.body.steps
        self.position = 0
        self.substitutes: dict[Source, Tensor] = {}
        self._until: dict[Source, int] = {}
        self._kept: dict[tuple[Source, bool], Any] = {}
        self._device = program.device
        self.pairs = [
            Pair(number, *(self._begun(program, sample, number) for _ in range(2)))
            for number, sample in enumerate(samples)
        ]
        for pair in self.pairs:
            pair.compressed.substitutes = self.substitutes

    def advance(self, number: int) -> None:
        """Take all steps before the one of a number."""
        for pair in self.pairs:
            for step in self.steps[self.position : number]:
                self._take(pair, pair.reference, step)
                self._take(pair, pair.compressed, step)
        self.position = max(self.position, number)
        self._kept.clear()
        for source in [s for s, until in self._until.items() if until < number]:
            del self.substitutes[source], self._until[source]

    def take(self, pair: Pair, execution: Execution) -> None:
        """Have one run of a pair take the step at ``position``.

        Once all runs have taken it, the caller counts up ``position``.
        """
        self._take(pair, execution, self.steps[self.position])

    def replace(
        self, sources: Iterable[Source], value: Tensor, *, until: int, widens: bool
    ) -> None:
        """Replace a weight in the compressed model, up to the step of a number.

        value: float32; widens: whether the steps compute in float32, and not in the weight's dtype.
        """
        value = value.to(self._device)
        for source in sources:
            dtype = value.dtype if widens else self.pairs[0].reference.value(source).dtype
            self.substitutes[source] = value.to(dtype)
            self._until[source] = until

    def _take(self, pair: Pair, execution: Execution, step: Step) -> None:
        try:
            execution.advance(step)
        except (InputError, RunError) as error:
            raise type(error)(f"sample {pair.number}: {error}") from error

    def _begun(self, program: Program, sample: Mapping[str, Any], number: int) -> Execution:
        try:
            execution = program.begin(sample, program.make_state(), seed=number)
        except InputError as error:
            raise InputError(f"sample {number}: {error}") from error
        execution.kept = self._kept
        return execution
