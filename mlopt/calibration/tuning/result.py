"""The result of tuning: what moved, and how far."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlopt.choices import Tuned
from mlopt.coreml.models import as_mlmodel

if TYPE_CHECKING:
    from coremltools.models import MLModel


@attrs.frozen(kw_only=True)
class HeldOut:
    """How a model answers the samples that are held out.

    Parameters
    ----------
    loss
        Mean of the loss over samples.
    snr_db
        Signal-to-noise ratio of the outputs against the original's, in dB: of the mean over outputs
        of the relative squared error. Infinity for equal outputs.
    """

    loss: float
    snr_db: float


@attrs.frozen(kw_only=True)
class TunedConstant:
    """One constant that was tuned.

    Parameters
    ----------
    name
        Of the constant, or ``<operation>.<parameter>`` where the operation holds it.
    kind
        ``"tables"``, ``"scales"``, ``"biases"`` or ``"norms"``.
    size
        Its numbers.
    change
        Root mean square of the change, relative to that of the numbers before.
    functions
        The functions that have it.
    """

    name: str
    kind: Tuned
    size: int
    change: float
    functions: tuple[str, ...]


@attrs.define(eq=False, slots=False, kw_only=True)
class TuningResult:
    """Result of :func:`mlopt.calibration.tune`.

    Attributes
    ----------
    path
        The package that was written; a temporary one where no ``output`` was given.
    before, after
        How the compressed model answers the samples that are held out, before and after.
    original_loss
        The loss of the original model on these; 0 for the losses that are built in.
    steps, best_step
        The steps that were taken, and after which of them the model was best; 0: before the first,
        and the package is as it was.
    learning_rate
        The length of the first step, relative to the root mean square of each constant.
    trained_samples, held_out_samples
        How many samples gradients were computed of, and how many were held out.
    tuned
        The constants that were tuned, in program order; none where no step helped.
    left
        The reason for each constant that could have been of a kind that is tuned.
    notes
        Further remarks.
    """

    path: Path
    before: HeldOut
    after: HeldOut
    original_loss: float
    steps: int
    best_step: int
    learning_rate: float
    trained_samples: int
    held_out_samples: int
    tuned: tuple[TunedConstant, ...]
    left: dict[str, str]
    notes: tuple[str, ...]
    _source: MLModel | None = None
    _is_temporary: bool = False

    @property
    def is_better(self) -> bool:
        """Whether the package differs from the one that was given."""
        return self.best_step > 0

    @cached_property
    def model(self) -> MLModel:
        """The tuned model as a coremltools ``MLModel``, loaded at the first use."""
        return as_mlmodel(self.path, like=self._source, is_temporary=self._is_temporary)
