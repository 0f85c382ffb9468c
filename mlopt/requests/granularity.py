"""How much of a weight shares one lookup table."""

from __future__ import annotations

from enum import Enum

from mlopt.errors import ConfigError
from mlopt.requests.checked import listed, shown


class Granularity(str, Enum):
    """How much of a weight shares one lookup table.

    :meth:`parse` accepts a string in any case and a member of another enum with the same name
    (coremltools' and the PyTorch side's); a member equals its lower-case name.
    """

    PER_TENSOR = "per_tensor"
    PER_GROUPED_CHANNEL = "per_grouped_channel"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, value: object) -> Granularity:
        """The member that `value` names; raises ConfigError if there is none."""
        name = value.name if isinstance(value, Enum) else value
        for member in cls:
            if isinstance(name, str) and name.lower() == member.value:
                return member
        remedy = ""
        if isinstance(name, str) and name.lower() == "per_channel":
            remedy = "; for one table per channel use per_grouped_channel with group_size=1"
        raise ConfigError(f"granularity must be {listed(cls)}, got {shown(value)}{remedy}")


CompressionGranularity = Granularity  # the name that coremltools gives to it
