"""Sums of moments, in memory or in the file of an unfinished calibration.

The file has the layout of the finished one, so that its matrices, the largest part, are written in
place; behind them lie the other sums and a journal, which the end cuts off. The journal says how
many updates of each matrix were begun and done, so that an interrupted run goes on exactly where
it ended, or says that it cannot.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
import numpy.typing as npt
import torch

from mlopt.calibration.feeds import Feeds
from mlopt.calibration.sharing import Sharing
from mlopt.calibration.updates import Update
from mlopt.errors import ConfigError, DestinationError
from mlopt.statistics import Calibration, HeldOut, MomentArrays
from mlopt.statistics.calibration import FORMAT, entries_of, metadata_of
from mlopt.statistics.container import Entry, header_of
from mlopt.statistics.held_out import held_out

Array = npt.NDArray[Any]

_JOURNAL = "journal"
_CHECKS = "checks"
_SAMPLES, _CLOSING, _FINISHING, _DIGEST, _NEXT_DIGEST, _FIRST = 0, 1, 2, 3, 7, 11
"""Places in the journal, int64: samples done; the same while a sample is closed; whether the sums
are being made means; digests of the samples done, and of these and the next one; and of each of the
moments the updates begun, done, and done before this sample, the positions, and the first moments
that have been equal."""
_BEGUN, _DONE, _START, _COUNT, _LEADER, _ROW = range(6)
_FOR_NOTES = 4096
"""Bytes that the header of an unfinished file has left for numbers and notes."""


class Sums:
    """The sums of a calibration; see :func:`open_sums`."""

    def __init__(self, feeds: Feeds, empty: Calibration, arrays: Mapping[str, Array]) -> None:
        self.feeds, self.empty, self.arrays = feeds, empty, arrays
        self.journal: Array = arrays[_JOURNAL]
        self.rows: Array = self.journal[_FIRST:].reshape(len(feeds.moments), _ROW)
        self.sharing = Sharing(self.rows[:, _LEADER])
        self.checks: Array = arrays[_CHECKS]
        self.seen = [0] * len(feeds.moments)
        self.is_held_out = False
        self.last_check: tuple[Update, int, HeldOut | None] | None = None

    @property
    def samples(self) -> int:
        """How many samples are summed."""
        return int(self.journal[_SAMPLES])

    @property
    def digest(self) -> bytes:
        """A digest of these samples, 32 bytes."""
        return self.journal[_DIGEST:_NEXT_DIGEST].tobytes()

    def begin_sample(self, *, is_held_out: bool = False) -> None:
        """Prepare for the updates of the next sample, in the order of an earlier attempt.

        is_held_out: it shows what fitting to the samples before it would gain on others.
        """
        self.seen = [0] * len(self.rows)
        self.sharing.begin_sample()
        self.is_held_out, self.last_check = is_held_out, None

    def expects(self, number: int) -> bool:
        """Whether the next update of moments was not made by an earlier attempt."""
        row = self.rows[number]
        self.seen[number] += 1
        return bool(self.seen[number] > row[_DONE] - row[_START])

    def add(self, number: int, update: Update, times: int) -> None:
        """Add an update to the moments of that number.

        Those of guided moments that no gradient has reached count until one that a gradient has
        reached, and from then on only such do.
        """
        row = self.rows[number]
        # later ones of the same sample would be judged by the first
        if self.is_held_out and self.seen[number] == 1:
            self._check(number, update)
        row[_BEGUN] += 1
        if self._is_counted(number, update):
            key = self.feeds.moments[number].key
            if update.second is not None:
                torch.from_numpy(self.arrays[f"{key}.second"]).add_(update.second, alpha=times)
            self.arrays[f"{key}.firsts"] += update.firsts.numpy() * times
            if update.sensitivity is not None:
                self.arrays[f"{key}.factors"] += update.sensitivity.numpy() * times
        row[_COUNT] += update.count * times
        row[_DONE] += 1

    def _check(self, number: int, update: Update) -> None:
        """Note what fitting to the sums would gain on these, and on an update to come."""
        moments = self.feeds.moments[number]
        is_weighted = update.sensitivity is not None and self._has_gradients(number)
        if update.second is None or (moments.is_guided and not is_weighted):
            return
        leader = int(self.rows[number, _LEADER])
        if self.last_check is None or self.last_check[:2] != (update, leader):
            seen = self.arrays[f"{moments.key}.second"]
            check = held_out(seen, update.second.numpy(), self.samples)
            self.last_check = update, leader, check
        check = self.last_check[2]
        if check is not None:
            self.checks[number] = attrs.astuple(check)

    def _has_gradients(self, number: int) -> bool:
        """Whether updates of guided moments that no gradient has reached count no more."""
        factors = self.arrays.get(f"{self.feeds.moments[number].key}.factors")
        return factors is not None and bool(factors.any())

    def _is_counted(self, number: int, update: Update) -> bool:
        """Whether an update is added; one that a gradient has reached replaces those before."""
        has_gradients = self._has_gradients(number)
        if update.sensitivity is None:
            return not has_gradients
        if not has_gradients and self.rows[number, _COUNT]:
            key = self.feeds.moments[number].key
            for field in ("second", "firsts"):
                array = self.arrays.get(f"{key}.{field}")
                if array is not None:
                    array[...] = 0
        return True

    def end_sample(self, digest: bytes) -> None:
        """Note that a sample is done; digest: of all until now."""
        self.sharing.end_sample()
        self.journal[_NEXT_DIGEST:_FIRST] = np.frombuffer(digest, "<i8")
        self.journal[_CLOSING] += 1
        self.close_sample()

    def close_sample(self) -> None:
        """Finish what :meth:`end_sample` began."""
        self.rows[:, _START] = self.rows[:, _DONE]
        self.journal[_DIGEST:_NEXT_DIGEST] = self.journal[_NEXT_DIGEST:_FIRST]
        self.journal[_SAMPLES] = self.journal[_CLOSING]

    def keys(self) -> dict[str, str]:
        """Return the key of the moments that each are equal to, by the key of all."""
        described = self.feeds.moments
        return {
            # those that nothing has reached are of several shapes
            each.key: described[row[_LEADER]].key if row[_COUNT] else each.key
            for each, row in zip(described, self.rows, strict=True)
        }

    def means(self) -> dict[str, MomentArrays]:
        """Return the moments, of equal ones the first.

        The sums are made means in place, so this ends them.
        """
        self.journal[_FINISHING] = 1
        moments, keys = {}, self.keys()
        for described, row, check in zip(self.feeds.moments, self.rows, self.checks, strict=True):
            if keys[described.key] != described.key:
                continue
            key, count = described.key, int(row[_COUNT])
            size, of_blocks = self._sizes(key, count)
            second = self.arrays.get(f"{key}.second")
            for matrix in () if second is None else second:
                # the two halves of a product may be rounded apart
                np.add(matrix, matrix.T, out=matrix)
                matrix *= np.float32(0.5 / size)
            firsts = self.arrays[f"{key}.firsts"]
            self.arrays[f"{key}.diagonal"][...] = firsts[0] / size
            self.arrays[f"{key}.mean"][...] = firsts[1] / of_blocks
            if described.is_guided:
                self.arrays[f"{key}.sensitivity"][...] = self.arrays[f"{key}.factors"]
            moments[key] = MomentArrays(
                second=second,
                diagonal=self.arrays[f"{key}.diagonal"],
                mean=self.arrays[f"{key}.mean"],
                count=count,
                sensitivity=self.arrays.get(f"{key}.sensitivity"),
                held_out=HeldOut(int(check[0]), *map(float, check[1:])) if check[0] else None,
            )
        return moments

    def _sizes(self, key: str, count: int) -> tuple[float, Any]:
        """Return what second moments are divided by, and means of the inputs, [blocks, 1]."""
        factors = self.arrays.get(f"{key}.factors")
        if factors is None or not factors.any():
            return max(count, 1), max(count, 1)
        return float(factors.mean()), np.where(factors > 0, factors, 1)[:, None]

    def close(self) -> None:
        """Let go of the file, if there is one; what is summed stays in it."""

    def discard(self) -> None:
        """Keep nothing: there was no sample."""

    def finish(self) -> Calibration:
        """Return the calibration."""
        keys = self.keys()
        weights = tuple(attrs.evolve(w, moments=keys[w.moments]) for w in self.empty.weights)
        moments = self.means()
        return attrs.evolve(self.empty, samples=self.samples, weights=weights, moments=moments)


class FileSums(Sums):
    """Sums in the file of an unfinished calibration."""

    def __init__(
        self, feeds: Feeds, empty: Calibration, *, path: Path, output: Path, header: bytes
    ) -> None:
        self.path, self.output, self.header_size = path, output, len(header)
        self.file = _locked(path)
        self.map = mmap.mmap(self.file.fileno(), 0)
        arrays, position = {}, len(header)
        self.positions: dict[str, int] = {}
        for entry in _entries(feeds):
            self.positions[entry.name] = position
            data = np.frombuffer(self.map, np.uint8, entry.nbytes, position)
            arrays[entry.name] = data.view(entry.dtype).reshape(entry.shape)
            position += entry.nbytes
        super().__init__(feeds, empty, arrays)

    def problem(self) -> str:
        """Return why the sums cannot be continued; "" if they can."""
        if self.journal[_FINISHING]:
            return "it was being finished"
        if (self.rows[:, _BEGUN] != self.rows[:, _DONE]).any():
            return "it was adding to a matrix"
        return ""

    def discard(self) -> None:
        """Delete the file, which then has no sums."""
        self.path.unlink(missing_ok=True)

    def finish(self) -> Calibration:
        """Return the calibration, from its complete file."""
        finished = super().finish()
        entries = entries_of(finished.moments)
        size = self.header_size
        for entry in entries:
            # the first of equal moments move up to where others have been
            if size != self.positions[entry.name]:
                self.map.move(size, self.positions[entry.name], entry.nbytes)
            size += entry.nbytes
        self.map[: self.header_size] = header_of(
            entries, metadata_of(finished), length=self.header_size
        )
        self.map.flush()
        del finished
        self._unmap()
        try:
            self.file.truncate(size)
            os.fsync(self.file.fileno())
            os.replace(self.path, self.output)
        except OSError as error:
            raise DestinationError(
                f"{self.output}: the calibration cannot be written: {error}; choose another place"
            ) from error
        return Calibration.load(self.output)

    def close(self) -> None:
        """Let go of the file; what is summed stays in it."""
        self._unmap()
        self.file.close()

    def _unmap(self) -> None:
        """Unmap the file: some systems cannot cut one that is mapped."""
        self.arrays, self.journal, self.rows = {}, np.empty(0), np.empty(0)
        self.checks, self.sharing = np.empty(0), Sharing(np.empty(0))
        with contextlib.suppress(BufferError):
            self.map.close()


def open_sums(feeds: Feeds, empty: Calibration, output: Path | None, identity: str) -> Sums:
    """Return sums to add to: new ones, or those of an earlier run for the same output.

    Parameters
    ----------
    empty
        The calibration but for its moments.
    output
        The file that is written; ``output + ".partial"`` has the sums until then. None: in memory.
    identity
        Of what is calibrated, and how.

    Raises
    ------
    ConfigError
        The partial file is that of another calibration.
    DestinationError
        It cannot be written.
    """
    if output is None:
        arrays = {e.name: np.zeros(e.shape, e.dtype) for e in _entries(feeds)}
        return Sums(feeds, empty, arrays)
    if output.is_dir():
        raise DestinationError(f"{output} is a folder; name a file for the calibration")
    path = output.with_name(f"{output.name}.partial")
    header = _header(feeds, empty, identity)
    if not path.exists():
        return _created(feeds, empty, path, output, header)
    _check_same(path, header, header_size=sum(e.nbytes for e in _entries(feeds)) + len(header))
    sums = FileSums(feeds, empty, path=path, output=output, header=header)
    problem = sums.problem()
    if not problem:
        if sums.journal[_CLOSING] != sums.journal[_SAMPLES]:
            sums.close_sample()
        return sums
    note = f"an earlier run was ended while {problem}; all samples were summed anew"
    path.unlink()
    sums.close()
    noted = attrs.evolve(empty, remarks=(*empty.remarks, note))
    return _created(feeds, noted, path, output, header)


def _created(feeds: Feeds, empty: Calibration, path: Path, output: Path, header: bytes) -> FileSums:
    size = len(header) + sum(entry.nbytes for entry in _entries(feeds))
    try:
        with path.open("xb") as file:
            file.write(header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                # a full disk is an error here, and would end the process later
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise DestinationError(
            f"{path}: {size} bytes for the calibration cannot be written: {error}; choose another "
            "place, or statistics='diagonal'"
        ) from error
    return FileSums(feeds, empty, path=path, output=output, header=header)


def _locked(path: Path) -> BinaryIO:
    """Open the file of unfinished sums for this process alone, where the system can tell."""
    file = path.open("r+b")
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise DestinationError(
            f"{path} is being written by another run; wait for it, or choose another output"
        ) from None
    return file


def _check_same(path: Path, header: bytes, header_size: int) -> None:
    try:
        with path.open("rb") as file:
            is_same = file.read(len(header)) == header
            is_same &= os.fstat(file.fileno()).st_size == header_size
    except OSError as error:
        raise DestinationError(f"{path}: it cannot be read: {error}; delete it") from error
    if not is_same:
        raise ConfigError(
            f"{path} holds the unfinished sums of another calibration: of another model, function, "
            "part or statistics, or of another version of mlopt; delete it, or choose another "
            "output"
        )


def _entries(feeds: Feeds) -> list[Entry]:
    """Return the arrays of an unfinished file; those that stay first, as in ``entries_of``."""
    final, behind = [], []
    for each in feeds.moments:
        shape = (each.blocks, each.columns)
        if each.has_second:
            final.append(Entry(f"{each.key}.second", np.dtype("<f4"), (*shape, each.columns)))
        final += [Entry(f"{each.key}.{f}", np.dtype("<f4"), shape) for f in ("diagonal", "mean")]
        behind.append(Entry(f"{each.key}.firsts", np.dtype("<f8"), (2, *shape)))
        if each.is_guided:
            final.append(Entry(f"{each.key}.sensitivity", np.dtype("<f4"), shape[:1]))
            behind.append(Entry(f"{each.key}.factors", np.dtype("<f8"), shape[:1]))
    # what comes behind stays aligned to its eight bytes
    odd = sum(entry.nbytes for entry in final) % 8
    behind.append(Entry(_CHECKS, np.dtype("<f8"), (len(feeds.moments), 3)))
    behind.append(Entry(_JOURNAL, np.dtype("<i8"), (_FIRST + _ROW * len(feeds.moments),)))
    return [*final, *([Entry("gap", np.dtype("<f4"), (1,))] if odd else []), *behind]


def _header(feeds: Feeds, empty: Calibration, identity: str) -> bytes:
    metadata = metadata_of(empty)
    names = sum(len(text) for text in metadata.values())
    each = 1152 if any(moments.is_guided for moments in feeds.moments) else 640
    length = 2 * names + _FOR_NOTES + each * len(feeds.moments)
    length += -length % 64
    partial = {"format": f"{FORMAT}.partial", "identity": identity, "content": metadata["content"]}
    return header_of(_entries(feeds), partial, length=length)
