"""The result of comparing a model in float32 with the same model as declared."""

from __future__ import annotations

from typing import Any

import attrs

from mlopt.runtime.comparison.float16_rows import Float16Row
from mlopt.runtime.comparison.float16_text import float16_text
from mlopt.runtime.comparison.results import Comparison
from mlopt.text.json_text import json_text


@attrs.frozen
class Float16Comparison:
    """The result of :func:`compare_float16`.

    outputs: those in float32 (the reference) against those as declared (the candidate); rows: the
    operations at which something is wrong, the worst first; operations: how many have results that
    are declared float16; unmeasured: how many rows have no measured effect since there were too
    many.
    """

    outputs: Comparison
    rows: tuple[Float16Row, ...]
    operations: int
    unmeasured: int = 0

    @property
    def samples(self) -> int:
        """How many samples were run."""
        return self.outputs.samples

    @property
    def harmful(self) -> tuple[Float16Row, ...]:
        """The rows that were not measured to be harmless."""
        return tuple(row for row in self.rows if not row.is_harmless)

    def below(self, snr_db: float) -> tuple[str, ...]:
        """As :meth:`Comparison.below`."""
        return self.outputs.below(snr_db)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite as text."""
        compared = self.outputs.as_dict()
        return {
            "samples": self.samples,
            "operations": self.operations,
            "unmeasured": self.unmeasured,
            "outputs": compared["outputs"],
            "labels": compared["labels"],
            "rows": [row.as_dict() for row in self.rows],
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json_text(self.as_dict(), ensure_ascii=True)

    def __str__(self) -> str:
        if not self.operations:
            return "The program declares no result of float16: there is nothing to compare."
        return float16_text(
            self.outputs.to_text(hint=False),
            self.rows,
            operations=self.operations,
            unmeasured=self.unmeasured,
        )
