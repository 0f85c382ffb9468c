"""Table lookup at packed indices: all indices of a byte, or of 12 bits, at once.

A table of k-bit indices becomes one of 8-bit units (12-bit ones for 3 and 6 bits), each of whose
rows holds the entries of all indices in the unit. One gather then moves several weights, and the
indices are never unpacked.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlopt.runtime.weights.packed import Packed, unpacked, words_of_24_bits

_WIDE = {4: torch.int32, 8: torch.float64, 16: torch.complex128}
"""Bytes of a row -> a type of that size, so that rows are gathered as single elements."""

_COUNTED_AT_ONCE = 1 << 22
"""Elements of a gradient that are held in float64 at the same time."""


def looked_up(indices: Packed, tables: Tensor) -> Tensor:
    """Return the entries of one table, or of several that each serve an equal run of indices.

    Parameters
    ----------
    indices
        Their width ``bits`` matches the tables, which have 2 ** bits entries.
    tables
        [runs, 2 ** bits], of any dtype.

    Returns
    -------
    [elements], in the order of the indices.
    """
    bits, runs = indices.bits, len(tables)
    unit = _unit(bits)
    each = indices.size // runs
    starts_in_a_unit = runs > 1 and each * bits % (8 if unit == 8 else 24)
    is_small = each * bits < unit << unit  # then making the large table takes longer
    if starts_in_a_unit or is_small or tables.requires_grad:
        return _one_by_one(indices, tables)
    per_unit = unit // bits
    wide = _rows_as_elements(tables[:, _digits(bits, tables.device)].reshape(-1, per_unit))
    entries = wide.index_select(0, _places(indices, runs, unit))
    return entries.view(tables.dtype).reshape(-1)[: indices.size]


def fill(memory: Tensor, indices: Packed, tables: Tensor) -> bool:
    """Fill memory with what :func:`looked_up` returns; False where that has to be asked.

    Nothing is allocated: a fresh tensor of the indices, or of the weight, costs more in page faults
    than the lookup does.

    Parameters
    ----------
    memory
        float32, contiguous, on the CPU, for as many elements as there are indices.
    indices, tables
        As for :func:`looked_up`, and also of indices of 8 bits, a byte each. Tables of floats.
    """
    bits, runs = indices.bits, len(tables)
    each = indices.size // runs * bits  # bits of a run
    if each % (8 if bits in (4, 8) else 24):
        return False
    from mlopt.runtime.weights import lookup_kernels as kernels  # loading numba takes a while

    data = indices.data.numpy().reshape(runs, -1)
    entries = tables.detach().float().numpy().view(np.int32)
    codes = memory.numpy().reshape(runs, -1).view(np.int64 if bits == 4 else np.int32)
    if bits == 8:
        kernels.fill_from_bytes(data, entries, codes)
    elif bits == 4:
        kernels.fill_from_pairs(data, entries, codes)
    else:
        kernels.fill_from_words(data, entries, codes, bits)
    return True


def _unit(bits: int) -> int:
    return 8 if 8 % bits == 0 else 12


@lru_cache(maxsize=16)
def _digits(bits: int, device: torch.device) -> Tensor:
    """int64[2 ** unit, indices of a unit]: the indices that each value of a unit stands for."""
    values = torch.arange(1 << _unit(bits), device=device)
    shifts = torch.arange(0, _unit(bits), bits, device=device)
    return (values[:, None] >> shifts) & ((1 << bits) - 1)


def _places(indices: Packed, runs: int, unit: int) -> Tensor:
    """Return int32[units]: the row of each unit when the large tables are stacked."""
    if unit == 8:
        units = indices.data.int()
    else:
        words = words_of_24_bits(indices.data)
        units = torch.stack([words & 4095, words >> 12], 1).reshape(-1)
    if runs == 1:
        return units
    first = torch.arange(runs, dtype=torch.int32, device=units.device) << unit
    return (units.reshape(runs, -1) + first[:, None]).reshape(-1)


def _rows_as_elements(rows: Tensor) -> Tensor:
    wide = _WIDE.get(rows.shape[1] * rows.element_size())
    return rows if wide is None else rows.contiguous().view(wide).reshape(-1)


def _one_by_one(indices: Packed, tables: Tensor) -> Tensor:
    flat = unpacked(indices.data, indices.bits, (indices.size,), is_signed=False).int()
    if len(tables) > 1:
        entries = tables.shape[1]
        first = torch.arange(len(tables), dtype=torch.int32, device=flat.device) * entries
        flat = (flat.reshape(len(tables), -1) + first[:, None]).reshape(-1)
    return entries_at(tables.reshape(-1), flat)


def entries_at(rows: Tensor, places: Tensor) -> Tensor:
    """Return rows at places: ``rows.index_select(0, places)``, with a gradient that is fast.

    That of torch adds one element after the other, and rounds each sum of millions to float32; this
    one counts with weights, in float64.

    rows: [entries] or [entries, length]; places: int32 or int64 [count].
    """
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return rows.index_select(0, places)
    taken: Tensor = _EntriesAt.apply(rows, places)  # type: ignore[no-untyped-call]
    return taken


class _EntriesAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = rows.shape
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (places,) = gradients, ctx.saved_tensors
        entries, length = ctx.shape[0], math.prod(ctx.shape[1:])
        columns = gradient.reshape(len(places), length)
        sums = torch.zeros(entries, length, dtype=torch.float64, device=gradient.device)
        for first in range(0, len(places), _COUNTED_AT_ONCE):
            part = slice(first, first + _COUNTED_AT_ONCE)
            for column in range(length):
                weights = columns[part, column].double()
                sums[:, column] += torch.bincount(places[part], weights, minlength=entries)
        return sums.reshape(ctx.shape).to(gradient.dtype), None
