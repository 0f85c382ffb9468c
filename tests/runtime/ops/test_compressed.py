"""Compressed weights: bit for bit what coremltools decompresses, in every form that it writes."""

from __future__ import annotations

import warnings

import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs import iOS16, iOS18

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.errors import ModelFormatError, RunError
from mlopt.runtime import load
from mlopt.runtime.execution import Execution
from mlopt.runtime.ops import compressed
from mlopt.runtime.plan import Lazy
from mlopt.runtime.weights.packed import Packed
from tests import foreign
from tests.foreign import constexpr, handmade, value
from tests.runtime.programs import convert

PRECISIONS = ("float32", "as_declared")
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.normal(size=(1, 8, 10, 10)).astype(np.float32)


def bits_of(array):
    """An array that is equal to another one's if all elements have the same bits."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "f" else array


def assert_exact(found, wanted, precision):
    """That a tensor holds an array of coremltools: widened, or in its own dtype."""
    narrow = wanted.dtype == np.float16
    dtype = np.dtype(np.float32) if narrow and precision == "float32" else wanted.dtype
    assert found.numpy().dtype == dtype
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(bits_of(found.numpy()), bits_of(wanted.astype(dtype)))


def decompressed(path, names, precision="float32"):
    """Weights of a package made by hand, as the runtime computes them."""
    program = load(path, precision=precision)
    return program.run({"x": np.zeros((1, 4), np.float32)}, taps=names).taps


@pytest.mark.parametrize("case", foreign.CASES, ids=" ".join)
@pytest.mark.covering(1)
def test_weights_are_what_coremltools_decompresses(case):
    model = foreign.build(*case)
    wanted = foreign.materialised_constants(model)
    assert wanted
    for precision in PRECISIONS:
        found = load(model, precision=precision).run({"x": IMAGE}, taps=wanted).taps
        for name, array in wanted.items():
            assert_exact(found[name], array, precision)


@pytest.mark.parametrize(
    "case",
    [
        ("lut kmeans 4", "iOS16"),
        ("lut vectors, grouped", "iOS18"),
        ("lut scaled", "iOS18"),
        ("quantized int8, shifted", "iOS16"),
        ("quantized int4 per block", "iOS18"),
        ("sparse, palettized", "iOS18"),
        ("sparse, quantized", "iOS18"),
        ("palettized, quantized", "iOS18"),
    ],
    ids=" ".join,
)
def test_a_compressed_model_gives_what_its_decompressed_one_gives(case):
    model = foreign.build(*case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = cto.decompress_weights(model)
    for precision in PRECISIONS:
        first, second = (
            load(source, precision=precision).predict({"x": IMAGE}) for source in (model, plain)
        )
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])


GROUPED = {"granularity": "per_grouped_channel", "group_size": 8}


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize(
    ("target", "nbits", "options"),
    [
        *(("iOS16", nbits, {}) for nbits in (1, 2, 4, 6, 8)),
        *(("iOS18", nbits, GROUPED) for nbits in (1, 2, 3, 4)),
        ("iOS18", 2, {"cluster_dim": 2}),
    ],
)
def test_weights_that_mlopt_palettizes(target, nbits, options, precision):
    config = OptimizationConfig(OpPalettizerConfig(nbits=nbits, weight_threshold=0, **options))
    model = palettize(foreign.source(target, precision), config).model
    wanted = foreign.materialised_constants(model)
    assert wanted
    for computed in PRECISIONS:
        found = load(model, precision=computed).run({"x": IMAGE}, taps=wanted).taps
        for name, array in wanted.items():
            assert_exact(found[name], array, computed)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8", "uint8"])
@pytest.mark.parametrize("shape", [(5,), (3, 7, 1), (2, 3, 4)])
def test_one_table_in_a_stream_of_bits(tmp_path, bits, dtype, shape):
    numpy = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8, "uint8": np.uint8}[dtype]
    lut = RANDOM.integers(0, 127, 1 << bits).astype(numpy)
    codes = RANDOM.integers(0, 1 << bits, shape)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes.reshape(-1)))
    stream = number.to_bytes(-(-codes.size * bits // 8), "little")
    operation = constexpr(
        "lut_to_dense",
        {"w": (dtype, shape)},
        old=True,
        indices=value(np.frombuffer(stream, np.uint8), "uint8"),
        lut=value(lut, dtype),
        shape=value(np.array(shape, np.uint32), "uint32"),
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS16", [operation], ["w"])
    for precision in PRECISIONS:
        assert_exact(decompressed(path, ["w"], precision)["w"], lut[codes], precision)


@pytest.mark.parametrize("shape", [(5,), (3, 7, 1), (2, 3, 4)])
def test_a_mask_in_a_stream_of_bits(tmp_path, shape):
    mask = RANDOM.integers(0, 2, shape)
    mask.flat[0] = 1
    data = RANDOM.normal(size=int(mask.sum())).astype(np.float16)
    operation = constexpr(
        "sparse_to_dense",
        {"w": ("fp16", shape)},
        old=True,
        nonzero_data=value(data, "fp16"),
        mask=value(np.packbits(mask.reshape(-1), bitorder="little"), "uint8"),
        shape=value(np.array(shape, np.uint32), "uint32"),
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS16", [operation], ["w"])
    wanted = np.zeros(shape, np.float16)
    wanted[mask != 0] = data
    for precision in PRECISIONS:
        assert_exact(decompressed(path, ["w"], precision)["w"], wanted, precision)


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("scale_dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("is_vector", [False, True])
def test_affine(tmp_path, axis, dtype, scale_dtype, is_vector):
    shape, numpy = (3, 4, 5), {"int8": np.int8, "uint8": np.uint8}[dtype]
    low, high = np.iinfo(numpy).min, np.iinfo(numpy).max
    data = RANDOM.integers(low, high + 1, shape).astype(numpy)
    length = (shape[axis],) if is_vector else ()
    scale = RANDOM.random(length).astype({"fp16": np.float16, "fp32": np.float32}[scale_dtype])
    zero = RANDOM.integers(low, high + 1, length).astype(numpy)
    operation = constexpr(
        "affine_dequantize",
        {"w": (scale_dtype, shape)},
        old=True,
        quantized_data=value(data, dtype),
        zero_point=value(zero, dtype),
        scale=value(scale, scale_dtype),
        axis=value(np.int32(axis), "int32"),
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS16", [operation], ["w"])
    wanted = iOS16.constexpr_affine_dequantize.decompress(
        data, np.asarray(zero), np.asarray(scale), axis
    )
    for precision in PRECISIONS:
        assert_exact(decompressed(path, ["w"], precision)["w"], wanted, precision)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_cast(tmp_path, target):
    data = RANDOM.normal(size=(2, 3)).astype(np.float16)
    operation = constexpr(
        "cast",
        {"w": ("fp32", (2, 3))},
        old=target == "iOS16",
        source_val=value(data, "fp16"),
        output_dtype=value("fp32", "string"),
    )
    path = handmade(tmp_path / "m.mlpackage", target, [operation], ["w"])
    for precision in PRECISIONS:
        found = decompressed(path, ["w"], precision)["w"]
        assert_exact(found, data.astype(np.float32), precision)


# indices' shape, tables on each axis, entries' length, axis of the vectors
TABLES = [
    ((6,), (1,), 1, None),
    ((6,), (3,), 1, 0),
    ((6, 4), (2, 1), 1, None),
    ((6, 4), (2, 2), 1, None),
    ((6, 4), (6, 4), 1, None),
    ((6, 4), (1, 1), 2, 0),
    ((6, 4), (3, 1), 2, 1),
    ((6, 4), (3, 2), 3, -1),
    ((4, 6, 2), (2, 3, 1), 2, 1),
    ((4, 6, 2), (2, 3, 2), 4, -3),
    ((4, 6, 2, 3), (1, 3, 1, 3), 2, 2),
]


@pytest.mark.parametrize(("shape", "tables", "length", "axis"), TABLES)
@pytest.mark.parametrize(("bits", "dtype"), [(1, "fp16"), (3, "fp32"), (4, "int8"), (8, "fp16")])
def test_tables_for_blocks(tmp_path, shape, tables, length, axis, bits, dtype):
    numpy = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}[dtype]
    lut = (RANDOM.integers(-128, 128, (*tables, 1 << bits, length))).astype(numpy)
    codes = RANDOM.integers(0, 1 << bits, shape).astype(np.uint8)
    dense = list(shape)
    if axis is not None:
        dense[axis] *= length
    given = {} if axis is None else {"vector_axis": value(np.int32(axis), "int32")}
    operation = constexpr(
        "lut_to_dense",
        {"w": (dtype, tuple(dense))},
        indices=value(codes, f"uint{bits}", shape),
        lut=value(lut, dtype),
        **given,
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS18", [operation], ["w"])
    wanted = iOS18.constexpr_lut_to_dense.decompress(codes, lut, axis)
    for precision in PRECISIONS:
        assert_exact(decompressed(path, ["w"], precision)["w"], wanted, precision)


@pytest.mark.parametrize(("shape", "tables", "length", "axis"), TABLES)
def test_tables_for_blocks_of_a_sparse_weight(tmp_path, shape, tables, length, axis):
    lut = RANDOM.normal(size=(*tables, 4, length)).astype(np.float16)
    mask = RANDOM.integers(0, 2, shape).astype(np.uint8)
    codes = RANDOM.integers(0, 4, int(mask.sum())).astype(np.uint8)
    wanted_mask, wanted_data = iOS18.constexpr_lut_to_sparse.decompress(mask, codes, lut, axis)
    wanted = iOS18.constexpr_sparse_to_dense.decompress(wanted_data, wanted_mask)
    given = {} if axis is None else {"vector_axis": value(np.int32(axis), "int32")}
    operations = [
        constexpr(
            "lut_to_sparse",
            {"mask": ("uint1", wanted_mask.shape), "data": ("fp16", wanted_data.shape)},
            indices_mask=value(mask, "uint1", shape),
            indices_nonzero_data=value(codes, "uint2", codes.shape),
            lut=value(lut, "fp16"),
            **given,
        ),
        constexpr(
            "sparse_to_dense", {"w": ("fp16", wanted.shape)}, nonzero_data="data", mask="mask"
        ),
    ]
    path = handmade(tmp_path / "m.mlpackage", "iOS18", operations, ["w"])
    for precision in PRECISIONS:
        found = decompressed(path, ["w", "data", "mask"], precision)
        np.testing.assert_array_equal(found["mask"].numpy(), wanted_mask)
        assert_exact(found["data"], wanted_data, precision)
        assert_exact(found["w"], wanted, precision)


BLOCKS = [
    ((6,), (1,)),
    ((6, 4), (2, 1)),
    ((6, 4), (6, 4)),
    ((6, 4), (3, 2)),
    ((2, 6, 4), (1, 2, 4)),
]
OFFSETS = [None, "same", "float"]


def scaled_data(shape, blocks, dtype, scale_dtype, offset_kind):
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}.get(
        dtype, (-9, 9)
    )
    numpy = {"int4": np.int8, "uint4": np.uint8, "fp16": np.float16}.get(dtype, dtype)
    data = RANDOM.integers(low, high, shape).astype(numpy)
    float_type = {"fp16": np.float16, "fp32": np.float32}[scale_dtype]
    scale = RANDOM.normal(size=blocks).astype(float_type)
    if offset_kind is None:
        return data, scale, None, {}
    if offset_kind == "same":
        offset, kind = RANDOM.integers(low, high, blocks).astype(numpy), dtype
    else:
        offset, kind = (5 * RANDOM.normal(size=blocks)).astype(float_type), scale_dtype
    return data, scale, offset, {"offset": value(offset, kind, blocks)}


@pytest.mark.parametrize(("shape", "blocks"), BLOCKS)
@pytest.mark.parametrize("scale_dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("dtype", "offset_kind"),
    [("int4", "same"), ("uint4", "float"), ("int8", None), ("uint8", "same"), ("fp16", "float")],
)
def test_scales_for_blocks(tmp_path, shape, blocks, dtype, scale_dtype, offset_kind):
    data, scale, offset, given = scaled_data(shape, blocks, dtype, scale_dtype, offset_kind)
    operation = constexpr(
        "blockwise_shift_scale",
        {"w": (scale_dtype, shape)},
        data=value(data, dtype, shape),
        scale=value(scale, scale_dtype),
        **given,
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS18", [operation], ["w"])
    wanted = iOS18.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
    for precision in PRECISIONS:
        assert_exact(decompressed(path, ["w"], precision)["w"], wanted, precision)


@pytest.mark.parametrize(("shape", "blocks"), BLOCKS)
@pytest.mark.parametrize(("dtype", "offset_kind"), [("int8", None), ("uint4", "same")])
def test_scales_for_blocks_of_a_sparse_weight(tmp_path, shape, blocks, dtype, offset_kind):
    dense, scale, offset, given = scaled_data(shape, blocks, dtype, "fp16", offset_kind)
    mask = RANDOM.integers(0, 2, shape).astype(np.uint8)
    data = dense[mask != 0]
    wanted_mask, wanted_data = iOS18.constexpr_sparse_blockwise_shift_scale.decompress(
        mask, data, scale, offset
    )
    operations = [
        constexpr(
            "sparse_blockwise_shift_scale",
            {"mask": ("uint1", shape), "data": ("fp16", data.shape)},
            data_mask=value(mask, "uint1", shape),
            nonzero_data=value(data, dtype, data.shape),
            scale=value(scale, "fp16"),
            **given,
        ),
        constexpr("sparse_to_dense", {"w": ("fp16", shape)}, nonzero_data="data", mask="mask"),
    ]
    path = handmade(tmp_path / "m.mlpackage", "iOS18", operations, ["w"])
    wanted = iOS18.constexpr_sparse_to_dense.decompress(wanted_data, wanted_mask)
    for precision in PRECISIONS:
        found = decompressed(path, ["w", "data", "mask"], precision)
        np.testing.assert_array_equal(found["mask"].numpy(), wanted_mask)
        assert_exact(found["data"], wanted_data, precision)
        assert_exact(found["w"], wanted, precision)


def test_a_case_by_hand(tmp_path):
    operation = constexpr(
        "lut_to_dense",
        {"w": ("fp16", (4, 2))},
        indices=value(np.array([[2, 0], [1, 3]], np.uint8), "uint2", (2, 2)),
        lut=value(np.arange(16).reshape(1, 2, 4, 2).astype(np.float16), "fp16"),
        vector_axis=value(np.int32(0), "int32"),
    )
    path = handmade(tmp_path / "m.mlpackage", "iOS18", [operation], ["w"])
    wanted = torch.tensor([[4.0, 8.0], [5.0, 9.0], [2.0, 14.0], [3.0, 15.0]])
    assert torch.equal(decompressed(path, ["w"])["w"], wanted)


def test_every_use_gives_the_same_weight_and_keeping_it_too():
    model = foreign.build("sparse, palettized", "iOS18")
    kept = load(model, keep_weights=True)
    first, second = kept.predict({"x": IMAGE}), kept.predict({"x": IMAGE})
    for name, array in load(model).predict({"x": IMAGE}).items():
        np.testing.assert_array_equal(array, first[name])
        np.testing.assert_array_equal(array, second[name])


def lut_operation(**changed):
    given = {
        "indices": value(np.zeros(2, np.uint8), "uint8"),
        "lut": value(np.zeros(4, np.float16), "fp16"),
        "shape": value(np.array([8], np.uint32), "uint32"),
    }
    return constexpr("lut_to_dense", {"w": ("fp16", (8,))}, old=True, **{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lut": value(np.zeros(5, np.float16), "fp16")}, "2, 4, 16, 64 or 256 entries"),
        ({"indices": value(np.zeros(3, np.uint8), "uint8")}, "a vector of 2 bytes for 8 elements"),
        ({"shape": value(np.array([4], np.uint32), "uint32")}, "a vector of 1 bytes"),
    ],
)
def test_damaged_streams_are_refused(tmp_path, changed, message):
    path = handmade(tmp_path / "m.mlpackage", "iOS16", [lut_operation(**changed)], ["w"])
    with pytest.raises(RunError, match=message):
        decompressed(path, ["w"])


def tables_operation(**changed):
    given = {
        "indices": value(np.zeros((4, 2), np.uint8), "uint2", (4, 2)),
        "lut": value(np.zeros((2, 1, 4, 1), np.float16), "fp16"),
    }
    return constexpr("lut_to_dense", {"w": ("fp16", (4, 2))}, **{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lut": value(np.zeros((2, 4, 1), np.float16), "fp16")}, "lut needs 4 axes"),
        ({"lut": value(np.zeros((3, 1, 4, 1), np.float16), "fp16")}, "do not divide"),
        ({"lut": value(np.zeros((2, 1, 4, 2), np.float16), "fp16")}, "vector_axis must be"),
        (
            {"indices": value(np.full((4, 2), 9, np.uint8), "uint8")},
            "a table has 4 entries, but there is index 9",
        ),
    ],
)
def test_damaged_tables_are_refused(tmp_path, changed, message):
    path = handmade(tmp_path / "m.mlpackage", "iOS18", [tables_operation(**changed)], ["w"])
    with pytest.raises(RunError, match=message):
        decompressed(path, ["w"])


def test_damaged_masks_and_scales_are_refused(tmp_path):
    sparse = constexpr(
        "sparse_to_dense",
        {"w": ("fp16", (3,))},
        nonzero_data=value(np.ones(3, np.float16), "fp16"),
        mask=value(np.array([1, 0, 1], np.uint8), "uint1", (3,)),
    )
    path = handmade(tmp_path / "a.mlpackage", "iOS18", [sparse], ["w"])
    with pytest.raises(RunError, match="the mask has 2 ones"):
        decompressed(path, ["w"])
    scaled = constexpr(
        "blockwise_shift_scale",
        {"w": ("fp16", (4,))},
        data=value(np.ones(4, np.int8), "int8"),
        scale=value(np.ones(3, np.float16), "fp16"),
    )
    path = handmade(tmp_path / "b.mlpackage", "iOS18", [scaled], ["w"])
    with pytest.raises(RunError, match="do not divide"):
        decompressed(path, ["w"])


def test_forms_of_newer_opsets_are_not_known_before(tmp_path):
    old = constexpr("cast", {"w": ("fp32", (1,))}, source_val=value([1.0], "fp16"))
    path = handmade(tmp_path / "m.mlpackage", "iOS15", [old], ["w"])
    with pytest.raises(ModelFormatError, match="constexpr_cast"):
        load(path)


def test_weights_with_two_results_are_computed_once(monkeypatch):
    model = foreign.build("sparse, palettized", "iOS18")
    computed = []
    called = Execution.called

    def watch(self, step, arguments):
        computed.append(step.title)
        return called(self, step, arguments)

    monkeypatch.setattr(Execution, "called", watch)
    load(model).predict({"x": IMAGE})
    sparse = [title for title in computed if title.startswith("constexpr_lut_to_sparse")]
    assert sparse
    assert len(sparse) == len(set(sparse))


def test_of_weights_that_are_kept_only_the_last_form_is():
    program = load(foreign.build("palettized, quantized", "iOS18"), keep_weights=True)
    program.predict({"x": IMAGE})
    kept = program.execution().kept
    assert kept
    used = {s for step in program.plan.body.steps for _, sources in step.arguments for s in sources}
    assert {source for source, _ in kept} <= used


def test_gradients_of_a_weight_behind_two_results():
    mask = RANDOM.random((64, 80)) < 0.5
    entries = int(mask.sum())

    def build(x):
        lut = mb.constexpr_blockwise_shift_scale(
            data=RANDOM.integers(-100, 100, (1, 1, 16, 1)).astype(np.int8),
            scale=np.full((1, 1, 1, 1), 0.25, np.float32),
            name="lut",
        )
        ones, nonzero = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(types.np_uint1_dtype),
            indices_nonzero_data=RANDOM.integers(0, 16, entries).astype(types.np_uint4_dtype),
            lut=lut,
        )
        dense = [
            mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=ones, name=f"dense{number}")
            for number in range(2)
        ]
        return [mb.linear(x=x, weight=weight) for weight in dense]

    x = {"x": RANDOM.normal(size=(1, 80)).astype(np.float32)}
    program = load(convert(build, x, target="iOS18"))

    def loss(outputs):
        return sum(value.sum() for value in outputs.values())

    alone = program.gradients(x, loss, ["lut"])["lut"]
    # the gradient of what is in between stays with it: half of the whole
    beside = program.gradients(x, loss, ["dense1", "lut"])["lut"]
    assert alone.abs().sum() > 0
    torch.testing.assert_close(beside, alone / 2)


def test_gradients_do_not_depend_on_what_is_kept():
    model = foreign.build("palettized, quantized", "iOS18")
    (lut, *_) = (
        inner.step.node.outputs[0].name
        for step in load(model).plan.body.steps
        for _, sources in step.arguments
        for source in sources
        if isinstance(source, Lazy)
        for _, (inner,) in source.step.arguments
        if isinstance(inner, Lazy)
    )

    def loss(outputs):
        return next(iter(outputs.values())).square().sum()

    wanted = load(model).gradients({"x": IMAGE}, loss, [lut])[lut]
    assert wanted.abs().sum() > 0
    program = load(model, keep_weights=True)
    for _ in range(2):
        torch.testing.assert_close(program.gradients({"x": IMAGE}, loss, [lut])[lut], wanted)
        program.predict({"x": IMAGE})


def test_tables_that_are_not_there_and_indices_beyond_them():
    indices = Packed(torch.full((8,), 0xFF, dtype=torch.uint8), 4, (4, 4))
    for lut, message in (
        (torch.zeros(0, 1, 16, 1), "blocks, which do not divide"),
        (torch.zeros(1, 1, 8, 1), "a table has 8 entries, but there is index 15"),
    ):
        with pytest.raises(ValueError, match=message):
            compressed.constexpr_lut_to_dense_of_tables(indices, lut)


@pytest.mark.parametrize("offset", [None, torch.tensor([[3], [-2]], dtype=torch.int8)])
def test_gradients_of_scales_are_not_rounded_to_float16(offset):
    data = torch.from_numpy(RANDOM.integers(-8, 8, (2, 3000)).astype(np.int8))
    scale = torch.tensor([[0.37], [1.9]]).requires_grad_()
    arrived = torch.from_numpy(1e-8 * RANDOM.normal(size=(2, 3000)).astype(np.float32))
    weight = compressed._shifted_and_scaled(data, scale, offset, torch.float16)
    weight.backward(arrived)
    with torch.no_grad():
        wanted = compressed._shifted_and_scaled(data, scale, offset, torch.float16)
    assert wanted.dtype == torch.float16
    np.testing.assert_array_equal(weight.detach().numpy(), wanted.float().numpy())
    shifted = data.double() - (0 if offset is None else offset.double())
    slopes = (arrived.double() * shifted).sum(1, keepdim=True)
    torch.testing.assert_close(scale.grad.double(), slopes, rtol=1e-4, atol=1e-12)
