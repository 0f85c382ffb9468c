"""The statistics of one weight: what identifies it, and which moments are its inputs'."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.moments import Arrangement


@attrs.frozen(kw_only=True)
class WeightStatistics:
    """A weight of the calibrated model, and its statistics.

    Attributes
    ----------
    name, names
        Its first name in the program, and all of them.
    shape
        Its shape.
    content
        :func:`content_of` its plain values.
    moments
        The key of the moments of its inputs; weights that read the same input have the same one.
    arrangement
        The matrices that multiply these inputs.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    content: str
    moments: str
    arrangement: Arrangement

    def to_dict(self) -> dict[str, Any]:
        """Return it as values of JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WeightStatistics:
        """Return it from values of JSON.

        Raises
        ------
        KeyError, TypeError, ValueError
            Something is missing, of another type, or contradicts itself.
        """
        matrices = values["arrangement"]
        return cls(
            name=str(values["name"]),
            names=tuple(map(str, values["names"])),
            shape=_lengths(values["shape"]),
            content=str(values["content"]),
            moments=str(values["moments"]),
            arrangement=Arrangement(
                shape=_lengths(matrices["shape"]),
                split=_lengths(matrices["split"]),
                order=_lengths(matrices["order"]),
                blocks=int(matrices["blocks"]),
                rows=int(matrices["rows"]),
                columns=int(matrices["columns"]),
            ),
        )


def content_of(value: npt.NDArray[Any]) -> str:
    """Return the digest by which a weight is recognized: of its dtype, shape and elements.

    Hexadecimal BLAKE2b of 20 bytes, of the plain values in C order.
    """
    digest = hashlib.blake2b(f"{value.dtype.name} {list(value.shape)} ".encode(), digest_size=20)
    digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _lengths(values: Any) -> tuple[int, ...]:
    return tuple(map(int, values))
