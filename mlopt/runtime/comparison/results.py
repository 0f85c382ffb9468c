"""The result of comparing two models."""

from __future__ import annotations

from typing import Any

import attrs

from mlopt.runtime.comparison.measures import Agreement, Distance
from mlopt.runtime.comparison.rows import (
    DetectionRow,
    LabelRow,
    LayerRow,
    MetricRow,
    OutputRow,
)
from mlopt.runtime.comparison.text import comparison_text
from mlopt.text.json_text import finite_or_text, json_text


@attrs.frozen
class Comparison:
    """The result of :func:`compare`.

    metrics: what else the models are judged by; unmatched: outputs of weighted operations of the
    reference that the candidate does not have.
    """

    samples: int
    outputs: tuple[OutputRow, ...]
    layers: tuple[LayerRow, ...] = ()
    unmatched: tuple[str, ...] = ()
    detections: tuple[DetectionRow, ...] = attrs.field(default=(), kw_only=True)
    labels: tuple[LabelRow, ...] = ()
    metrics: tuple[MetricRow, ...] = attrs.field(default=(), kw_only=True)

    @property
    def uninformative(self) -> tuple[str, ...]:
        """Outputs with a reference that is not informative: zero, constant, saturated, ..."""
        return tuple(row.name for row in self.outputs if not row.is_informative)

    def below(self, snr_db: float) -> tuple[str, ...]:
        """Return outputs whose ratio is below the limit, or unknown for lack of a comparison."""
        return tuple(
            row.name
            for row in self.outputs
            if not row.is_informative or row.distance.snr_db < snr_db
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite as text."""
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
            "metrics": [_metric(row) for row in self.metrics],
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
        return json_text(self.as_dict(), ensure_ascii=True)

    def to_text(self, *, hint: bool = True) -> str:
        """Return tables of the outputs and, if they were compared, of the layers, the worst first.

        hint: whether to say what to do if an output has nothing to compare.
        """
        return comparison_text(
            self.outputs,
            layers=self.layers,
            labels=self.labels,
            detections=self.detections,
            metrics=self.metrics,
            unmatched=self.unmatched,
            samples=self.samples,
            hint=hint,
        )

    def __str__(self) -> str:
        return self.to_text()


def _plain(distance: Distance) -> dict[str, Any]:
    numbers = {
        "snr_db": distance.snr_db,
        "cosine": distance.cosine,
        "max_absolute": distance.max_absolute,
        "max_relative": distance.max_relative,
    }
    counts = {name: getattr(distance, name) for name in ("elements", "left_out", "mismatched")}
    states = {"reference": distance.reference.state, "candidate": distance.candidate.state}
    return {
        **{name: finite_or_text(value) for name, value in numbers.items()},
        **counts,
        "status": distance.status,
        **states,
    }


def _agreement(agreement: Agreement | None) -> dict[str, Any]:
    if agreement is None:
        return {}
    top5 = {} if agreement.top5_share is None else {"top5": agreement.top5_share}
    return {"top1": agreement.top1_share, "not_a_number": agreement.not_a_number, **top5}


def _metric(row: MetricRow) -> dict[str, Any]:
    values = attrs.asdict(row)
    return {
        key: finite_or_text(value) if isinstance(value, float) else value
        for key, value in values.items()
    }
