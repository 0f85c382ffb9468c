"""What palettizing a torch module costs: squared errors, plain and weighted by sensitivity.

The functions on tasks are called in child processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.lib.clustering_error import snr_db, squared_error
from benchmarks.lib.reader import read_package
from benchmarks.tasks.job_tasks import task
from benchmarks.tasks.task import Loss, matrices

LEAST_SENSITIVITY = 1e-12
"""Of a sensitivity relative to the largest of its weight, as in coremltools."""


def errors_of_modules(
    source: str, outputs: Mapping[str, str], settings: Mapping[str, Any], sensitive: bool
) -> dict[str, list[dict[str, Any]]]:
    """For each output (label -> archive or package): a row for each weight it palettized.

    A row has ``name``, ``size`` (elements), ``squared_error``, ``snr_db`` and, where ``sensitive``,
    ``weighted_error``. RuntimeError where a table would need more than ``2**n_bits`` entries.
    """
    given = task(source)
    importance = sensitivities(given.module, given.samples, given.loss) if sensitive else {}
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in outputs}
    for label, path in outputs.items():
        for name, original, stored in stored_weights(given.module, Path(path)):
            if np.array_equal(original, stored):
                continue  # kept as it was
            _require_few_values(f"{label}: {name}", stored, settings)
            rows[label].append(_row(name, original, stored, importance.get(name)))
    return rows


def stored_weights(module: nn.Module, output: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, original, and what is stored, of each matrix: in an archive by name, of float32.

    In a package by order, as ``convert`` gives other names; ValueError where the shapes differ.
    """
    named = [(name, weight.numpy()) for name, weight in matrices(module)]
    if output.suffix == ".npz":
        with np.load(output) as archive:
            yield from ((name, original, archive[name]) for name, original in named)
        return
    package = list(read_package(output).values())
    expected, found = [each.shape for _, each in named], [each.shape for each in package]
    if expected != found:
        raise ValueError(f"{output.name}: matrices of {found}, and not of {expected}")
    for (name, original), weight in zip(named, package, strict=True):
        if weight.palettized:
            yield name, original, weight.read()


def _row(
    name: str, original: np.ndarray, stored: np.ndarray, importance: np.ndarray | None
) -> dict[str, Any]:
    error = squared_error(original, stored)
    signal = squared_error(original, np.broadcast_to(original.dtype.type(0), original.size))
    row = {
        "name": name,
        "size": original.size,
        "squared_error": error,
        "snr_db": snr_db(signal, error),
    }
    if importance is not None:
        row["weighted_error"] = weighted_error(original, stored, importance)
    return row


def weighted_error(original: np.ndarray, stored: np.ndarray, importance: np.ndarray) -> float:
    """Sum of importance * (original - stored)**2 over all elements, in float64."""
    difference = original.astype(np.float64) - stored
    return float(np.sum(importance.astype(np.float64) * difference * difference))


def _require_few_values(what: str, stored: np.ndarray, settings: Mapping[str, Any]) -> None:
    values = stored.astype(np.float32)  # numpy 2.3 does not sort float16 right on every machine
    size = settings.get("group_size") or len(values)
    groups = (values[start : start + size] for start in range(0, len(values), size))
    most = max(np.unique(group).size for group in groups)
    if most > 2 ** settings["n_bits"]:
        raise RuntimeError(f"{what}: {most} values under one table of {settings['n_bits']} bits")


def sensitivities(
    module: nn.Module, samples: Iterable[Any], loss: Loss | None
) -> dict[str, np.ndarray]:
    """By name of a weight: the sum over samples of its squared gradients, largest 1, none 0.

    The diagonal of the Fisher information, and what is done with zeros, as coremltools has it:
    all 1 where there is no gradient at all; else the least that is not zero, and at least
    ``LEAST_SENSITIVITY``.
    """
    assert loss is not None
    totals = {name: torch.zeros_like(weight) for name, weight in matrices(module)}
    for sample in samples:
        module.zero_grad()
        loss(module, sample).backward()
        for name, total in totals.items():
            gradient = module.get_parameter(name).grad
            if gradient is not None:
                total += gradient.square()
    module.zero_grad()
    return {name: normalized(total.numpy()) for name, total in totals.items()}


def normalized(total: np.ndarray) -> np.ndarray:
    """Sums of squared gradients as importance, see ``sensitivities``."""
    if not total.any():
        return np.ones_like(total)
    scaled = total / total.max()
    scaled[scaled == 0] = scaled[scaled != 0].min()
    return np.maximum(scaled, LEAST_SENSITIVITY)
