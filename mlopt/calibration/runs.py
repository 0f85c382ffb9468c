"""``Run``: what a calibration needs of a model, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from mlopt.calibration.feeds import Feed, Feeds
from mlopt.calibration.readers.reader import Arguments

Factors: TypeAlias = "Sequence[Tensor] | None"
"""What positions count, float32 [blocks, positions] for each part of the inputs; None: 1."""


class Observer(Protocol):
    """What a run calls for each feed of an operation, once that is done."""

    def __call__(
        self,
        feed: Feed,
        title: str,
        arguments: Arguments,
        results: tuple[Any, ...],
        factors: Factors,
        *,
        inputs: Hashable = None,
    ) -> None:
        """Take the title, arguments and results of the operation, and what positions count.

        inputs: equal for operations of one run that were given the very same inputs; None where
        that is not known.
        """


class Run(Protocol):
    """A model that is run on one sample after the other."""

    @property
    def feeds(self) -> Feeds:
        """What is summed."""

    @property
    def identity(self) -> str:
        """A text that differs where a model of the same weights is run in another way."""

    def inputs(self, sample: Any, number: int) -> Mapping[Any, Any]:
        """Return the inputs in a sample, by name or position.

        Raises
        ------
        InputError
            It is not a sample; the message has its number.
        """

    def run(self, inputs: Mapping[Any, Any], number: int, observer: Observer) -> None:
        """Run the model on a sample, and have every operation with feeds observed.

        Raises
        ------
        InputError, RunError
            The inputs do not fit, or an operation failed.
        """

    def remarks(self) -> tuple[str, ...]:
        """Return what came up while it was run, for the calibration's notes."""
