"""Counts, byte sizes and shares as a reader sees them."""

import pytest

from mlopt.text.words import counted, human_bytes, percent, size_change, sizes_compared


def test_counted():
    assert [counted(n, "weight") for n in (0, 1, 2)] == ["0 weights", "1 weight", "2 weights"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (23_440_896, "23.4 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (364, 100, "3.64 times smaller"),
        (100, 364, "3.64 times larger"),
        (1000, 1004, "as large as before"),
        (0, 0, "as large as before"),
    ],
)
def test_size_change(before, after, text):
    assert size_change(before, after) == text


def test_sizes_compared():
    assert sizes_compared(2000, 500) == "2.0 kB -> 500 B, 4.00 times smaller"


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0 %"), (0.004, "0.4 %"), (0.25, "25 %"), (0.996, "99.6 %")]
)
def test_percent(share, text):
    assert percent(share) == text
