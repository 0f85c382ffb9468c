"""Buckets against ``numpy.searchsorted``."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopt.palette.scalar.buckets import (
    bucket_of,
    buckets_per_unit,
    fill_starts,
    first_not_below,
)

BUCKETS = 8
numbers = st.floats(-1e300, 1e300)


def test_buckets_by_hand():
    per_unit = buckets_per_unit(1.0, 5.0, BUCKETS)
    assert per_unit == 2.0
    places = [bucket_of(x, 1.0, per_unit, BUCKETS) for x in (-9.0, 1.0, 1.4, 1.5, 4.9, 5.0, 99.0)]
    assert places == [0, 0, 0, 1, 7, 7, 7]


@pytest.mark.parametrize(
    ("low", "high"), [(3.0, 3.0), (0.0, 5e-324), (1e300, np.nextafter(1e300, 2e300))]
)
def test_one_bucket_for_all_where_a_unit_has_none(low, high):
    per_unit = buckets_per_unit(low, high, BUCKETS)
    assert np.isfinite(per_unit)
    assert np.isfinite(low * per_unit)
    if high - low < 1e-300:
        assert per_unit == 0.0
        assert bucket_of(high, low, per_unit, BUCKETS) == 0


@given(st.lists(numbers, min_size=2, max_size=30, unique=True), st.lists(numbers, max_size=30))
def test_a_bucket_and_a_step_find_what_a_search_finds(ends, values):
    ends = np.sort(np.array(ends))
    low, high = float(ends[0]), float(ends[-1])
    per_unit = float(buckets_per_unit(low, high, BUCKETS))
    starts = np.empty(BUCKETS + 1, np.int64)
    fill_starts(ends, ends.size, low, per_unit, starts)
    of_ends = np.array([bucket_of(x, low, per_unit, BUCKETS) for x in ends.tolist()])
    assert (np.diff(of_ends) >= 0).all()
    np.testing.assert_array_equal(starts[:-1], np.searchsorted(of_ends, np.arange(BUCKETS)))
    assert starts[-1] == ends.size
    for x in [*values, *ends.tolist()]:
        bucket = bucket_of(x, low, per_unit, BUCKETS)
        assert starts[bucket] <= np.searchsorted(ends, x) <= starts[bucket + 1]


def test_only_the_first_ends_count():
    starts = np.empty(BUCKETS + 1, np.int64)
    fill_starts(np.array([0.0, 1.0, 8.0, 2.0]), 2, 0.0, 1.0, starts)
    assert starts.tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2]


def test_the_first_end_that_is_not_below():
    ends = np.sort(np.random.default_rng(0).integers(0, 20, 30).astype(np.float64))
    for first, last in ((0, 30), (3, 11), (7, 7)):
        for x in (-1.0, 0.0, 4.5, 9.0, 19.0, 25.0):
            wanted = first + np.searchsorted(ends[first:last], x)
            assert first_not_below(x, ends, first, last) == wanted
