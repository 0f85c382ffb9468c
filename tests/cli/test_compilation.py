"""What the terminal says of kernels that are compiled."""

import importlib
import io
import sys
import threading

import pytest
from numba import njit

from mlopt.cli import compilation
from mlopt.cli.compilation import MESSAGE, compilation_told
from mlopt.cli.terminal import progress_bar

KERNEL = "from numba import njit\n@njit(cache=True)\ndef kernel(x):\n    return x + 1\n"


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(compilation, "_told", threading.Event())


def compile_a_kernel():
    assert njit(lambda x: x + 1)(1) == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_process_is_told_once():
    lines = []
    for _ in range(2):
        with compilation_told(lines.append):
            compile_a_kernel()
            compile_a_kernel()
    assert lines == [MESSAGE]


def test_only_while_the_block_runs_even_if_it_fails():
    lines = []
    with pytest.raises(KeyError), compilation_told(lines.append):
        raise KeyError
    compile_a_kernel()
    assert lines == []


def test_kernels_from_the_cache_are_not_told(tmp_path, monkeypatch):
    (tmp_path / "kernel_of_test.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    for _ in range(2):
        monkeypatch.delitem(sys.modules, "kernel_of_test", raising=False)
        monkeypatch.setattr(compilation, "_told", threading.Event())
        lines = []
        with compilation_told(lines.append):
            assert importlib.import_module("kernel_of_test").kernel(1) == 2
        told.append(lines)
    assert told == [[MESSAGE], []]


@pytest.mark.parametrize(("quiet", "times"), [(False, 1), (True, 0)])
def test_it_stands_above_the_bar(monkeypatch, quiet, times):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("Palettizing", quiet=quiet) as progress:
        compile_a_kernel()
        progress(1, 2, "weight")
    assert terminal.getvalue().count(MESSAGE) == times
