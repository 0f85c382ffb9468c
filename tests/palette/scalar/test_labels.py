"""Labels of values by the nearest entry of a table, however its entries are spaced."""

import numpy as np
import pytest

from mlopt.palette.scalar.distinct import Distinct, key_of, value_of_key
from mlopt.palette.scalar.labels import fill_middles, fill_thresholds, label_codes, label_floats


def test_labels_where_all_ends_are_in_one_bucket() -> None:
    middles = np.sort(np.concatenate([[-1e30, 1e30], 1.2 ** -np.arange(253.0)]))
    values = np.random.default_rng(3).uniform(0, 1.1, 5000) ** 8
    labels = np.empty(values.size, np.uint8)
    label_floats(values, middles, labels)
    np.testing.assert_array_equal(labels, np.searchsorted(middles, values))


def test_equal_entries_leave_all_values_to_the_first():
    table = np.array([-1.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    middles = np.empty(5)
    fill_middles(table, middles)
    values = np.array([-3, -0.5, -0.4, 0, 0.9, 1, 1.1, 2, 9])
    labels = np.empty(values.size, np.uint8)
    label_floats(values, middles, labels)
    assert labels.tolist() == [0, 0, 1, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("n", [50, 1 << 16])
@pytest.mark.parametrize("entries", [2, 16, 64])
def test_codes_and_floats_have_the_same_labels(n, entries):
    rng = np.random.default_rng([n, entries])
    weight = rng.standard_normal(n).astype(np.float16)
    table = np.sort(rng.standard_normal(entries).astype(np.float16).astype(np.float64))
    values = np.unique(weight.astype(np.float64))
    codes = values.astype(np.float16).view(np.uint16)
    keys = np.array([key_of(code) for code in codes], np.uint16)
    thresholds = np.empty(entries - 1, np.uint32)
    distinct = Distinct(values, np.ones(values.size), keys)
    fill_thresholds(distinct, value_of_key("float16"), table, thresholds)
    labels = np.empty(n, np.uint8)
    label_codes(weight.view(np.uint16), thresholds, labels)
    distances = np.abs(weight.astype(np.float64)[:, None] - table)
    np.testing.assert_array_equal(labels, distances.argmin(axis=1))
