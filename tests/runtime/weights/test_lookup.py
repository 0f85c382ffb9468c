"""Entries of tables at packed indices, against unpacking and numpy's indexing."""

import numpy as np
import pytest
import torch

from mlopt.runtime.weights import lookup
from mlopt.runtime.weights.lookup import entries_at, fill, looked_up
from mlopt.runtime.weights.packed import Packed

RANDOM = np.random.default_rng(0)


def packed(indices, bits):
    """Indices as a stream, by numpy's bits."""
    spread = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    stream = np.packbits(spread.astype(np.uint8).reshape(-1), bitorder="little")
    return Packed(torch.from_numpy(stream), bits, indices.shape)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.float64])
@pytest.mark.parametrize(
    ("runs", "each"),
    [(1, 1), (1, 7), (1, 20011), (1, 24000), (4, 24000), (3, 24001), (5, 16), (7, 3), (2, 30000)],
)
@pytest.mark.covering(2)
def test_entries_are_those_of_the_indices(bits, dtype, runs, each, monkeypatch):
    indices = RANDOM.integers(0, 1 << bits, (runs, each))
    tables = torch.from_numpy(RANDOM.integers(-100, 100, (runs, 1 << bits))).to(dtype)
    wanted = np.take_along_axis(tables.numpy(), indices, axis=1).reshape(-1)
    np.testing.assert_array_equal(looked_up(packed(indices, bits), tables).numpy(), wanted)
    # where that is the faster way, and everywhere
    monkeypatch.setattr(lookup, "_one_by_one", None)
    if each == 24000:
        np.testing.assert_array_equal(looked_up(packed(indices, bits), tables).numpy(), wanted)


def test_every_bit_of_an_entry_is_kept():
    """Also of NaN, which the type that rows are moved as might change."""
    bits = RANDOM.integers(0, 1 << 32, 16, dtype=np.uint64).astype(np.uint32)
    bits[:4] = [0x7FA00001, 0xFFFFFFFF, 0x80000000, 1]
    table = torch.from_numpy(bits.view(np.float32))[None]
    indices = RANDOM.integers(0, 16, 10000)
    found = looked_up(packed(indices, 4), table).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), bits[indices])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(("runs", "each"), [(1, 24), (5, 48), (1, 20011)])
def test_memory_is_filled_with_the_entries(bits, runs, each):
    indices = RANDOM.integers(0, 1 << bits, (runs, each))
    codes = RANDOM.integers(0, 1 << 16, (runs, 1 << bits), dtype=np.uint16)
    codes = np.where(
        codes & 0x7C00 == 0x7C00, codes & 0x83FF, codes
    )  # NaN would compare as unequal
    tables = codes.astype(np.uint16).view(np.float16)
    memory = torch.full((runs * each + 2,), torch.inf)
    is_filled = fill(memory[1:-1], packed(indices, bits), torch.from_numpy(tables))
    # runs that end within a byte, or within three, are left to the other way
    assert is_filled == (each != 20011 or bits == 8)
    if is_filled:
        wanted = np.take_along_axis(tables.astype(np.float32), indices, axis=1).reshape(-1)
        found = memory[1:-1].numpy()
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
        assert torch.isinf(memory[[0, -1]]).all()


def test_gradients_of_a_table():
    table = torch.arange(16.0)[None].requires_grad_()
    indices = RANDOM.integers(0, 16, 10000)
    looked_up(packed(indices, 4), table).sum().backward()
    np.testing.assert_array_equal(table.grad[0], np.bincount(indices, minlength=16))


@pytest.mark.parametrize(("shape", "count"), [((16,), 5000), ((7, 3), 1000), ((4, 1), 0)])
def test_gradients_of_entries_are_those_of_torch(shape, count, monkeypatch):
    monkeypatch.setattr(lookup, "_COUNTED_AT_ONCE", 300)
    places = torch.from_numpy(RANDOM.integers(0, shape[0], count).astype(np.int32))
    arrived = torch.from_numpy(RANDOM.normal(size=(count, *shape[1:])))
    wanted, found = (torch.ones(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    wanted.index_select(0, places).backward(arrived)
    entries_at(found, places).backward(arrived)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-12)


def test_millions_of_gradients_are_not_rounded_in_between():
    table = torch.zeros(1).requires_grad_()
    entries_at(table, torch.zeros(5_000_000, dtype=torch.int32)).backward(
        torch.full((5_000_000,), 0.1)
    )
    assert float(table.grad) == pytest.approx(500_000 * float(np.float32(0.1)) * 10, rel=1e-7)
