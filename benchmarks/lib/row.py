"""What a row is: which job, on which model, with which settings, by whom, and the goal.

A row is one question; every variant of it is one line of the result. The variant of coremltools
comes first and is what the others are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REFERENCE = "coremltools"
PROJECT = "mlopt"
LIMIT = "limit"
"""The least that the job takes where nothing has to be found out: see ``benchmarks.lib.limit``."""


@dataclass(frozen=True)
class Variant:
    """One way to do the job of a row: with a tool, or the limit of mlopt's lines of that ``extra``.

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
    metadata-statistics. On torch modules: post-training, sensitive, or convert. ``model`` and
    ``warmup_model`` are names of packages, or of tasks (torch modules). ``how`` is the module whose
    functions do the job: ``import_tool``, ``open_source``, ``perform``, and ``keep``.

    ``goal`` is how many times faster than coremltools this project wants to be (None: no goal
    stated), ``quoted`` what coremltools took when the goals were set, on another machine.
    ``reference_repeats`` bounds the repeats of coremltools. ``reference_warmup`` is False where
    its second call in a process fails. ``reference_error`` is the exception that it is known to
    raise, which is no failure of the benchmark. ``reference_on_request``: it takes so long that it
    runs only when asked for. ``peak_limit_bytes`` is what our peak memory must not exceed.
    ``op_types``: only weights of these operations (a palettizing row; all where empty).
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
    how: str = "benchmarks.lib.perform"
    reference_error: str = ""
    reference_on_request: bool = False
    peak_limit_bytes: float | None = None
    op_types: tuple[str, ...] = ()
