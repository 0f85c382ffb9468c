"""Samples and the original's outputs for them, in a temporary file: they may be many."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.errors import DestinationError


@attrs.frozen
class _Place:
    """Where the bytes of a tensor are."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Store:
    """Samples by number, each a pair of inputs and outputs by name; closed by ``close``.

    device: where tensors are returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # kept for as long as the store is
        self._file = tempfile.TemporaryFile(prefix="mlopt-tune-")  # noqa: SIM115
        self._end = 0
        self._samples: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Add a sample.

        Raises
        ------
        DestinationError
            The temporary file cannot be written.
        """
        first, second = ({n: self._put(v) for n, v in g.items()} for g in (inputs, outputs))
        self._samples.append((first, second))

    def sample(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the inputs and outputs of a sample, in tensors of their own."""
        inputs, outputs = self._samples[number]
        first, second = ({n: self._get(v) for n, v in g.items()} for g in (inputs, outputs))
        return first, second

    def __len__(self) -> int:
        return len(self._samples)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def _put(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        flat = value.detach().cpu().contiguous().reshape(-1)
        place = _Place(self._end, flat.dtype, tuple(value.shape))
        data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
        try:
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            raise DestinationError(
                f"the outputs of the original cannot be written to the temporary folder "
                f"{tempfile.gettempdir()}: {error}; make room there, give fewer samples, or set "
                "TMPDIR to another folder"
            ) from error
        self._end += flat.numel() * flat.element_size()
        return place

    def _get(self, value: Any) -> Any:
        if not isinstance(value, _Place):
            return value
        count = math.prod(value.shape)
        if not count:
            return torch.empty(value.shape, dtype=value.dtype, device=self._device)
        self._file.seek(value.offset)
        data = bytearray(self._file.read(count * value.dtype.itemsize))
        return torch.frombuffer(data, dtype=value.dtype).reshape(value.shape).to(self._device)
