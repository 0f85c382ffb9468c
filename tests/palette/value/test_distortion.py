"""Distortion against plain sums."""

import math

import numpy as np
import pytest

from mlopt.palette import Distortion, PaletteSpec, Palettized, measure_distortion, palettize
from tests.palette import references as ref


def test_by_hand():
    weight = np.array([1.0, -2.0, 0.5], np.float16)
    stored = Palettized(np.array([[[1.0], [-1.5]]], np.float16), np.array([0, 1, 0], np.uint8))
    assert stored.dequantize().tolist() == [1.0, -1.5, 1.0]
    distortion = measure_distortion(weight, stored)
    assert distortion == Distortion(signal=5.25, noise=0.5)
    assert distortion.snr_db == pytest.approx(10 * math.log10(10.5), rel=1e-15)


def test_decibels():
    assert Distortion(100.0, 1.0).snr_db == 20.0
    assert Distortion(1.0, 100.0).snr_db == -20.0
    assert Distortion(3.0, 0.0).snr_db == math.inf
    assert Distortion(0.0, 0.0).snr_db == math.inf
    assert Distortion(0.0, 1.0).snr_db == -math.inf


@pytest.mark.parametrize("order", ["C", "F", "reversed"])
@pytest.mark.parametrize("name", ref.FORMATS)
def test_against_plain_sums(name, order):
    weight = np.random.default_rng(0).standard_normal((24, 30)).astype(ref.FORMATS[name])
    weight = weight[::-1] if order == "reversed" else np.asarray(weight, order=order)
    for spec in (
        PaletteSpec(nbits=2),
        PaletteSpec(nbits=2, scale_axis=0),
        PaletteSpec(nbits=1, channel_axis=1, group_size=5),
    ):
        stored, _ = palettize(weight, spec)
        wide = weight.astype(np.float64)
        misses = wide - stored.dequantize().astype(np.float64)
        distortion = measure_distortion(weight, stored)
        assert distortion.noise == pytest.approx((misses**2).sum(), rel=1e-12)
        assert distortion.signal == pytest.approx((wide**2).sum(), rel=1e-12)


def test_all_numbers_of_a_16_bit_format():
    # far below and far above what a float16 or float32 sum of squares could hold
    for name in ("float16", "bfloat16"):
        codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
        exponent = 0x7C00 if name == "float16" else 0x7F80
        weight = codes[(codes & exponent) != exponent].view(ref.FORMATS[name])
        zeros = Palettized(np.zeros((1, 2, 1), weight.dtype), np.zeros(weight.size, np.uint8))
        distortion = measure_distortion(weight, zeros)
        expected = float((weight.astype(np.float64) ** 2).sum())
        assert distortion.noise == distortion.signal
        assert distortion.signal == pytest.approx(expected, rel=1e-11)
