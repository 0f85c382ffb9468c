"""What single results do to the outputs of a program when they alone are rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlopt.runtime.comparison.answers import pixels_of_anything
from mlopt.runtime.comparison.float16_watch import Found
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.program import Program


def measure_effects(
    program: Program,
    samples: Sequence[Mapping[str, Any]],
    suspects: Sequence[Found],
    seed: int,
    limit: int,
) -> int:
    """Note in the rows of the worst suspects how the outputs change; returns how many are left out.

    Each is measured on the sample in which it lost most, with ``program`` in float32 but for the
    one result.
    """
    lossy = sorted((found for found in suspects if found.row.is_lossy), key=_expected)
    chosen = lossy[:limit]
    for number in sorted({found.worst_sample for found in chosen}):
        wanted = _outputs(program, samples[number], seed)
        for found in chosen:
            if found.worst_sample == number:
                _measure(found, wanted, _outputs(program, samples[number], seed, found))
    return len(lossy) - len(chosen)


def _expected(found: Found) -> tuple[bool, float]:
    """For sorting, what is likely to do most harm first."""
    snr_db = found.row.entering.snr_db
    return found.row.overflowed == 0, -math.inf if math.isnan(snr_db) else snr_db


def _outputs(
    program: Program, sample: Mapping[str, Any], seed: int, rounded: Found | None = None
) -> dict[str, Tensor]:
    with pixels_of_anything(), torch.inference_mode():
        execution = program.begin(sample, program.make_state(), seed=seed)
        if rounded is not None:
            dtype = rounded.dtype
            execution.replaced = {rounded.place: lambda value: value.to(dtype).to(value.dtype)}
        found = zip(program.plan.outputs, execution.finish(), strict=True)
        return {name: numbers for name, value in found if (numbers := _numbers(value)) is not None}


def _numbers(value: Any) -> Tensor | None:
    if isinstance(value, Mapping):
        return torch.tensor([float(score) for score in value.values()])
    return value if isinstance(value, Tensor) else None


def _measure(found: Found, wanted: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Note the output that changes most."""
    for name, reference in wanted.items():
        distance = Distance()
        if changed[name].shape != reference.shape:
            found.row.effect_db, found.row.effect_output = math.nan, name
            return
        distance.add(reference, changed[name])
        # two that are both without a finite number, or zero, are the same
        is_same = distance.mismatched == 0 and distance.status != "different"
        effect = math.inf if is_same else distance.snr_db
        before = found.row.effect_db
        if before is None or math.isnan(effect) or effect < before:
            found.row.effect_db, found.row.effect_output = effect, name
        if math.isnan(effect):
            return
