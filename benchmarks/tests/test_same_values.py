"""The comparison of values, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.lib.reader import original_name
from benchmarks.lib.same_values import compare, statistics


def arrays(**named: Any) -> dict[str, Any]:
    return {name: lambda a=array: np.asarray(a, np.float16) for name, array in named.items()}


def test_equal_means_shape_dtype_and_every_bit() -> None:
    wanted = arrays(a=[[1, np.nan]], b=[[0.0, 1.0]], c=[[1, 2]])
    found = arrays(a=[[1, np.nan]], b=[[-0.0, 1.0]], c=[[1], [2]])
    assert compare(wanted, found) == {"compared": 3, "equal": 1, "differing": ["b", "c"]}
    single = {"a": lambda: np.array([[1, np.nan]], np.float32)}
    assert compare(arrays(a=[[1, np.nan]]), single)["differing"] == ["a"]


def test_a_weight_on_one_side_differs() -> None:
    assert compare(arrays(a=[1], b=[1]), arrays(a=[1], c=[1])) == {
        "compared": 3,
        "equal": 1,
        "differing": ["b", "c"],
    }


def test_arrays_that_are_not_contiguous_compare_by_value() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert compare({"a": lambda: array}, {"a": lambda: np.asfortranarray(array)})["equal"] == 1


@pytest.mark.parametrize("name", ["w_palettized", "w_palettized_pcs", "w"])
def test_original_names(name: str) -> None:
    assert original_name(name) == "w"


def test_statistics_by_hand() -> None:
    array = np.array([[0.0, -0.0, 1.0], [1.0, -2.0, 3.0]], np.float16)
    assert statistics(array) == (2 / 6, 4)
