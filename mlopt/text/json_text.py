"""JSON text of reports, and forms of the numbers that JSON lacks.

There are two rules, for two kinds of numbers:

* An account of weights (palettize, inspect) writes :func:`finite_or_none`. Its only such number is
  the infinite ratio of a weight that is stored losslessly, which the field ``lossless`` next to it
  shows.
* A comparison (compare) writes :func:`finite_or_text`. It measures what models compute, where
  ``"inf"`` (equal), ``"-inf"`` (a reference of zeros) and ``"nan"`` (not measured) differ.
"""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(values: Any, *, indent: int | None = 2, ensure_ascii: bool = False) -> str:
    """Return `values` as JSON; ValueError if a number in them is not finite."""
    return json.dumps(values, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def finite_or_none(value: float | None) -> float | None:
    """Return a number, or None if it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_or_text(value: Any) -> Any:
    """Return a value; a float that is not finite becomes ``"inf"``, ``"-inf"`` or ``"nan"``."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
