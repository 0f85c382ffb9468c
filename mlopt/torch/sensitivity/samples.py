"""Samples: any objects that the caller's data loader yields."""

from __future__ import annotations

import io
from typing import Any

import torch


def to_bytes(sample: Any) -> bytes:
    """Return a sample as bytes that another process of the same job can read."""
    stream = io.BytesIO()
    torch.save(sample, stream)
    return stream.getvalue()


def from_bytes(data: bytes, device: torch.device | None) -> Any:
    """Return the sample of ``to_bytes``, its CUDA tensors on ``device``; None: where they were.

    CPU tensors stay on the CPU. The bytes must come from ``to_bytes``: they are unpickled.
    """
    target = None if device is None else str(device)

    def place(storage: Any, location: str) -> Any:
        if target is None or location == "cpu":
            return None  # as it was
        return torch.serialization.default_restore_location(  # type: ignore[no-untyped-call]
            storage, target
        )

    return torch.load(io.BytesIO(data), map_location=place, weights_only=False)
