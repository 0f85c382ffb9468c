"""``quick_errors``: about how far outputs are off with each form of a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.moments import InputMoments
from mlopt.palette.palettize import NoPaletteError, palettize
from mlopt.palette.value.spec import PaletteSpec
from mlopt.planning.candidates import Form
from mlopt.threads import for_each

_Part: TypeAlias = "tuple[npt.NDArray[Any], InputMoments | None, float]"
"""Some of the outputs of a weight, the moments of their inputs, and the power of these outputs."""

_ELEMENTS = 1 << 18
_OUTPUTS = 128


def quick_errors(forms: Sequence[Form], *, workers: int = 1) -> list[float]:
    """Return the squared error of an operation's outputs, relative to their mean square.

    As tables by mean squares of the inputs have it; without a calibration that of the weight. Of a
    large weight some outputs are looked at, spread evenly over all, the same ones for all forms:
    with about a quarter of a million elements, or 128 outputs.

    Parameters
    ----------
    forms
        Of one weight, all with palettes.
    workers
        Forms that are clustered at a time.

    Returns
    -------
    A number for each form; infinity where there is no table for it.
    """
    weight = forms[0].decision.weight
    value = weight.value()
    try:
        unit = math.lcm(*(_unit(form) for form in forms))
        parts: dict[tuple[bool, bool, bool], _Part] = {}
        of_forms = []
        for form in forms:
            moments = form.guidance.moments
            is_guided = moments is not None
            has_second = moments is not None and moments.second is not None
            key = is_guided, has_second, form.guidance.is_centred
            if key not in parts:
                part, fitted = _some_outputs(value, form.guidance.fitted(), unit)
                power = 0.0 if fitted is None else fitted.output_power(part)
                parts[key] = part, fitted, power
            of_forms.append(parts[key])
        pairs = zip(forms, of_forms, strict=True)
        return [*for_each(pairs, lambda pair: _error(*pair), workers)]
    finally:
        weight.release()


def _spec(form: Form) -> PaletteSpec:
    assert isinstance(form.decision.result, PaletteSpec)
    return form.decision.result


def _unit(form: Form) -> int:
    """Return how many consecutive channels a form needs together."""
    spec = _spec(form)
    return spec.group_size or spec.cluster_dim


def _error(form: Form, part: _Part) -> float:
    value, moments, power = part
    by_squares = None if moments is None else attrs.evolve(moments, second=None)
    try:
        palettized, distortion = palettize(value, _spec(form), moments=by_squares)
    except NoPaletteError:
        return math.inf
    if moments is None:
        return float(10.0 ** (-distortion.snr_db / 10.0))
    error = moments.output_error(value, palettized.dequantize())
    return error / power if power > 0.0 else (math.inf if error > 0.0 else 0.0)


def _some_outputs(
    value: npt.NDArray[Any], moments: InputMoments | None, unit: int
) -> tuple[npt.NDArray[Any], InputMoments | None]:
    """Return a weight, or some of its outputs, and the moments of the inputs of these."""
    if moments is None:
        return value, None
    arrangement = moments.arrangement
    axis = arrangement.output_axis()
    if axis is None or arrangement.rows % unit:
        return value, moments
    outputs = max(_OUTPUTS, _ELEMENTS // arrangement.columns) // arrangement.blocks
    units = math.ceil(outputs / unit)
    if 2 * units * unit > arrangement.rows:
        return value, moments
    some, channels = arrangement.some_outputs(units, unit)
    return np.take(value, channels, axis=axis), attrs.evolve(moments, arrangement=some)
