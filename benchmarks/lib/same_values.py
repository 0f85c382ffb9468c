"""Whether outputs hold the values that they should: every weight, bit for bit.

The functions on packages are called in child processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.reader import original_name, read_package

Arrays = Mapping[str, Callable[[], np.ndarray]]
"""Name of the original constant to a function that reads the array."""


def outputs_against(expected: str, outputs: dict[str, str]) -> dict[str, dict[str, Any]]:
    """For each output (label -> package): how its weights compare with those of ``expected``."""
    wanted = _stored(expected)
    return {label: compare(wanted, _stored(package)) for label, package in outputs.items()}


def metadata_against_package(source: str) -> dict[str, Any]:
    """How mlopt's metadata of a package compares with what the reader reads in it.

    The values, and the statistics, which are counted here in another way. Only weights of rank 2
    and more that are floating-point numbers, which is what the reader reads.
    """
    import mlopt.coreml

    wanted = _stored(source)
    listed = mlopt.coreml.get_weights_metadata(source, weight_threshold=0)
    known = {original_name(name): weight for name, weight in listed.items()}
    found = {name: weight for name, weight in known.items() if name in wanted}
    result = compare(wanted, {name: lambda w=weight: w.val for name, weight in found.items()})
    for name, weight in found.items():
        if name not in result["differing"] and statistics(wanted[name]()) != (
            weight.sparsity,
            weight.unique_values,
        ):
            result["differing"].append(name)
            result["equal"] -= 1
    return result


def statistics(array: np.ndarray) -> tuple[float, int]:
    """The share of magnitudes of at most 1e-12, and the number of distinct values.

    In float32, since numpy 2.3 does not sort float16 right on every machine.
    """
    flat = np.sort(array.astype(np.float32), axis=None)
    zeros = np.searchsorted(flat, 1e-12, side="right") - np.searchsorted(flat, -1e-12, side="left")
    return float(zeros / flat.size), int(1 + np.count_nonzero(np.diff(flat)))


def compare(wanted: Arrays, found: Arrays) -> dict[str, Any]:
    """``compared`` and ``equal`` count weights, ``differing`` names those that are not equal.

    A weight that only one side has differs. Equal means shape, dtype and every bit.
    """
    names = dict.fromkeys([*wanted, *found])
    differing = [
        name
        for name in names
        if name not in wanted or name not in found or not _same(wanted[name](), found[name]())
    ]
    return {
        "compared": len(names),
        "equal": len(names) - len(differing),
        "differing": differing,
    }


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    bits = f"u{left.itemsize}"  # so that -0 is not 0, and NaN is itself
    one, other = (np.ascontiguousarray(array).view(bits) for array in (left, right))
    return np.array_equal(one, other)


def _stored(package: str) -> Arrays:
    return {key: weight.read for key, weight in read_package(Path(package)).items()}
