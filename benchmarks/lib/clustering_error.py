"""Clustering error: the squared error of what a package stores, against the weights it came from.

``squared_error`` is the benchmark's own metric, the same for both tools. mlopt states its own in
its report (``snr_db``); where a report is at hand the two are compared as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.reader import StoredWeight, read_package

CHUNK = 1 << 22
UNBOUNDED = 1e300  # a ratio to zero, as a number that JSON has


def squared_error(original: np.ndarray, stored: np.ndarray) -> float:
    """Sum of (original - stored)**2 over all elements, each difference and the sum in float64."""
    total = 0.0
    left, right = original.ravel(), stored.ravel()
    for start in range(0, left.size, CHUNK):
        part = left[start : start + CHUNK].astype(np.float64)
        part -= right[start : start + CHUNK]
        total += float(np.dot(part, part))
    return total


def snr_db(signal: float, error: float) -> float | None:
    """``10 log10(signal / error)`` of two sums of squares; None where there is no error."""
    return 10 * float(np.log10(signal / error)) if error > 0 < signal else None


def errors_of_packages(source: str, outputs: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """For each output (label -> package): a row for each weight it palettized.

    A row has ``name``, ``size`` (elements), ``squared_error`` and ``snr_db``. The original is
    read once for all outputs.
    """
    originals = read_package(Path(source))
    packages = {label: read_package(Path(path)) for label, path in outputs.items()}
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in outputs}
    for key, original in originals.items():
        stored = {label: each[key] for label, each in packages.items() if _palettized(each, key)}
        if not stored:
            continue
        dense = original.read()
        signal = squared_error(dense, np.broadcast_to(dense.dtype.type(0), dense.size))
        for label, weight in stored.items():
            error = squared_error(dense, weight.read())
            rows[label].append(
                {
                    "name": key,
                    "size": dense.size,
                    "squared_error": error,
                    "snr_db": snr_db(signal, error),
                }
            )
    return rows


def _palettized(package: Mapping[str, StoredWeight], key: str) -> bool:
    return key in package and package[key].palettized


def compare(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], metric: str = "squared_error"
) -> dict[str, Any]:
    """How ``ours`` stands to ``theirs``, over the weights that both palettized.

    ``metric`` is the key of the error in the rows. ``violations`` counts weights where our error is
    larger, by however little; ratios are ours over theirs: 1 where both are 0, ``UNBOUNDED`` where
    only theirs is.
    """
    reference = {row["name"]: row[metric] for row in theirs}
    pairs = [
        (row["name"], row[metric], reference[row["name"]])
        for row in ours
        if row["name"] in reference
    ]
    ratios = [_ratio(mine, other) for _, mine, other in pairs]
    above = [name for name, mine, other in pairs if mine > other]
    names = {row["name"] for row in ours}
    return {
        "compared": len(pairs),
        "below": sum(mine < other for _, mine, other in pairs),
        "violations": len(above),
        "violating_weights": above,
        "ratio_min": min(ratios, default=None),
        "ratio_median": statistics.median(ratios) if ratios else None,
        "ratio_max": max(ratios, default=None),
        "only_ours": sorted(names - set(reference)),
        "only_theirs": sorted(set(reference) - names),
    }


def _ratio(mine: float, other: float) -> float:
    if other == 0:
        return 1.0 if mine == 0 else UNBOUNDED
    return mine / other


def largest_report_gap_db(
    report: list[dict[str, Any]] | None, measured: list[dict[str, Any]]
) -> float | None:
    """The largest gap between the ``snr_db`` of mlopt's report and that measured; None: no pair."""
    if not report:
        return None
    stated = {row["name"]: row["snr_db"] for row in report}
    gaps = [
        abs(stated[row["name"]] - row["snr_db"])
        for row in measured
        if row["snr_db"] is not None and isinstance(stated.get(row["name"]), float)
    ]
    return max(gaps, default=None)
