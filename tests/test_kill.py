"""Runs that are killed or interrupted: what was there stays whole, and the next run leaves nothing.

Each run is a fork of this process, which has imported and compiled everything, so that it does
nothing but read, cluster and write. ``MLOPT_KILLS=200`` makes more of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.mil import staging
from mlopt.mil.opening import open_package
from tests.conftest import PackageOf

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked processes")

#: Of each kind of signal.
KILLS = int(os.environ.get("MLOPT_KILLS", "12"))
LONG = KILLS > 12
CONFIG = OptimizationConfig(global_config=OpPalettizerConfig(nbits=4, weight_threshold=500))


def digest(folder: Path) -> str:
    """Every file of a folder and its name, as one number."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def fork(function: Callable[[], Any]) -> int:
    """Run a function in a process of its own, and return its number."""
    with warnings.catch_warnings():
        # That a process with threads forks: it uses none of them afterwards.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            status = 130
        finally:
            os._exit(status)
    return pid


def end(pid: int) -> int:
    """Wait for a process; returns its exit status, or the negative number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Scene:
    """A source, an earlier output and what a new one will be, in a folder of their own."""

    def __init__(self, original: Path, folder: Path) -> None:
        self.folder = folder
        self.source = Path(shutil.copytree(original, folder / "source.mlpackage"))
        self.output = folder / "out.mlpackage"
        self.run()
        self.new = digest(self.output)
        (self.output / "mark").write_text("the earlier one")
        self.earlier = digest(self.output)
        self.before = digest(self.source)
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        palettize(self.source, CONFIG, output=self.output, workers=1)

    def duration(self) -> float:
        """Seconds that a run takes here, with those of the fork."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            assert end(fork(self.run)) == 0
            times.append(time.perf_counter() - start)
        (self.output / "mark").write_text("the earlier one")
        return min(times)

    def check(self, *, may_leave: bool) -> None:
        """Check what a run that ended early left; an earlier output stands there again then."""
        assert digest(self.source) == self.before
        found = digest(self.output)
        assert found in (self.earlier, self.new)
        open_package(self.output)
        self.seen["earlier" if found == self.earlier else "new"] += 1
        left = {path.name for path in self.folder.iterdir()} - {"source.mlpackage", "out.mlpackage"}
        assert may_leave or not left
        self.seen["leftovers"] += bool(left)
        if found == self.new:
            (self.output / "mark").write_text("the earlier one")

    def check_the_next_run(self) -> None:
        assert end(fork(self.run)) == 0
        assert digest(self.output) == self.new
        assert {path.name for path in self.folder.iterdir()} == {
            "source.mlpackage",
            "out.mlpackage",
        }
        (self.output / "mark").write_text("the earlier one")


@pytest.fixture(scope="module")
def scene(package_of: PackageOf, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(package_of("recurrent", "iOS16"), tmp_path_factory.mktemp("kill"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.long
def test_at_any_moment(scene: Scene, number: signal.Signals, capfd: Any) -> None:
    """Also twice in a row: what one run left is removed by one that does not end well either."""

    def run() -> None:
        # As on the command line, where a request to terminate is an exception too.
        signal.signal(signal.SIGTERM, lambda *_: exec("raise SystemExit(143)"))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(writing, b"x")
        scene.run()

    scene.seen.clear()
    rng = random.Random(number)
    duration = scene.duration()
    landed = 0
    for index in range(5 * KILLS):
        reading, writing = os.pipe()
        start = time.perf_counter()
        pid = fork(run)
        os.read(reading, 1)
        time.sleep(duration * rng.random())
        os.kill(pid, number)
        status = end(pid)
        os.close(reading)
        os.close(writing)
        scene.seen[f"status {status}"] += 1
        scene.check(may_leave=number == signal.SIGKILL)
        if status == 0:
            # It had ended already: the machine has less to do than before.
            duration = min(duration, time.perf_counter() - start)
        landed += status != 0
        if index % 3 == 2 or landed == KILLS:
            scene.check_the_next_run()
        if landed == KILLS:
            break
    if LONG:
        with capfd.disabled():
            print(f"\n{number.name}: {landed} runs ended early: {dict(scene.seen)}")
    # Some runs were under way, or this shows nothing.
    assert landed


WAYS = ["exchange", "two renames", "new"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.long
def test_at_every_system_call(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, way: str
) -> None:
    """Before and after each call that changes a folder, or waits for the disk."""
    shutil.copytree(scene.source, tmp_path / "source.mlpackage")
    output = tmp_path / "out.mlpackage"
    often = ("unlink", "open") if LONG else ()
    calls = {(os, name) for name in ("mkdir", "rename", "fsync", "rmdir", *often)}
    if way == "two renames":
        monkeypatch.setattr(staging, "exchange", lambda first, second: False)
    calls.add((staging, "exchange"))

    def run(stop: int) -> None:
        """Palettize, and end the process at a boundary of that number."""
        count = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == stop:
                    os._exit(9)
                result = function(*arguments, **options)
                count += 1
                if count == stop:
                    os._exit(9)
                return result

            return call

        for module, name in calls:
            setattr(module, name, counted(getattr(module, name)))
        palettize(tmp_path / "source.mlpackage", CONFIG, output=output, workers=1)

    boundary, status = 0, 9
    seen: Counter[str] = Counter()
    while status == 9:
        boundary += 1
        shutil.rmtree(output, ignore_errors=True)
        if way != "new":
            shutil.copytree(scene.output, output)
            (output / "mark").write_text("the earlier one")
        status = end(fork(functools.partial(run, boundary)))
        staging.restore(output)  # as the next run does first of all
        if way == "new" and not output.exists():
            seen["absent"] += 1
        else:
            found = digest(output)
            assert found in ((scene.new,) if way == "new" else (scene.earlier, scene.new)), boundary
            seen["earlier" if found == scene.earlier else "new"] += 1
        assert digest(tmp_path / "source.mlpackage") == scene.before
    assert status == 0
    assert seen["new"] > 1
    assert seen["absent" if way == "new" else "earlier"] > 10
    if LONG:
        with capfd.disabled():
            print(f"\n{way}: {boundary} boundaries: {dict(seen)}")
    palettize(tmp_path / "source.mlpackage", CONFIG, output=output, workers=1)
    assert digest(output) == scene.new
    assert sorted(os.listdir(tmp_path)) == ["out.mlpackage", "source.mlpackage"]


def test_several_processes_at_once(scene: Scene) -> None:
    """Some are killed; those that are not are complete, and none says anything."""
    for _ in range(3):
        pids = [fork(scene.run) for _ in range(4)]
        time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        assert [end(pid) for pid in pids][1:] == [0, 0, 0]
        assert digest(scene.output) == scene.new
    scene.check_the_next_run()
