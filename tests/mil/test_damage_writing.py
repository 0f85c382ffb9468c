"""Outputs are whole or absent: full disks, refused folders, runs at once, what killed runs left."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest

from mlopt.errors import DestinationError, ModelFormatError
from mlopt.mil import files, staging
from mlopt.mil.exchange import exchange
from mlopt.mil.interrupts import interrupts_wait
from mlopt.mil.opening import open_package
from mlopt.mil.staging import Staging
from mlopt.mil.writer import PackageWriter, check_destination
from tests.conftest import PackageOf
from tests.mil.test_package import MODEL, WEIGHTS, content, copy

pytestmark = pytest.mark.skipif(os.name == "nt", reason="for POSIX systems")


NOBODY = 65534


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Let SIGINT interrupt, also in jobs that were started with it ignored (``nohup ... &``)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def source(package_of: PackageOf, tmp_path: Path) -> Path:
    """Return a copy of a small package that the test may damage."""
    return Path(shutil.copytree(package_of("recurrent"), tmp_path / "source.mlpackage"))


@pytest.fixture
def earlier(source: Path, tmp_path: Path) -> Path:
    """Return an earlier output that differs from any later one."""
    output = Path(shutil.copytree(source, tmp_path / "out.mlpackage"))
    (output / "mark").write_text("the earlier one")
    return output


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on a file system that can exchange names, and as on one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "exchange", lambda first, second: False)
    return str(request.param)


def in_child(function: Callable[[], Any]) -> str:
    """Run a function in a forked process; returns its type of error and message, or ''."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- exchange -------------------------------------------------------------------------------------


def test_exchange(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    (first / "x").write_text("1")
    with pytest.raises(FileNotFoundError):
        exchange(first, second)
    second.write_text("2")
    if not exchange(first, second):
        pytest.skip("not on this file system")
    assert first.read_text() == "2"
    assert (second / "x").read_text() == "1"


def test_replacing(source: Path, earlier: Path, way: str) -> None:
    expected = content(copy(source, earlier.with_name("other.mlpackage")))
    shutil.rmtree(earlier.with_name("other.mlpackage"))
    assert copy(source, earlier) == earlier
    assert content(earlier) == expected
    assert names(earlier.parent) == [earlier.name, source.name]


def test_an_empty_folder_may_be_replaced(source: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "out.mlpackage").mkdir()
    open_package(copy(source, tmp_path / "out.mlpackage"))
    assert names(tmp_path) == ["out.mlpackage", source.name]


@pytest.fixture
def of_nobody(source: Path) -> Iterator[Path]:
    """Return a folder with a copy of the source, all of a user without rights if we are root."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(source, folder / source.name)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(function: Callable[[], Any]) -> str:
    """Run a function in a child without the rights of root. See ``in_child``."""

    def run() -> None:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        function()

    return in_child(run)


def test_a_write_protected_earlier_output(of_nobody: Path, way: str) -> None:
    source, output = of_nobody / "source.mlpackage", of_nobody / "out.mlpackage"
    assert as_nobody(lambda: copy(source, output)) == ""
    for path in (*output.rglob("*"), output):
        path.chmod(0o555)
    (source / "new").write_text("")
    assert as_nobody(lambda: copy(source, output)) == ""
    assert (output / "new").exists()
    assert names(of_nobody) == [output.name, source.name]


# --- leftovers ------------------------------------------------------------------------------------


def test_leftovers_of_killed_runs(source: Path, earlier: Path, way: str) -> None:
    left = earlier.with_name(f".{earlier.name}.01234567.tmp")
    old = earlier.with_name(f".{earlier.name}.01234567.old")
    others = [f".{earlier.name}.012345.tmp", ".other.mlpackage.01234567.tmp", "precious.tmp"]
    for path in (left, old, *(earlier.with_name(name) for name in others)):
        shutil.copytree(source, path)
    copy(source, earlier)
    assert names(earlier.parent) == sorted([earlier.name, source.name, *others])


def test_a_link_in_the_place_of_a_leftover(source: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    shutil.copytree(source, precious)
    link = tmp_path / ".out.mlpackage.01234567.tmp"
    link.symlink_to(precious)
    copy(source, tmp_path / "out.mlpackage")
    assert content(precious) == content(source)


def test_the_folder_of_a_run_that_lives_is_left_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mlpackage"
    with PackageWriter(open_package(source), output) as first:
        first.add_blob("fp16", np.zeros(100, np.float16), (100,))
        assert in_child(lambda: copy(source, output)) == ""
        assert len(names(tmp_path)) == 3
        (output / "mark").write_text("of the run that was faster")
        first.finish()
    assert not (output / "mark").exists()
    assert names(tmp_path) == [output.name, source.name]


def test_an_earlier_output_that_was_moved_aside_is_put_back(source: Path, earlier: Path) -> None:
    before = content(earlier)
    old = earlier.with_name(f".{earlier.name}.01234567.old")
    earlier.rename(old)
    shutil.copytree(source, old.with_suffix(".tmp"))
    assert check_destination(earlier) == earlier
    assert content(earlier) == before
    copy(source, earlier)
    assert names(earlier.parent) == [earlier.name, source.name]


def test_what_a_run_that_lives_moved_aside_is_left_to_it(earlier: Path) -> None:
    run = Staging(earlier)
    run.begin()
    old = run.folder.with_suffix(".old")
    earlier.rename(old)
    assert in_child(lambda: staging.restore(earlier)) == ""
    assert old.exists()
    run.end()
    staging.restore(earlier)
    assert names(earlier.parent) == [earlier.name, "source.mlpackage"]


@pytest.mark.parametrize("step", ["exchange", "rename", "fsync"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.covering(1)
def test_killed_at_a_system_call(
    source: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str, count: int
) -> None:
    """As ``kill -9`` would: the next run finds one of both outputs, and leaves nothing behind."""
    before, unchanged = content(earlier), content(source)
    expected = content(copy(source, earlier.with_name("other.mlpackage")))
    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and when == "before":
                os._exit(9)
            result = function(*arguments)
            if calls == count:
                os._exit(9)
            return result

        return call

    def killed() -> None:
        if step == "exchange":
            staging.exchange = deadly(staging.exchange)  # type: ignore[attr-defined]
        else:
            if step == "rename":
                staging.exchange = lambda first, second: False  # type: ignore[attr-defined]
            setattr(os, step, deadly(getattr(os, step)))
        copy(source, earlier)

    in_child(killed)
    left = names(earlier.parent)
    check_destination(earlier)
    assert content(earlier) in (before, expected)
    assert content(source) == unchanged
    open_package(earlier)
    copy(source, earlier)
    assert content(earlier) == expected
    assert names(earlier.parent) == ["other.mlpackage", earlier.name, source.name], left


# --- several runs at once -------------------------------------------------------------------------


def test_two_runs_at_once(source: Path, tmp_path: Path, way: str) -> None:
    """Threads stand for processes: each has a writer and a folder of its own."""
    output = tmp_path / "out.mlpackage"
    possible, errors = [], []
    for index in range(2):
        (source / "number").write_text(str(index))
        copied = shutil.copytree(source, tmp_path / f"source{index}.mlpackage")
        possible.append(content(copy(copied, tmp_path / f"expected{index}.mlpackage")))

    def run(index: int) -> None:
        try:
            for _ in range(15):
                copy(tmp_path / f"source{index}.mlpackage", output)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[index]) for index in range(2)]
    before = names(tmp_path)
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        if way == "exchange":
            # Never half a package. (Files are read one after the other, so not all at once.)
            seen += os.path.exists(output / MODEL)
            assert not seen or os.path.exists(output)
        time.sleep(0.001)
    assert errors == []
    assert content(output) in possible
    assert names(tmp_path) == sorted([*before, output.name])


# --- where nothing can be written -----------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 10, 5_000, 50_000])
def test_a_full_disk(source: Path, earlier: Path, limit: int) -> None:
    """A limit on the size of files stands for it: the same calls fail, with another number."""
    before, sizes = content(earlier), sorted(p.stat().st_size for p in source.rglob("*"))
    assert limit < sizes[-1]

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        copy(source, earlier)

    said = in_child(write)
    assert said.startswith(f"DestinationError: {earlier}: the output cannot be written (File too")
    assert "raise the limit" in said
    assert content(earlier) == before
    assert names(earlier.parent) == [earlier.name, source.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_what_the_system_says_is_explained(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DestinationError, match=r"out\.mlpackage: .*cannot be written") as caught:
        copy(source, tmp_path / "out.mlpackage")
    assert os.strerror(number) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    monkeypatch.undo()
    assert names(tmp_path) == [source.name]


def test_folders_that_may_not_be_written_to(of_nobody: Path) -> None:
    of_nobody.chmod(0o555)
    output = of_nobody / "out.mlpackage"
    said = as_nobody(lambda: check_destination(output))
    assert said.startswith(f"DestinationError: {output}: the folder {of_nobody} cannot be written")
    # Written to, but not listed.
    of_nobody.chmod(0o333)
    assert as_nobody(lambda: copy(of_nobody / "source.mlpackage", output)) == ""
    of_nobody.chmod(0o755)
    assert names(of_nobody) == [output.name, "source.mlpackage"]


def test_names_that_no_output_can_have(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"name too long.*choose a shorter name"):
        check_destination(tmp_path / ("x" * 300))
    with pytest.raises(DestinationError, match="a file cannot have that name"):
        check_destination(tmp_path / "a\0b.mlpackage")
    (tmp_path / "loop.mlpackage").symlink_to("loop.mlpackage")
    with pytest.raises(DestinationError, match=r"leads in a circle|in the way"):
        check_destination(tmp_path / "loop.mlpackage")
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match=f"the folder {tmp_path}/file does not exist"):
        check_destination(tmp_path / "file" / "a.mlpackage")


def test_the_longest_name(source: Path, tmp_path: Path) -> None:
    """Hidden names beside it are no longer than it is."""
    name = "ü" * 122 + ".mlpackage"
    assert len(name.encode()) == 254
    for _ in range(2):
        copy(source, tmp_path / name)
        assert names(tmp_path) == [source.name, name]


def test_something_that_appears_in_the_way_is_not_replaced(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mlpackage"

    def write() -> None:
        with PackageWriter(open_package(source), output) as writer:
            output.mkdir()
            (output / "precious").write_text("")
            writer.finish()

    with pytest.raises(DestinationError, match="in the way"):
        write()
    assert names(output) == ["precious"]
    assert names(tmp_path) == [output.name, source.name]


# --- the source -----------------------------------------------------------------------------------


def test_a_source_that_may_not_be_written_to(source: Path, tmp_path: Path) -> None:
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    output = copy(source, tmp_path / "out")
    (output / "new").write_text("")
    with open(output / WEIGHTS, "r+b"):
        pass
    for path in (source, *source.rglob("*")):
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, change) for name in (MODEL, WEIGHTS) for change in ("touched", "replaced")),
        ("Manifest.json", "edited"),
        *((name, "removed") for name in (MODEL, WEIGHTS, "Manifest.json")),
    ],
)
def test_a_source_that_changes_meanwhile(
    source: Path, earlier: Path, name: str, change: str
) -> None:
    before = content(earlier)
    path = source / name

    def write() -> None:
        with PackageWriter(open_package(source), earlier) as writer:
            if change == "touched":
                os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
            elif change == "edited":
                path.write_text(path.read_text().replace("com.apple.CoreML", "other"))
            elif change == "replaced":
                (tmp := path.with_suffix(".new")).write_bytes(path.read_bytes())
                os.utime(tmp, ns=(0, path.stat().st_mtime_ns))
                tmp.replace(path)
            else:
                path.unlink()
            writer.finish()

    with pytest.raises(ModelFormatError, match=f"{path.name}: the .*") as caught:
        write()
    assert str(path) in str(caught.value)
    assert content(earlier) == before
    assert names(earlier.parent) == [earlier.name, source.name]


def test_a_manifest_that_coremltools_writes_again_meanwhile(source: Path, tmp_path: Path) -> None:
    """It does so whenever it opens a package, in this process or another."""
    before = (source / "Manifest.json").stat().st_mtime_ns
    with PackageWriter(open_package(source), tmp_path / "copy.mlpackage") as writer:
        ct.models.MLModel(str(source), skip_model_load=True)
        os.utime(source / "Manifest.json", ns=(0, before + 1))  # clocks may be coarse
        writer.finish()
    assert content(tmp_path / "copy.mlpackage").keys() == content(source).keys()


@pytest.mark.parametrize("kind", ["circle", "out", "nowhere", "pipe", "bomb"])
def test_other_files_that_cannot_be_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They are refused before anything is written, and nothing is opened that could hang."""
    monkeypatch.setattr(files, "_MOST_FILES", 1000)
    extra = source / "extra"
    extra.mkdir()
    matches = {
        "circle": "in a circle",
        "out": "a link leads out of the package",
        "nowhere": "extra/link: it cannot be read",
        "pipe": "it is a pipe where a file is expected",
        "bomb": "more than 1000 files",
    }
    if kind == "circle":
        (extra / "link").symlink_to(source)
    elif kind == "out":
        (extra / "link").symlink_to("/etc/passwd")
    elif kind == "nowhere":
        (extra / "link").symlink_to("absent")
    elif kind == "pipe":
        os.mkfifo(extra / "link")
    else:
        # Each folder holds two links to the next: 2 ** 20 folders when they are followed.
        for level in range(20):
            (extra / str(level)).mkdir()
            for link in "ab":
                (extra / str(level) / link).symlink_to(f"../{level + 1}")
        (extra / "20").mkdir()
    with pytest.raises(ModelFormatError, match=matches[kind]):
        PackageWriter(open_package(source), tmp_path / "out")
    assert names(tmp_path) == [source.name]


def test_links_within_the_package_are_followed(source: Path, tmp_path: Path) -> None:
    (source / "notes").mkdir()
    (source / "notes" / "a").write_text("a")
    (source / "notes" / "b").symlink_to("a")
    (source / "more").symlink_to("notes")
    output = copy(source, tmp_path / "out")
    found = content(output)
    assert {name: found[name] for name in found if name.startswith(("notes", "more"))} == {
        f"{folder}/{name}": b"a" for folder in ("notes", "more") for name in "ab"
    }
    assert not any(path.is_symlink() for path in output.rglob("*"))


# --- interrupts -----------------------------------------------------------------------------------


def test_interrupts_wait() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def elsewhere() -> None:
        with interrupts_wait():
            done.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [True, True]


def test_an_interrupt_while_replacing(
    source: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It takes effect when the output is whole and nothing is left beside it."""
    committed = Staging.commit

    def commit(run: Staging) -> None:
        signal.raise_signal(signal.SIGINT)
        committed(run)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Staging, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        copy(source, earlier)
    assert not (earlier / "mark").exists()
    assert names(earlier.parent) == [earlier.name, source.name]
    open_package(earlier)


def test_platforms_without_the_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlopt.mil import exchange as module

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *a, **o: object())  # type: ignore[attr-defined]
    module._system_call.cache_clear()
    assert not exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.undo()
    module._system_call.cache_clear()
    assert sys.platform != "linux" or module._system_call() is not None
