"""Fixtures of every room's tests: models converted once a session, and the packages they make."""

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from tests.selection import mark_long

# A time limit on an example fails on a busy machine and says nothing of the code. There are fewer
# examples than the usual 100, since every run draws others.
settings.register_profile("mlopt", deadline=None, max_examples=60)
settings.load_profile("mlopt")

# coremltools draws progress bars, and warns when it is imported about versions that it has not
# been tested with; neither says anything about mlopt.
os.environ["TQDM_DISABLE"] = "1"
logging.getLogger("coremltools").setLevel(logging.ERROR)

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the short run leaves out, before ``-m`` is applied."""
    mark_long(items)


def pytest_collection_finish() -> None:
    """Leave all that is imported out of garbage collection.

    coremltools collects garbage after every conversion, which takes a quarter of a second with
    torch loaded, twenty times as long as converting a small program.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Leave out, too, what a file's tests have imported and what they share with later files."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _unchecked_conversions() -> Iterator[None]:
    """Leave out what coremltools' converter checks of its own work.

    It checks the whole program again after each of some ninety passes, a third of the time of a
    conversion. What the tests ask of coremltools as a judge is not among these checks: it infers
    types and values while it builds or loads a program.
    """
    from coremltools.converters.mil.mil import Program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "validate", lambda program, **options: None)
        yield


class PackageOf(Protocol):
    """Return the path of a saved model: see ``tests.models.build`` for the arguments."""

    def __call__(self, kind: str, target: str = ..., precision: str = ...) -> Path: ...


@pytest.fixture(scope="session")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> PackageOf:
    """Return a function that saves a model of ``tests.models`` once and gives its package's path.

    The package is shared by the whole session, all its processes, so a test must not write to it.
    """
    mine = tmp_path_factory.mktemp("packages")
    base = tmp_path_factory.getbasetemp()
    # A process of pytest-xdist has a folder of its own in that of the session.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @functools.cache
    def save(kind: str, target: str = "iOS15", precision: str = "float16") -> Path:
        path = shared / f"{kind}-{target}-{precision}.mlpackage"
        if not path.exists():
            from tests import models

            made = mine / path.name
            models.build(kind, target, precision).save(str(made))
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(path)
        return path

    return save


@pytest.fixture(scope="session")
def digits() -> Path:
    """Return the path of the digit classifier that is committed in ``fixtures/`` (iOS15)."""
    return FIXTURES / "digits.mlpackage"
