"""Metrics that a caller gives as functions."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from mlopt.errors import ConfigError, RunError
from mlopt.runtime.comparison.rows import MetricRow

Outputs: TypeAlias = list[dict[str, Any]]

MetricFunction: TypeAlias = Callable[[Outputs, Outputs, Outputs], float | tuple[float, float]]
"""A function of the reference's outputs, the candidate's and the inputs, a dictionary for each
sample. It returns a number about the pair, or two: one for each model."""


@attrs.define(eq=False)
class UserMetrics:
    """Functions of all outputs of both models, which are held until the last sample is run."""

    functions: Mapping[str, MetricFunction]
    _references: Outputs = attrs.Factory(list)
    _candidates: Outputs = attrs.Factory(list)
    _samples: Outputs = attrs.Factory(list)

    def add(
        self, sample: Mapping[str, Any], reference: Mapping[str, Any], candidate: Mapping[str, Any]
    ) -> None:
        """Add a sample: the inputs, and the outputs of both models."""
        self._samples.append(dict(sample))
        self._references.append(dict(reference))
        self._candidates.append(dict(candidate))

    def rows(self) -> Iterator[MetricRow]:
        """Yield what each function returns.

        Raises
        ------
        ConfigError
            It does not return a number or two.
        RunError
            It fails.
        """
        for name, function in self.functions.items():
            try:
                result = function(self._references, self._candidates, self._samples)
            except Exception as error:
                raise RunError(
                    f"metric {name!r} failed: {type(error).__name__}: {error}"
                ) from error
            if isinstance(result, tuple | list) and len(result) == 2:
                first, second = (_number(name, value) for value in result)
                yield MetricRow(name, reference=first, candidate=second)
            else:
                yield MetricRow(name, pair=_number(name, result))


def check_functions(functions: Any) -> None:
    """Refuse anything but a dictionary of functions by name.

    Raises
    ------
    ConfigError
        It is not one.
    """
    wanted = "metrics must be a dictionary of functions by name"
    if not isinstance(functions, Mapping):
        raise ConfigError(f"{wanted}; got {type(functions).__name__}")
    for name, function in functions.items():
        if not isinstance(name, str) or not callable(function):
            raise ConfigError(f"{wanted}; got {name!r}: {type(function).__name__}")


def _number(name: str, value: Any) -> float:
    is_one_element = getattr(value, "shape", None) == () and hasattr(value, "item")
    plain = value.item() if is_one_element else value
    if not isinstance(plain, numbers.Real):
        raise ConfigError(
            f"metric {name!r} returned {type(plain).__name__}; a number about both models, or a "
            "tuple of two, one for each, is needed"
        )
    return float(plain)
