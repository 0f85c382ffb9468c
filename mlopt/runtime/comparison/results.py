"""What a comparison found."""

from __future__ import annotations

import json
import math
from typing import Any

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


@attrs.frozen
class Comparison:
    """What :func:`compare` found.

    unmatched: outputs of weighted operations of the reference that the candidate does not have.
    """

    samples: int
    outputs: tuple[OutputRow, ...]
    layers: tuple[LayerRow, ...] = ()
    unmatched: tuple[str, ...] = ()
    detections: tuple[DetectionRow, ...] = attrs.field(default=(), kw_only=True)
    labels: tuple[LabelRow, ...] = ()

    @property
    def uninformative(self) -> tuple[str, ...]:
        """Outputs whose comparison says nothing: the reference is zero, constant, saturated, ..."""
        told = ("different", "equal")
        return tuple(row.name for row in self.outputs if row.status not in told)

    def below(self, snr_db: float) -> tuple[str, ...]:
        """Outputs whose ratio is less than that, or unknown since there is nothing to compare."""
        unknown = self.uninformative
        return tuple(
            row.name for row in self.outputs if row.name in unknown or row.distance.snr_db < snr_db
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as text."""
        return {
            "samples": self.samples,
            "outputs": [
                {
                    "name": row.name,
                    **_plain(row.distance),
                    **_agreement(row.agreement),
                    "depends_on_samples": row.depends_on_samples,
                }
                for row in self.outputs
            ],
            "labels": [attrs.asdict(row) for row in self.labels],
            "detections": [attrs.asdict(row) for row in self.detections],
            "layers": [
                {
                    "name": row.name,
                    "op_type": row.op_type,
                    "weights": list(row.weights),
                    "entering": _plain(row.entering),
                    "so_far": _plain(row.so_far),
                    "mismatch": row.mismatch,
                }
                for row in self.layers
            ],
            "unmatched": list(self.unmatched),
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        from mlopt.runtime.comparison.text import comparison_text

        return comparison_text(self)


def _plain(distance: Distance) -> dict[str, Any]:
    numbers = {
        "snr_db": distance.snr_db,
        "cosine": distance.cosine,
        "max_absolute": distance.max_absolute,
        "max_relative": distance.max_relative,
    }
    counts = {name: getattr(distance, name) for name in ("elements", "left_out", "mismatched")}
    found: dict[str, Any] = {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()}
    states = {"reference": distance.reference.state, "candidate": distance.candidate.state}
    return found | counts | {"status": distance.status, **states}


def _agreement(agreement: Agreement | None) -> dict[str, Any]:
    if agreement is None:
        return {}
    found = {"top1": agreement.top1_share, "not_a_number": agreement.not_a_number}
    return found if agreement.top5_share is None else {**found, "top5": agreement.top5_share}
