"""Checks of values that only differentiable k-means has: each returns how a value is kept.

Each raises ConfigError otherwise, which names the parameter, what it got and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal, cast

import torch

from mlopt.errors import ConfigError
from mlopt.requests.checked import integer, listed, shown, word
from mlopt.torch.soft_kmeans import Mode

KmeansInit = Literal["auto", "opt1d", "kmeans++", "cpu.kmeans++"]
ShortLutDtype = Literal["f32", "f16", "bf16", "i8", "u8"]
ScaleScheme = Literal["min_max", "abs"]

LUT_DTYPES: dict[ShortLutDtype, torch.dtype] = {
    "i8": torch.int8,
    "u8": torch.uint8,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
"""What a table entry may be stored in, by the short names of the configuration."""

OUTPUT_CHANNELS_LAST = "oc_last"

_PALETT_MODES: tuple[Mode, ...] = ("dkm", "gsm", "hard")
_KMEANS_INITS: tuple[KmeansInit, ...] = ("auto", "opt1d", "kmeans++", "cpu.kmeans++")
_SCALE_SCHEMES: tuple[ScaleScheme, ...] = ("min_max", "abs")

_SHORT_NAMES: dict[str, str] = {
    str(dtype).removeprefix("torch."): short for short, dtype in LUT_DTYPES.items()
}
_SHORT_NAMES["b16"] = "bf16"  # what coremltools calls it
_ACTIVATION_DTYPES = {"qint8": torch.qint8, "quint8": torch.quint8, "float32": torch.float32}


def number(
    value: Any,
    name: str,
    *,
    maximum: float = math.inf,
    exclusive: bool = False,
) -> float:
    """Return `value` as a finite float from 0 to `maximum`; `exclusive`: 0 itself is refused."""
    allowed = "a number above 0" if exclusive else "a number of at least 0"
    if maximum < math.inf:
        allowed += f" and at most {maximum:g}"
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"{name} must be {allowed}, got {shown(value)}{_yaml_hint(value)}")
    if not 0 <= value <= maximum or (exclusive and value == 0):
        raise ConfigError(f"{name} must be {allowed}, got {value}")
    return float(value)


def output_axis(value: Any) -> int:
    """`channel_axis`, which is 0; also for None."""
    axis = 0 if value is None else integer(value, "channel_axis")
    if axis != 0:
        raise ConfigError(
            f"channel_axis must be 0, got {axis}; only the output channel axis is supported by DKM"
        )
    return axis


def short_lut_dtype(value: Any) -> ShortLutDtype:
    """The short name of a table dtype that is given by any of its names or as a type."""
    if value is None:
        return "f32"
    return cast(ShortLutDtype, _short_name(value, "lut_dtype", LUT_DTYPES))


def cluster_dtype(value: Any) -> str | None:
    """A value of the parameter that `lut_dtype` replaces: one of those, ``"oc_last"`` or None."""
    if value is None:
        return None
    if _bare_name(value) == OUTPUT_CHANNELS_LAST:
        return OUTPUT_CHANNELS_LAST
    return _short_name(value, "cluster_dtype", [*LUT_DTYPES, OUTPUT_CHANNELS_LAST])


def activation_dtype(value: Any) -> torch.dtype:
    """``torch.qint8``, ``torch.quint8`` or ``torch.float32``, given as such or by name."""
    try:
        return _ACTIVATION_DTYPES[_bare_name(value)]
    except KeyError:
        raise ConfigError(
            f"dtype must be {listed(_ACTIVATION_DTYPES)}, got {shown(value)}"
        ) from None


def permutation(value: Any) -> tuple[int, ...] | None:
    """`cluster_permute`: each of 0 to n - 1 once, or None."""
    if value is None:
        return None
    if isinstance(value, Iterable) and not isinstance(value, str):
        order = tuple(integer(axis, "an axis in cluster_permute") for axis in value)
        if order and sorted(order) == list(range(len(order))):
            return order
    raise ConfigError(
        "cluster_permute must be None or an order of the axes of a weight, such as (1, 2, 3, 0), "
        f"got {shown(value)}"
    )


def palett_mode(value: Any) -> Mode:
    """A mode of soft k-means."""
    return word(value, "palett_mode", _PALETT_MODES)


def kmeans_init(value: Any) -> KmeansInit:
    """An initialization of coremltools."""
    return word(value, "kmeans_init", _KMEANS_INITS)


def scaling_factor_scheme(value: Any) -> ScaleScheme:
    """The divisor of a channel: ``"min_max"`` or ``"abs"``."""
    return word(value, "per_channel_scaling_factor_scheme", _SCALE_SCHEMES)


def code_range(dtype: torch.dtype) -> tuple[int, int]:
    """The least and the greatest code of a quantized dtype, 8 bits wide."""
    return (0, 255) if dtype == torch.quint8 else (-128, 127)


def _short_name(value: Any, name: str, allowed: Iterable[str]) -> str:
    given = _bare_name(value)
    short = _SHORT_NAMES.get(given, given)
    if short not in LUT_DTYPES:
        raise ConfigError(f"{name} must be {listed(allowed)}, got {shown(value)}")
    return short


def _bare_name(value: Any) -> str:
    name = value if isinstance(value, str) else str(getattr(value, "__name__", value))
    return name.lower().removeprefix("torch.")


def _yaml_hint(value: Any) -> str:
    """Say how to write a number that YAML read as text, as it does ``1e-4``, which has no point."""
    try:
        text = repr(float(value)) if isinstance(value, str) else ""
    except ValueError:
        return ""
    if not text:
        return ""
    digits, exponent, power = text.partition("e")
    text = text if "." in digits else f"{digits}.0{exponent}{power}"
    return f"; that is text: in YAML write {text}"
