"""Values, against those that coremltools writes for the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopt.errors import ModelFormatError
from mlopt.mil.messages import Value
from mlopt.mil.values import (
    file_value,
    immediate_value,
    int32_value,
    make_value,
    read_immediate,
    string_value,
    tensor_type,
    uses_weight_file,
)

ARRAYS: dict[str, np.ndarray] = {
    "fp16": np.float16([[1, -2.5], [65504, 6e-8]]),
    "fp32": np.float32([[1, -2.5], [3e38, np.inf]]),
    "fp64": np.float64([0.1, 2]),
    "int8": np.int8([-128, 127, 0]),
    "int16": np.int16([-32768, 32767]),
    "int32": np.int32([[[-(2**31)]], [[2**31 - 1]]]),
    "int64": np.int64([-(2**63), 2**63 - 1]),
    "uint8": np.uint8([0, 255]),
    "uint16": np.uint16([0, 65535]),
    "uint32": np.uint32([0, 2**32 - 1]),
    "bool": np.array([True, False]),
    "string": np.array(["a", "ü", ""]),
    "empty": np.zeros((0, 3), np.float32),
    "empty_fp16": np.zeros((2, 0), np.float16),
    "empty_bool": np.zeros(0, bool),
}


@pytest.fixture(scope="module")
def helper(ct: Any) -> Any:
    from coremltools.converters.mil.backend.mil import helper

    return helper


@pytest.mark.parametrize("name", ARRAYS)
def test_tensors_equal_those_of_coremltools(helper: Any, name: str) -> None:
    array = ARRAYS[name]
    if name == "string":
        pytest.skip("coremltools cannot write string tensors")
    assert immediate_value(array) == helper.create_tensor_value(array)


@pytest.mark.parametrize(
    "scalar",
    [
        np.float16(0.1),
        np.float32(0.1),
        np.int8(-3),
        np.uint8(3),
        np.int32(-3),
        np.uint32(4),
        np.bool_(True),
        "text",
    ],
)
def test_scalars_equal_those_of_coremltools(helper: Any, scalar: Any) -> None:
    assert immediate_value(scalar) == helper.create_scalar_value(scalar)


def test_helpers_equal_coremltools(helper: Any) -> None:
    assert string_value("x") == helper.create_scalar_value("x")
    assert int32_value(-7) == helper.create_scalar_value(-7)
    assert immediate_value(np.bool_(True)) == helper.create_scalar_value(True)
    assert tensor_type("fp16", (2, 3)) == helper.create_valuetype_tensor((2, 3), 10)
    assert file_value("@model_path/weights/weight.bin", 64, "fp32", [4]) == (
        helper.create_file_value_tensor("@model_path/weights/weight.bin", 64, [4], 11)
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packed_equal_coremltools(ct: Any, helper: Any, bits: int) -> None:
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils

    elements = np.arange(7) % 2**bits
    dtype = types.string_to_nptype(f"uint{bits}")
    packed = _utils.pack_elements_into_bits(elements.astype(np.uint8), bits)
    value = immediate_value(packed, f"uint{bits}", (7,))
    assert value == helper.create_tensor_value(elements.astype(np.uint8).astype(dtype))
    np.testing.assert_array_equal(read_immediate(value), packed)


@pytest.mark.parametrize("version", [6, 7, 8, 9, 10])
@pytest.mark.parametrize("size", [1, 9, 10, 50])
def test_place_is_that_of_coremltools(ct: Any, version: int, size: int) -> None:
    from coremltools.converters.mil.backend.mil.load import should_use_weight_file

    for name in ("fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16"):
        array = np.zeros(size, ARRAYS[name].dtype)
        expected = bool(should_use_weight_file(array, version))
        assert uses_weight_file(name, size, version) == expected, name
    for name in ("uint32", "bool"):
        array = np.zeros(size, ARRAYS[name].dtype)
        assert uses_weight_file(name, size, version) == bool(
            should_use_weight_file(array, version)
        ), name


def test_make_value_stores_large_ones_and_keeps_small_ones() -> None:
    stored = []

    def add_blob(dtype: str, data: Any, padding: int) -> tuple[str, int]:
        stored.append((dtype, np.asarray(data).tobytes(), padding))
        return "@model_path/weights/weight.bin", 64 * len(stored)

    def make(*args: Any, version: int = 9) -> Any:
        return make_value(*args, specification_version=version, add_blob=add_blob)

    assert make(np.zeros(9, np.float16)) == immediate_value(np.zeros(9, np.float16))
    assert make(np.zeros(20, np.int32), version=8) == immediate_value(np.zeros(20, np.int32))
    assert make(np.zeros(20, np.int32)) == file_value(
        "@model_path/weights/weight.bin", 64, "int32", [20]
    )
    assert make(np.uint8([0xFF, 0xFF, 0x03, 0, 0]), "uint3", (3, 4)) == file_value(
        "@model_path/weights/weight.bin", 128, "uint3", [3, 4]
    )
    assert make(np.uint8([7]), "uint3", (2,)) == immediate_value(np.uint8([7]), "uint3", (2,))
    assert [(dtype, padding) for dtype, _, padding in stored] == [("int32", 0), ("uint3", 4)]


@given(
    st.sampled_from(["fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16"])
    .map(lambda name: ARRAYS[name].dtype)
    .flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
)
def test_round_trip_is_exact(array: np.ndarray) -> None:
    value = Value.FromString(immediate_value(array).SerializeToString())
    found = read_immediate(value)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    nan = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    assert found[~nan].tobytes() == array[~nan].tobytes()
    assert array.dtype.kind != "f" or np.isnan(found[nan]).all()
    assert not found.flags.writeable


def test_wide_unsigned_and_strings_round_trip() -> None:
    wide = np.uint64([0, 2**64 - 1])
    np.testing.assert_array_equal(read_immediate(immediate_value(wide)), wide)
    assert read_immediate(immediate_value("ü")).item() == "ü"
    assert list(read_immediate(immediate_value(ARRAYS["string"]))) == ["a", "ü", ""]


def test_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    value = immediate_value(array)
    assert value.type == tensor_type("bf16", (4,))
    assert value.immediateValue.tensor.bytes.values == array.tobytes()
    np.testing.assert_array_equal(read_immediate(value), array)
    bits = immediate_value(array.view(np.uint16), "bf16")
    assert bits == value


def test_nested_values() -> None:
    value = Value()
    value.type.listType.type.CopyFrom(tensor_type("int64", ()))
    for number in (1, 2):
        value.immediateValue.list.values.add().CopyFrom(immediate_value(np.int64(number)))
    assert [int(item) for item in read_immediate(value)] == [1, 2]
    outer = Value()
    pair = outer.immediateValue.dictionary.values.add()
    pair.key.CopyFrom(string_value("k"))
    pair.value.CopyFrom(value)
    ((key, found),) = read_immediate(outer)
    assert key.item() == "k"
    assert len(found) == 2


def test_damaged_values() -> None:
    value = immediate_value(np.zeros(4, np.float16))
    value.immediateValue.tensor.bytes.values = bytes(7)
    with pytest.raises(ModelFormatError, match="7 bytes"):
        read_immediate(value, "here")
    value = immediate_value(np.zeros(4, np.float32))
    value.immediateValue.tensor.floats.values.append(1)
    with pytest.raises(ModelFormatError, match="takes 4 elements, got 5"):
        read_immediate(value)
    value.type.tensorType.dataType = 99
    with pytest.raises(ModelFormatError, match="unknown element type 99"):
        read_immediate(value)


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="shape"):
        immediate_value(np.zeros(3, np.uint8), "uint4")
    with pytest.raises(ValueError, match=r"takes 2 packed bytes, got 3"):
        immediate_value(np.zeros(3, np.uint8), "uint4", (4,))
    with pytest.raises(ValueError, match="complex"):
        immediate_value(np.zeros(3, np.complex64))
    with pytest.raises(ValueError, match="unknown element type 'fp12'"):
        immediate_value(np.zeros(3), "fp12")
