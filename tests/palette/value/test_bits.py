"""Bit packing against numpy, coremltools and itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.palette.value.bits import pack_bits, packed_nbytes, unpack_bits


def bit_by_bit(indices, nbits):
    """The stream written out as bits."""
    bits = np.unpackbits(indices.reshape(-1, 1), axis=1, bitorder="little")[:, :nbits]
    return np.packbits(bits.reshape(-1), bitorder="little")


def test_three_bits_straddle_bytes():
    # 1 + 2 * 8 + (7 & 3) * 64 = 209, then the last bit of 7.
    packed = pack_bits(np.array([1, 2, 7], np.uint8), 3)
    assert packed.tolist() == [209, 1]
    assert packed.dtype == np.uint8


def test_four_bits_start_low():
    assert pack_bits(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("nbits", NBITS)
def test_coremltools_packs_the_same(nbits):
    utils = pytest.importorskip("coremltools.optimize._utils")
    indices = np.random.default_rng(0).integers(0, 1 << nbits, 1003).astype(np.uint8)
    packed = utils.pack_elements_into_bits(indices, nbits)
    np.testing.assert_array_equal(pack_bits(indices, nbits), packed)
    restored = utils.restore_elements_from_packed_bits(packed, nbits, indices.size)
    np.testing.assert_array_equal(unpack_bits(packed, nbits, indices.size), restored)


@given(st.sampled_from(NBITS), st.integers(0, 70), st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_round_trip(nbits, count, seed, start):
    whole = np.random.default_rng(seed).integers(0, 1 << nbits, count + start).astype(np.uint8)
    indices = whole[start:]  # not aligned to words
    packed = pack_bits(indices, nbits)
    np.testing.assert_array_equal(packed, bit_by_bit(indices, nbits))
    assert packed.size == packed_nbytes(count, nbits=nbits)
    np.testing.assert_array_equal(unpack_bits(packed, nbits, count), indices)
    longer = np.concatenate([packed, np.full(3, 255, np.uint8)])
    np.testing.assert_array_equal(unpack_bits(longer, nbits, count), indices)


def test_any_shape_and_layout_in_c_order():
    indices = np.arange(48, dtype=np.uint8).reshape(4, 12)
    np.testing.assert_array_equal(pack_bits(indices, 6), pack_bits(indices.reshape(-1), 6))
    np.testing.assert_array_equal(pack_bits(indices.T, 6), pack_bits(indices.T.reshape(-1), 6))


def test_refusals_say_what_and_what_else():
    indices = np.zeros(4, np.uint8)
    with pytest.raises(ConfigError, match=r"one of \(1, 2, 3, 4, 6, 8\).*got 5"):
        pack_bits(indices, 5)
    with pytest.raises(ConfigError, match="below 4, got 4"):
        pack_bits(indices + np.uint8(4), 2)
    with pytest.raises(ConfigError, match="uint8, got int64"):
        pack_bits(np.zeros(4, np.int64), 4)
    with pytest.raises(ConfigError, match="take 2 bytes, got 1"):
        unpack_bits(indices[:1], 4, 3)
