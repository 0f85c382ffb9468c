"""What a row is: which job, on which model, with which settings, by whom, and the goal.

A row is one question; every variant of it is one line of the result. The variant of coremltools
comes first and is what the others are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REFERENCE = "coremltools"
PROJECT = "mlopt"


@dataclass(frozen=True)
class Variant:
    """One way to do the job of a row.

    ``extra`` goes into the configuration on top of the row's settings; ``streaming`` means by path,
    from package to package, and not from a loaded MLModel.
    """

    tool: str
    label: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    streaming: bool = False

    @property
    def name(self) -> str:
        return f"{self.tool} {self.label}".strip()


@dataclass(frozen=True)
class Row:
    """A job.

    ``action``: palettize, unchanged, decompress, raise (the deployment target, to that in the
    settings; coremltools cannot, and does a round trip with no change), lint, metadata, or
    metadata-statistics. ``model`` and ``warmup_model`` are names of packages.

    ``goal`` is how many times faster than coremltools this project wants to be (None: no goal
    stated), ``quoted`` what coremltools took when the goals were set, on another machine.
    ``reference_repeats`` bounds the repeats of coremltools. ``reference_warmup`` is False where
    its second call in a process fails.
    """

    name: str
    title: str
    model: str
    action: str
    settings: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    goal: float | None = None
    quoted: str = ""
    reference_repeats: int = 1
    reference_warmup: bool = True
    warmup_model: str = "warmup"
