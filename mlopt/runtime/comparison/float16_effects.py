"""Effects on a program's outputs of rounding a single result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.comparison.answers import pixels_of_anything
from mlopt.runtime.comparison.float16_watch import Watched
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.program import Program


def measure_effects(
    program: Program,
    samples: Sequence[Mapping[str, Any]],
    suspects: Sequence[Watched],
    seed: int,
    limit: int,
) -> int:
    """Record effects on outputs in the rows of the worst suspects; return how many are left out.

    Each is measured on the sample where it lost most, with ``program`` in float32 but for the
    one result.
    """
    lossy = sorted((watched for watched in suspects if watched.row.is_lossy), key=_expected)
    chosen = lossy[:limit]
    for number in sorted({watched.worst_sample for watched in chosen}):
        wanted = _outputs(program, samples[number], seed)
        for watched in chosen:
            if watched.worst_sample == number:
                _measure(watched, wanted, _outputs(program, samples[number], seed, watched))
    return len(lossy) - len(chosen)


def _expected(watched: Watched) -> tuple[bool, float]:
    """Return a sort key: what is likely to do most harm first."""
    snr_db = watched.row.entering.snr_db
    return watched.row.overflowed == 0, -math.inf if math.isnan(snr_db) else snr_db


def _outputs(
    program: Program, sample: Mapping[str, Any], seed: int, rounded: Watched | None = None
) -> dict[str, Tensor]:
    with pixels_of_anything(), torch.inference_mode():
        execution = program.begin(sample, program.make_state(), seed=seed)
        if rounded is not None:
            dtype = rounded.dtype
            execution.replaced = {rounded.slot: lambda value: value.to(dtype).to(value.dtype)}
        outputs = zip(program.plan.outputs, execution.finish(), strict=True)
        return {
            name: numbers for name, value in outputs if (numbers := _numbers(value)) is not None
        }


def _numbers(value: Any) -> Tensor | None:
    if isinstance(value, Mapping):
        return torch.tensor([float(score) for score in value.values()])
    return value if isinstance(value, Tensor) else None


def _measure(watched: Watched, wanted: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Record the output that changes most."""
    for name, reference in wanted.items():
        distance = Distance()
        if changed[name].shape != reference.shape:
            watched.row.effect_db, watched.row.effect_output = math.nan, name
            return
        distance.add(reference, changed[name])
        # two that both have no finite number, or are zero, are equal
        is_same = distance.mismatched == 0 and distance.status != "different"
        effect = math.inf if is_same else distance.snr_db
        before = watched.row.effect_db
        if before is None or math.isnan(effect) or effect < before:
            watched.row.effect_db, watched.row.effect_output = effect, name
        if math.isnan(effect):
            return
