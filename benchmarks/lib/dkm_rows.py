"""The rows of ``torch_dkm``: what is trained, and how it is palettized meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.row import PROJECT, REFERENCE

FIRST_GOAL = 300
"""How many times faster than coremltools' the first step is to be, which clusters."""
LATER_GOAL = 10
SAVED_LIMIT = 8.0
"""Bytes a palettized weight that may be saved for the backward pass."""


@dataclass(frozen=True)
class DkmRow:
    """``model``: the name of a task. ``settings``: of the palettizer.

    ``has_update``: the update of the weights belongs to the time of a step, as in training; else a
    step is the forward and the backward pass. ``reference_repeats`` bounds the later steps of
    coremltools. ``on_request``: only where it is named.
    """

    name: str
    title: str
    model: str
    settings: dict[str, Any]
    tools: tuple[str, ...] = (PROJECT,)
    has_update: bool = False
    has_goals: bool = False
    reference_repeats: int = 3
    on_request: bool = False
    quoted: dict[str, str] = field(default_factory=dict)


_GROUPS = {"granularity": "per_grouped_channel", "group_size": 64}


def _linear(n_bits: int, form: str, title: str, **further: Any) -> DkmRow:
    grouped = _GROUPS if form else {}
    return DkmRow(
        f"linear{n_bits}{form}",
        f"one layer of 1024 x 1024, {n_bits}-bit, {title}",
        "linear-1024",
        {"n_bits": n_bits, **grouped},
        (REFERENCE, PROJECT),
        has_goals=True,
        **further,
    )


def _growth(weights: str, on_request: bool = False) -> DkmRow:
    name = f"weights-{weights}"
    title = f"one layer of {weights} weights, 4-bit per tensor"
    return DkmRow(name, title, name, {"n_bits": 4}, on_request=on_request)


def _transformer(n_bits: int) -> DkmRow:
    title = f"a training step of a transformer of 20 M weights, {n_bits}-bit per tensor"
    return DkmRow(f"transformer{n_bits}", title, "transformer", {"n_bits": n_bits}, has_update=True)


DKM_ROWS = (
    _linear(4, "", "per tensor", quoted={"first": "69 s", "later": "1.8 s", "peak": "0.85 GB"}),
    _linear(2, "", "per tensor"),
    _linear(4, "-g64", "groups of 64"),
    _linear(2, "-g64", "groups of 64"),
    _growth("1e5"),
    _growth("1e6"),
    _growth("1e7"),
    _growth("1e8", on_request=True),
    _transformer(4),
    _transformer(2),
)
DKM_BY_NAME = {row.name: row for row in DKM_ROWS}
