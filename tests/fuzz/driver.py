"""Trials in processes of their own, with bounded memory; a process that dies is a finding too."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from tests.fuzz import trial
from tests.fuzz.mutators import mutate
from tests.fuzz.seeds import Files

#: Bytes that a trial may take at its peak, above what the process has before; a package has at
#: most 100 kB.
MEMORY = 64 << 20
_ADDRESSES = 1 << 30  # bytes that malloc may get in all above what there is: huge requests fail


@attrs.define
class Summary:
    """What came of a number of inputs.

    Attributes
    ----------
    inputs
        How many there were.
    ends
        (step, how it ended) -> how often.
    failures
        For each input that went wrong: its number and what happened.
    peak
        The most bytes that a trial took above what its process had before.
    seconds
        How long all of it took.
    """

    inputs: int = 0
    ends: Counter[tuple[str, str]] = attrs.Factory(Counter)
    failures: list[tuple[int, str]] = attrs.Factory(list)
    peak: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.inputs} inputs in {self.seconds:.0f} s, {len(self.failures)} failures; at most "
            f"{self.peak / 2**20:.1f} MiB above the process"
        ]
        for step in dict.fromkeys(step for step, _ in self.ends):
            ways = {how: n for (name, how), n in sorted(self.ends.items()) if name == step}
            lines.append(f"  {step:11}" + ", ".join(f"{how} {n}" for how, n in ways.items()))
        lines += [f"input {number}: {what.splitlines()[0]}" for number, what in self.failures[:50]]
        return "\n".join(lines)


def input_of(seeds: dict[str, Files], seed: int, number: int) -> tuple[Files, str, random.Random]:
    """The input of that number: its files, what was done to which package, and its chance."""
    rng = random.Random(f"{seed}:{number}")
    name = rng.choice(sorted(seeds))
    files, damage = mutate(seeds[name], rng)
    return files, f"{name}: {', '.join(damage)}", rng


@attrs.frozen
class Kind:
    """A kind of trials: what an input is, by seeds, seed and number, and what is done with it."""

    input_of: Callable[[dict[str, Files], int, int], tuple[Files, str, random.Random]]
    run: Callable[[Files, Path, random.Random], dict[str, str]]


def run(
    seeds: dict[str, Files],
    *,
    inputs: int,
    seed: int,
    processes: int = 1,
    first: int = 0,
    failures: Path | None = None,
    progress: bool = False,
    kind: Kind | None = None,
) -> Summary:
    """Run trials ``first`` to ``first + inputs``; ``failures``: a folder for what went wrong.

    ``kind``: None for damaged packages, which are put through everything.
    """
    kind = kind or Kind(input_of, trial.run)
    start = time.perf_counter()
    summary = Summary()
    waiting = {
        index: _Worker(kind, seeds, seed, range(first + index, first + inputs, processes))
        for index in range(processes)
    }
    reported = start
    while waiting:
        for index, worker in list(waiting.items()):
            line = worker.pipe.readline()
            if not line:
                follower = worker.follower(summary, failures)
                if follower is None:
                    del waiting[index]
                else:
                    waiting[index] = follower
                continue
            _enter(summary, worker, json.loads(line), failures)
        if progress and time.perf_counter() - reported > 30:
            reported = time.perf_counter()
            print(f"{summary.inputs} inputs, {len(summary.failures)} failures", file=sys.stderr)
    summary.failures.sort()
    summary.seconds = time.perf_counter() - start
    return summary


def _enter(summary: Summary, worker: _Worker, said: dict[str, Any], failures: Path | None) -> None:
    worker.current = said["number"]
    if said.get("begins"):
        return
    worker.current = None
    summary.inputs += 1
    summary.peak = max(summary.peak, said["peak"])
    summary.ends.update(tuple(end) for end in said["ends"])
    if said["wrong"]:
        _fail(summary, worker, said["number"], said["wrong"], failures)


def _fail(summary: Summary, worker: _Worker, number: int, what: str, failures: Path | None) -> None:
    """Note what went wrong, and keep the input."""
    summary.failures.append((number, what))
    if failures is not None:
        kind, seeds, seed, _ = worker.arguments
        folder = failures / f"{seed}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "what.txt").write_text(f"{what}\n")
        files, damage, _ = kind.input_of(seeds, seed, number)
        (folder / "what.txt").write_text(f"{damage}\n{what}\n")
        trial.write(files, folder / "source.mlpackage")


class _Worker:
    """A forked process that runs trials and says, line by line, how they ended."""

    def __init__(self, kind: Kind, seeds: dict[str, Files], seed: int, numbers: range) -> None:
        self.arguments = (kind, seeds, seed, numbers)
        self.current: int | None = None
        # In memory where that is possible: nothing of it is meant to last.
        room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="mlopt-fuzz-", dir=room))
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # That a process with threads forks: it uses none of them afterwards.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            status = 1
            try:
                with open(writing, "w") as pipe:
                    for said in _trials(kind, seeds, seed, numbers, self.folder):
                        print(json.dumps(said), file=pipe, flush=True)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self.pipe = open(reading)  # noqa: SIM115

    def follower(self, summary: Summary, failures: Path | None) -> _Worker | None:
        """Take leave of a process that ended; returns the one for what it did not get to."""
        self.pipe.close()
        _, status = os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        if status == 0:
            return None
        kind, seeds, seed, numbers = self.arguments
        ended = numbers[0] if self.current is None else self.current
        summary.inputs += 1
        _fail(summary, self, ended, f"the process died: status {status}", failures)
        rest = range(ended + numbers.step, numbers.stop, numbers.step)
        return _Worker(kind, seeds, seed, rest) if rest else None


def _trials(
    kind: Kind, seeds: dict[str, Files], seed: int, numbers: range, folder: Path
) -> Iterator[dict[str, Any]]:
    _bound_addresses()
    for number in numbers:
        yield {"number": number, "begins": True}
        files, damage, rng = kind.input_of(seeds, seed, number)
        before = _memory(reset=True)
        wrong, ends = "", {}
        try:
            ends = kind.run(files, folder, rng)
        except trial.Wrong as error:
            wrong = f"{error} [{damage}]\n{traceback.format_exc()}"
        peak = _memory() - before
        if peak > MEMORY and not wrong:
            wrong = f"{peak} bytes of memory [{damage}]"
        yield {"number": number, "ends": list(ends.items()), "wrong": wrong, "peak": peak}


def _bound_addresses() -> None:
    try:
        with open("/proc/self/statm") as file:
            there = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (there + _ADDRESSES, most))


def _memory(*, reset: bool = False) -> int:
    """The process's peak in bytes since the last reset; what it has now for ``reset``."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except OSError:
        return 0
