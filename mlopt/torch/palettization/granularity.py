"""Granularity: how much of a parameter shares a lookup table, in the torch side's names."""

from __future__ import annotations

from enum import Enum

from mlopt.requests.granularity import Granularity


class PalettizationGranularity(str, Enum):
    """:class:`mlopt.coreml.Granularity` with members in lower case; like-named members are equal.

    Calling it accepts what ``Granularity.parse`` does: a string in any case, and a like-named
    member of any enum, ``mlopt.coreml``'s and coremltools' among them.

    Raises
    ------
    ConfigError
        The name is not that of a granularity.
    """

    per_tensor = Granularity.PER_TENSOR.value
    per_grouped_channel = Granularity.PER_GROUPED_CHANNEL.value

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> PalettizationGranularity:
        return cls(Granularity.parse(value).value)
