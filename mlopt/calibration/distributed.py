"""Calibration by several processes of ``torch.distributed``, each with a part of the samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import distributed

from mlopt.calibration.samples import NoSamplesError
from mlopt.errors import DestinationError, MlOptError, RunError
from mlopt.statistics import Calibration, merge


class CalibratePart(Protocol):
    """Calibrates with a part of the samples, into a file or memory."""

    def __call__(
        self, *, part: tuple[int, int], output: str | os.PathLike[str] | None
    ) -> Calibration:
        """Return the calibration of part ``i`` of ``n``, as :func:`calibrate` does."""


def is_distributed() -> bool:
    """Return whether the process is one of several that have found each other."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def calibrate_together(
    calibrate_part: CalibratePart, output: str | os.PathLike[str] | None
) -> Calibration:
    """Calibrate with one part of the samples in each process, and return the whole in all of them.

    With ``output`` parts are ``OUTPUT.1-of-2`` and so on until they are merged, on a file system
    that the processes share; without, each process gets the parts of all others.

    Raises
    ------
    RunError
        Another process failed; the message has its error. What this one raises is its own.
    DestinationError
        A process does not see the file.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    whole = None if output is None else Path(output)
    files = [
        None if whole is None else whole.with_name(f"{whole.name}.{number}-of-{world}")
        for number in range(1, world + 1)
    ]
    made: Calibration | None = None

    def run() -> None:
        nonlocal made
        try:
            made = calibrate_part(part=(rank + 1, world), output=files[rank])
        except NoSamplesError:
            made = None  # fewer samples than processes

    _all_or_none(run)
    if whole is None:
        gathered: list[Any] = [None] * world
        distributed.all_gather_object(gathered, made)
        return merge(_some(gathered))

    def merge_files() -> None:
        if rank == 0:
            parts = [file for file in files if file is not None and file.exists()]
            merge(_some(parts), whole)
            for part in parts:
                part.unlink()

    _all_or_none(merge_files)
    if not whole.exists():
        raise DestinationError(
            f"{whole} is not seen by process {rank}; give an output on a file system that all "
            "processes share"
        )
    return Calibration.load(whole)


def _all_or_none(work: Callable[[], None]) -> None:
    """Do the work in all processes, and raise an error in all of them if one has raised one.

    Otherwise the others would wait for that one.
    """
    own: MlOptError | None = None
    try:
        work()
    except MlOptError as error:
        own = error
    errors: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(errors, None if own is None else str(own))
    if own is not None:
        raise own
    for rank, message in enumerate(errors):
        if message is not None:
            raise RunError(f"process {rank} failed: {message}")


def _some(parts: list[Any]) -> list[Any]:
    given = [part for part in parts if part is not None]
    if not given:
        raise NoSamplesError
    return given
