"""Tables of 8-bit codes: what they stand for, what is refused, which lattice spans a table."""

import coremltools.optimize.coreml._quantization_passes as compression
import numpy as np
import pytest
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_blockwise_shift_scale,
)

from mlopt.errors import ConfigError
from mlopt.palette import Palettized
from mlopt.palette.value.quantized import Lattice, QuantizedTable, is_wide_enough
from tests.palette import references as ref


def quantized(codes, scale, offset=None, dtype=np.float16):
    codes = np.asarray(codes)
    one = (1,) * codes.ndim
    offset = None if offset is None else np.full(one, offset, codes.dtype)
    return QuantizedTable(codes, np.full(one, scale, dtype), offset)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("offset", [None, 0, 100, 255])
@pytest.mark.parametrize("code_dtype", [np.int8, np.uint8])
def test_decoded_as_coremltools_does(dtype, offset, code_dtype):
    if offset == 255 and code_dtype == np.int8:
        offset = -128
    codes = np.arange(256).astype(code_dtype).reshape(1, 1, 256, 1)
    for scale in (1.0, 0.0123, 3.3e-4, 250.0):
        table = quantized(codes, scale, offset, dtype)
        theirs = constexpr_blockwise_shift_scale.decompress(codes, table.scale, table.offset)
        ours = table.decode()
        assert ours.dtype == theirs.dtype == dtype
        assert ours.tobytes() == theirs.tobytes()
        # the definition, rounded once
        wide = codes.astype(np.float64) - float(offset or 0)
        np.testing.assert_array_equal(ours, (wide * float(table.scale[0, 0, 0, 0])).astype(dtype))


def test_bytes():
    table = quantized(np.zeros((3, 1, 16, 2), np.uint8), 0.5, 7)
    assert table.nbytes == 96 + 2 + 1
    palette = Palettized(table.decode(), np.zeros((6, 4), np.uint8), vector_axis=1, quantized=table)
    assert palette.table_nbytes == 99
    assert palette.nbytes == 12 + 99
    assert palette.bits_per_weight == 8 * 111 / 48
    plain = Palettized(table.decode(), np.zeros((6, 4), np.uint8), vector_axis=1)
    assert plain.nbytes == 12 + 192


def test_dequantized_from_the_decoded_table():
    table = quantized(np.array([-127, 3, 0, 127], np.int8).reshape(1, 1, 4, 1), 0.01)
    scale = np.array([[1], [3]], np.float16)
    indices = np.array([[0, 1, 2], [3, 3, 1]], np.uint8)
    palette = Palettized(table.decode(), indices, scale=scale, quantized=table)
    entries = (np.array([-127, 3, 0, 127]) * np.float16(0.01)).astype(np.float16)
    np.testing.assert_array_equal(palette.dequantize(), entries[indices] * scale)


def test_tables_may_have_scales_of_their_own():
    codes = np.array([[-127, 3], [0, 90]], np.int8).reshape(2, 1, 2, 1)
    scale = np.array([0.5, 0], np.float32).reshape(2, 1, 1, 1)
    offset = np.array([1, -128], np.int8).reshape(2, 1, 1, 1)
    table = QuantizedTable(codes, scale, offset)
    np.testing.assert_array_equal(table.decode().ravel(), [-64, 1, 0, 0])
    assert table.nbytes == 4 + 8 + 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((np.zeros((1, 1, 4, 1), np.int16), np.ones((1, 1, 1, 1), np.float16)), "got int16"),
        ((np.zeros((1, 1, 4, 1), np.int8), np.ones((1, 1, 1), np.float16)), "shape"),
        ((np.zeros((1, 1, 4, 1), np.int8), np.ones((2, 1, 1, 1), np.float16)), "shape"),
        ((np.zeros((1, 1, 4, 1), np.int8), np.ones((1, 1, 1, 1), np.int8)), "floats"),
        ((np.zeros((1, 1, 4, 1), np.int8), np.full((1,) * 4, np.inf, np.float32)), "finite"),
        ((np.zeros((1, 1, 4, 1), np.int8), np.full((1,) * 4, np.nan, np.float32)), "finite"),
        (
            (
                np.zeros((1, 1, 4, 1), np.int8),
                np.ones((1,) * 4, np.float16),
                np.ones((1,) * 4, np.uint8),
            ),
            "offset.*int8.*got uint8",
        ),
        (
            (
                np.zeros((1, 1, 4, 1), np.int8),
                np.ones((1,) * 4, np.float16),
                np.ones((1, 1, 4, 1), np.int8),
            ),
            "offset",
        ),
    ],
)
def test_codes_that_are_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        QuantizedTable(*parts)


def test_a_table_that_its_codes_do_not_stand_for_is_refused():
    table = quantized(np.arange(4, dtype=np.int8).reshape(1, 1, 4, 1), 0.5)
    indices = np.zeros((2, 2), np.uint8)
    decoded = table.decode()
    Palettized(decoded, indices, quantized=table)
    for other in (decoded + decoded.dtype.type(1), decoded[..., :2, :], -decoded * 0):
        with pytest.raises(ConfigError, match="quantized table must"):
            Palettized(np.ascontiguousarray(other), indices, quantized=table)
    with pytest.raises(ConfigError, match="float32"):
        Palettized(decoded.astype(np.float32), indices, quantized=table)


def test_integer_tables_have_no_scale():
    table, indices = np.array([-128, 127], np.int8).reshape(1, 1, 2, 1), np.eye(2, dtype=np.uint8)
    palette = Palettized(table, indices)
    assert palette.dequantize().tolist() == [[127, -128], [-128, 127]]
    assert (palette.dtype, palette.nbytes) == (np.int8, 1 + 2)
    with pytest.raises(ConfigError, match="integers has no scale"):
        Palettized(table, indices, scale=np.ones((2, 1), np.int8))


@pytest.mark.parametrize("name", ref.FORMATS)
@pytest.mark.parametrize(
    ("low", "high"), [(-0.3, 0.2), (0.01, 0.2), (-3.0, -1.0), (0.0, 0.0), (-60_000.0, 65_504.0)]
)
@pytest.mark.parametrize("lut_dtype", ["int8", "uint8"])
def test_a_lattice_spans_what_it_is_made_for(name, low, high, lut_dtype):
    dtype = np.dtype(ref.FORMATS[name])
    lattice = Lattice.spanning(low, high, lut_dtype, dtype)
    assert (np.diff(lattice.points) > 0).all()
    assert np.isfinite(lattice.points).all()
    assert 0.0 in lattice.points
    assert lattice.codes.dtype == lut_dtype
    table = lattice.quantized(np.arange(lattice.points.size).reshape(1, 1, -1, 1))
    np.testing.assert_array_equal(table.decode().astype(np.float64).ravel(), lattice.points)
    assert (table.offset is None) == (lut_dtype == "int8")
    assert lattice.codes.astype(int).min() >= -127
    # half a step, and what the scale's own rounding and bfloat16's of the points add
    step = float(lattice.scale)
    slack = 1.1 if name == "bfloat16" else 0.65
    for end in (low, high, (low + high) / 2):
        assert np.abs(lattice.points - end).min() <= slack * step
    if name != "bfloat16":
        wanted = max(abs(low), abs(high)) / 127
        if lut_dtype == "uint8":
            wanted = (max(high, 0) - min(low, 0)) / 255
        assert step == pytest.approx(wanted or 1.0, rel=1e-3)


@pytest.mark.parametrize(("lut_dtype", "mode"), [("int8", "SYMMETRIC"), ("uint8", "LINEAR")])
def test_the_lattice_is_that_of_coremltools(lut_dtype, mode):
    table = np.random.default_rng(0).standard_normal((4, 1, 16, 1)).astype(np.float32)
    theirs = compression.linear_quantize_weights.blockwise_compress_by_dtype(
        table, lut_dtype, "LINEAR" if mode == "LINEAR" else "LINEAR_SYMMETRIC", [0] * 4
    )
    lattice = Lattice.spanning(table.min(), table.max(), lut_dtype, table.dtype)
    np.testing.assert_allclose(lattice.scale, theirs.scale.ravel()[0], rtol=1e-6)
    if theirs.offset is None:
        assert lattice.offset is None
    else:
        assert int(lattice.offset) == int(theirs.offset.ravel()[0])
    codes = lattice.codes[lattice.nearest(table.astype(np.float64))]
    np.testing.assert_array_equal(codes, theirs.data)


def test_subnormal_scales_are_foreseen():
    half = np.dtype(np.float16)
    assert is_wide_enough(-0.01, 0.0, "int8", half)
    assert not is_wide_enough(-0.0077, 0.0, "int8", half)
    assert is_wide_enough(0.0, 0.0, "int8", half)
    assert not is_wide_enough(1e-7, 0.0155, "uint8", half)
    assert is_wide_enough(1e-7, 0.0157, "uint8", half)
    assert is_wide_enough(1e-7, 0.0155, "uint8", np.dtype(np.float32))
    assert Lattice.spanning(0.0, 0.001, "int8", half).scale == np.float16(2**-14)
