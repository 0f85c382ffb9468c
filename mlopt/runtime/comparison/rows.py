"""Rows of a comparison: what was measured of an output, a label, boxes, or a layer."""

from __future__ import annotations

import attrs

from mlopt.runtime.comparison.measures import Agreement, Distance, Status


@attrs.frozen
class OutputRow:
    """One output: its distance, and for scores of classes how often the answers agree.

    depends_on_samples: whether the reference's output is another one for another sample; None where
    that cannot be told of one sample, or of samples that are all the same.
    """

    name: str
    distance: Distance
    agreement: Agreement | None
    depends_on_samples: bool | None = None

    @property
    def status(self) -> Status:
        """What the numbers amount to: see :class:`Distance`."""
        return self.distance.status

    @property
    def is_informative(self) -> bool:
        """Whether the numbers say something: the reference is not zero, constant, saturated, ..."""
        return self.status in ("different", "equal")


@attrs.frozen
class LabelRow:
    """A label of a class, which is no number to measure: of ``samples``, how many are ``equal``.

    Labels of scores that hold NaN are not.
    """

    name: str
    samples: int
    equal: int


@attrs.frozen
class DetectionRow:
    """Two outputs that are boxes of a detector, of all samples.

    names: of the outputs of scores and of boxes; reference, candidate: how many boxes there are;
    paired: how many are in both, of the same class and sharing half of their union at least, of
    which alone the outputs are measured; overlap: the mean share of these, None where there are
    none.
    """

    names: tuple[str, str]
    reference: int
    candidate: int
    paired: int
    overlap: float | None


@attrs.frozen
class LayerRow:
    """One operation with a weight.

    entering: the error of its outputs by its own weight, with the reference's activations in front;
    so_far: that of its outputs in the candidate, all errors before it included; mismatch: why one
    of them or both could not be measured, such as other shapes, None where they could.
    """

    name: str
    op_type: str
    weights: tuple[str, ...]
    entering: Distance
    so_far: Distance
    mismatch: str | None = None
