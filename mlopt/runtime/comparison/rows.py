"""Rows of a comparison: the measurements of an output, a label, boxes, or a layer."""

from __future__ import annotations

import attrs

from mlopt.runtime.comparison.measures import Agreement, Distance, Status


@attrs.frozen
class OutputRow:
    """One output: its distance, and for scores of classes how often the best ones agree.

    depends_on_samples: whether the reference's output differs between samples; None if that is
    unknown: there is one sample, or all are the same.
    """

    name: str
    distance: Distance
    agreement: Agreement | None
    depends_on_samples: bool | None = None

    @property
    def status(self) -> Status:
        """The verdict of the numbers: see :class:`Distance`."""
        return self.distance.status

    @property
    def is_informative(self) -> bool:
        """Whether the reference is informative: not zero, constant, saturated, ..."""
        return self.status in ("different", "equal")


@attrs.frozen
class LabelRow:
    """A label of a class, which is not a number: of ``samples``, how many are ``equal``.

    Labels of scores that hold NaN are not.
    """

    name: str
    samples: int
    equal: int


@attrs.frozen
class DetectionRow:
    """Two outputs that are boxes of a detector, over all samples.

    names: of the outputs of scores and of boxes; reference, candidate: how many boxes there are;
    paired: how many are in both, of the same class and sharing at least half of their union, and
    only these are measured; overlap: their mean share, None if there are none.
    """

    names: tuple[str, str]
    reference: int
    candidate: int
    paired: int
    overlap: float | None


@attrs.frozen
class MetricRow:
    """A number that models are judged by: one for each model, or one for the pair.

    output: the output that it is about, empty for a function of the caller; unit: "share" (from 0
    to 1), "nats" or empty; count: how many positions or rows of scores it is a mean over, None if
    unknown; note: why there is no number, or why it is NaN.
    """

    name: str
    output: str = ""
    reference: float | None = None
    candidate: float | None = None
    pair: float | None = None
    unit: str = ""
    count: int | None = None
    note: str = ""

    @property
    def has_value(self) -> bool:
        """Whether there is a number, and not only a note."""
        return any(value is not None for value in (self.reference, self.candidate, self.pair))


@attrs.frozen
class LayerRow:
    """One operation with a weight.

    entering: the error of its outputs by its own weight, with the reference's activations in front;
    so_far: that of its outputs in the candidate, all errors before it included; mismatch: why one
    or both could not be measured, such as different shapes, None if they could.
    """

    name: str
    op_type: str
    weights: tuple[str, ...]
    entering: Distance
    so_far: Distance
    mismatch: str | None = None
