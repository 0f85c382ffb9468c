"""JSON text of reports, and how they write the numbers that JSON does not have.

There are two rules, and which one holds follows from what a number can be:

* An account of weights (palettize, inspect) writes :func:`finite_or_none`. Its only such number is
  the infinite ratio of a weight that is stored as it was, which ``lossless`` beside it says.
* A comparison (compare) writes :func:`finite_or_text`. It measures what models compute, where
  ``"inf"`` (equal), ``"-inf"`` (a reference of zeros) and ``"nan"`` (not measured) differ.
"""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(values: Any, *, indent: int | None = 2, ensure_ascii: bool = False) -> str:
    """`values` as JSON; ValueError where a number in them is not finite."""
    return json.dumps(values, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def finite_or_none(value: float | None) -> float | None:
    """A number, or None where it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_or_text(value: Any) -> Any:
    """Any value as it is, but ``"inf"``, ``"-inf"`` or ``"nan"`` for a float that is not finite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
