"""Put every package through every door: ``python -m tests.field FOLDER [NAME ...]``.

FOLDER: where the wheels of ``requirements.txt`` were installed. NAME: a part of the packages' names
to be tried, all without one. Prints a line a door, and ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
logging.getLogger("coremltools").setLevel(logging.ERROR)

from tests.field.doors import doors, is_program  # noqa: E402
from tests.field.models import packages  # noqa: E402

PATIENCE = 600
"""Seconds for one door: what takes longer counts as not ending."""


class _TooLong(BaseException):
    """A door took longer than ``PATIENCE``."""


def main(arguments: list[str]) -> int:
    """Run; 1 where a door failed or there was nothing to try."""
    parser = argparse.ArgumentParser(prog="tests.field", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # coremltools' own, about versions
    chosen = packages(options.folder, options.names)
    if not chosen:
        print(f"no package of these names below {options.folder}", file=sys.stderr)
        return 1
    failures: list[str] = []
    tried = 0
    for name, path in chosen.items():
        if not is_program(path):
            print(f"{name}: no ML program, and told so", flush=True)
            tried += 1
            continue
        print(name, flush=True)
        for door, through in doors(path).items():
            tried += 1
            failure = _try(door, through, path)
            if failure is not None:
                failures.append(f"{name}, {door}:\n{failure}")
    print(f"\n{tried} tried, {len(failures)} failed")
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def _try(door: str, through: Any, path: Path) -> str | None:
    """Go through one door and print how that ended; the traceback of a failure."""
    start = time.perf_counter()
    failure = None
    with tempfile.TemporaryDirectory(prefix="mlopt-field-") as folder:
        try:
            with _limited():
                seen = through(path, Path(folder))
        except (Exception, _TooLong) as error:
            seen = f"FAILED: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
            failure = traceback.format_exc(limit=-4)
    print(f"  {door:<18} {time.perf_counter() - start:6.1f} s  {seen}", flush=True)
    gc.collect()
    return failure


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _TooLong(f"not done after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
