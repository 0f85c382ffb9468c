import copy
import pickle
import weakref
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlopt.coreml.metadata import (
    _PARAMETER_ORDER,
    CoreMLOpMetaData,
    CoreMLWeightMetaData,
    WeightMetadataDict,
    _declared,
    get_weights_metadata,
)
from mlopt.errors import ModelFormatError

ct = pytest.importorskip("coremltools")
cto = pytest.importorskip("coremltools.optimize.coreml")

# The models that coremltools compresses leave their folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


# --- one operation -------------------------------------------------------------------------------


def test_operation_prints_as_in_coremltools():
    values = ("conv", "conv_1", {"weight": "conv_1_weight", "bias": "conv_1_bias"})
    ours, theirs = CoreMLOpMetaData(*values), cto.CoreMLOpMetaData(*values)
    assert str(ours) == str(theirs)
    assert str(ours) == "conv(name=conv_1, weight=conv_1_weight, bias=conv_1_bias, ...)"
    assert str(CoreMLOpMetaData("relu", "r", {})) == str(cto.CoreMLOpMetaData("relu", "r", {}))


def test_parameters_of_an_operation_are_attributes():
    op = CoreMLOpMetaData(op_type="conv", name="c", params_name_mapping={"weight": "w"})
    assert op.weight == "w"
    with pytest.raises(AttributeError, match="bias"):
        _ = op.bias
    for other in (copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
        assert other == op
        assert other.weight == "w"


@pytest.mark.parametrize("wrong", [(1, "n", {}), ("t", None, {}), ("t", "n", [])])
def test_operation_refuses_what_coremltools_refuses(wrong):
    with pytest.raises(TypeError):
        cto.CoreMLOpMetaData(*wrong)
    with pytest.raises(TypeError):
        CoreMLOpMetaData(*wrong)


# --- one weight ----------------------------------------------------------------------------------


def test_weight_prints_as_in_coremltools():
    data = np.array([[1.0, 0.0], [0.0, 6.0]], dtype=np.float32)
    assert str(CoreMLWeightMetaData(data)) == str(cto.CoreMLWeightMetaData(data))
    ours = CoreMLWeightMetaData(data, child_ops=[CoreMLOpMetaData("conv", "c", {"weight": "w"})])
    theirs = cto.CoreMLWeightMetaData(
        data, child_ops=[cto.CoreMLOpMetaData("conv", "c", {"weight": "w"})]
    )
    assert str(ours) == str(theirs)
    assert str(CoreMLWeightMetaData(data, child_ops=[])) == str(
        cto.CoreMLWeightMetaData(data, child_ops=[])
    )
    assert "sparsity: 0.5\n  unique_values: 3" in str(ours)


def test_statistics_wait_until_they_are_asked_for(monkeypatch):
    from mlopt.coreml import metadata

    calls = []
    monkeypatch.setattr(
        metadata, "zeros_and_distinct", lambda values: (calls.append(values), (1, 3))[1]
    )
    weight = CoreMLWeightMetaData(np.zeros(4, np.float16))
    repr(weight)
    assert calls == []
    assert (weight.sparsity, weight.unique_values, weight.sparsity) == (0.25, 3, 0.25)
    assert len(calls) == 1
    told = CoreMLWeightMetaData(np.zeros(4, np.float16), 0.5, 7)
    assert (told.sparsity, told.unique_values) == (0.5, 7)
    assert len(calls) == 1


def test_weight_is_read_only():
    weight = CoreMLWeightMetaData(val=np.zeros(4), sparsity=1.0, unique_values=1, child_ops=None)
    for name in ("val", "sparsity", "unique_values", "child_ops"):
        with pytest.raises(AttributeError):
            setattr(weight, name, 1)
    assert copy.copy(weight).unique_values == 1
    assert pickle.loads(pickle.dumps(weight)).sparsity == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"val": [1.0]},
        {"val": np.zeros(1), "sparsity": 1},
        {"val": np.zeros(1), "unique_values": 1.0},
        {"val": np.zeros(1), "child_ops": ()},
    ],
)
def test_weight_refuses_what_coremltools_refuses(wrong):
    with pytest.raises((TypeError, AttributeError)):
        cto.CoreMLWeightMetaData(**wrong)
    with pytest.raises(TypeError, match="must be"):
        CoreMLWeightMetaData(**wrong)


def assert_same_statistics(values):
    weight = CoreMLWeightMetaData(values)
    # numpy 2.3 does not sort float16 right on every machine; float32 holds the same values.
    exact = values.astype(np.float32) if values.dtype == np.float16 else values
    assert weight.unique_values == len(np.unique(exact))
    # In float64, since the magnitude of the smallest integer is no integer of its type.
    magnitude = np.abs(values.astype(np.float64))
    assert weight.sparsity == np.count_nonzero(magnitude <= 1e-12) / values.size
    assert type(weight.sparsity) is float
    assert type(weight.unique_values) is int


special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-12, -1e-13, 2e-12, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_statistics_of_special_values(dtype):
    values = special.astype(dtype)
    if dtype is np.float16:
        values = np.concatenate([values, np.uint16([0x7E01, 0xFE02, 1, 0x8001]).view(np.float16)])
    assert_same_statistics(values)
    assert_same_statistics(np.full(3, np.nan, dtype))
    assert_same_statistics(np.array(2, dtype))


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
)
@given(data=st.data())
def test_statistics_of_any_values(dtype, data):
    shape = arrays.array_shapes(max_dims=3, max_side=6)
    values = data.draw(arrays.arrays(np.dtype(dtype), shape))
    assert_same_statistics(values)
    assert_same_statistics(values.T)


def test_statistics_of_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    values = np.arange(65536, dtype=np.uint16).view(bfloat16)
    weight = CoreMLWeightMetaData(values)
    wide = values.astype(np.float32)
    assert weight.unique_values == len(np.unique(wide))
    assert weight.sparsity == np.count_nonzero(np.abs(wide) <= np.float32(1e-12)) / 65536


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_statistics_across_the_chunks_of_a_large_weight(dtype):
    values = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(dtype)
    values[:, ::3] = 0
    assert_same_statistics(values)


def test_statistics_of_nothing():
    weight = CoreMLWeightMetaData(np.zeros((0, 3), np.float16))
    assert (weight.sparsity, weight.unique_values) == (0.0, 0)


# --- the dictionary ------------------------------------------------------------------------------


def test_dictionary_prints_as_in_coremltools():
    from coremltools.optimize.coreml._config import _MetaDataDict

    for prefix in ("", "> "):
        ours = WeightMetadataDict({}, str_prefix=prefix)
        theirs = _MetaDataDict({}, str_prefix=prefix)
        for name in ("b", "a"):
            ours[name] = CoreMLWeightMetaData(np.ones((2, 3), np.float16))
            theirs[name] = cto.CoreMLWeightMetaData(np.ones((2, 3), np.float16))
        assert str(ours) == str(theirs)
    assert list(ours) == ["b", "a"]
    assert isinstance(ours, OrderedDict)
    assert str(WeightMetadataDict()) == ""
    assert list(copy.copy(ours)) == ["b", "a"]
    assert "CoreMLWeightMetaData(np.ndarray(shape=(2, 3), dtype=float16)" in repr(ours)


# --- models --------------------------------------------------------------------------------------


def assert_as_in_coremltools(model, threshold):
    ours = get_weights_metadata(model, weight_threshold=threshold)
    # At the threshold itself coremltools lists a weight, against its documentation.
    theirs = cto.get_weights_metadata(model, weight_threshold=threshold + 1)
    assert sorted(ours) == sorted(theirs)
    assert len(ours) > 0
    for name, their in theirs.items():
        our = ours[name]
        np.testing.assert_array_equal(our.val, their.val)
        assert our.val.dtype == their.val.dtype
        assert not our.val.flags.writeable
        assert str(our) == str(their)
        for our_op, their_op in zip(our.child_ops, their.child_ops, strict=True):
            assert our_op.op_type == their_op.op_type
            assert our_op.name == their_op.name
            assert list(our_op.params_name_mapping.items()) == list(
                their_op.params_name_mapping.items()
            )


@pytest.mark.parametrize("threshold", [50, 2048])
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("convolutional", "iOS15"),
        ("transformer", "iOS16"),
        ("transformer", "iOS18"),
        ("control_flow", "iOS15"),
        ("matmuls", "iOS15"),
        ("redefined", "iOS15"),
        ("classifier", "iOS15"),
        ("stateful", "iOS18"),
    ],
)
def test_same_as_coremltools(kind, target, threshold):
    from tests import models

    assert_as_in_coremltools(models.build(kind, target), threshold)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("nbits", [4, 8])
def test_a_compressed_model_has_the_rows_of_its_plain_weights(target, nbits):
    from tests import models

    config = cto.OptimizationConfig(cto.OpPalettizerConfig(nbits=nbits))
    model = cto.palettize_weights(models.build("matmuls", target), config)
    ours = get_weights_metadata(model, weight_threshold=50)
    # At the threshold itself coremltools lists a weight, against its documentation.
    theirs = cto.get_weights_metadata(cto.decompress_weights(model), weight_threshold=51)
    assert sorted(ours) == sorted(theirs)
    compressed = [name for name, weight in ours.items() if weight.compression is not None]
    assert len(compressed) >= 3
    for name, their in theirs.items():
        our = ours[name]
        np.testing.assert_array_equal(our.val, their.val)
        assert our.val.dtype == their.val.dtype
        assert not our.val.flags.writeable
        lines = str(our).splitlines()
        if our.compression is not None:
            assert f"  compression: {our.compression}" in lines
            assert (our.compression.form, our.compression.nbits) == ("palettized", nbits)
        # numpy 2.3 does not sort float16 right on every machine, and so coremltools miscounts.
        assert our.unique_values == len(np.unique(their.val.astype(np.float32)))
        own = ("  compression:", "  unique_values:")
        others = [line for line in str(their).splitlines() if not line.startswith(own)]
        assert [line for line in lines if not line.startswith(own)] == others


def test_decompressed_values_are_kept_while_someone_holds_them():
    from tests import models

    config = cto.OptimizationConfig(cto.OpPalettizerConfig(nbits=4))
    weight = get_weights_metadata(cto.palettize_weights(models.build("matmuls", "iOS16"), config))
    weight = next(w for w in weight.values() if w.compression is not None)
    held = weight.val
    assert weight.val is held
    assert weight.val.base is None
    gone = weakref.ref(held)
    del held
    assert gone() is None
    assert weight.unique_values == 16


def test_types_below_8_bits_are_unpacked(tmp_path):
    """A constant of 4 bits that an ordinary operation reads, as no converter writes it."""
    from tests import models

    config = cto.OptimizationConfig(
        cto.OpLinearQuantizerConfig(dtype="int4", granularity="per_block", block_size=2)
    )
    model = cto.linear_quantize_weights(models.build("matmuls", "iOS18"), config)
    theirs = cto.get_weights_metadata(model)["y_quantized_data_0"].val
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    op = next(op for op in block.operations if op.outputs[0].name == "y_quantized")
    value = op.inputs["data"].arguments[0].value
    op.type = "identity"
    del op.inputs["data"], op.inputs["scale"]
    op.inputs["x"].arguments.add().value.CopyFrom(value)
    op.outputs[0].type.CopyFrom(value.type)
    model = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    data = get_weights_metadata(model)["y_quantized_x_0"].val
    assert data.shape == (64, 96)
    assert data.min() < 0
    assert not data.flags.writeable
    np.testing.assert_array_equal(data, theirs)


def test_an_operation_that_takes_a_list():
    from tests import models

    model = models.build("recurrent", "iOS15")
    with pytest.raises(AttributeError):
        cto.get_weights_metadata(model, 100)
    weights = get_weights_metadata(model, 100)
    ops = [op for weight in weights.values() for op in weight.child_ops]
    names = next(op.params_name_mapping for op in ops if op.op_type == "lstm")
    assert list(names) == [
        *("weight_ih", "weight_hh", "bias"),
        *("weight_ih_back", "weight_hh_back", "bias_back"),
    ]
    assert set(names.values()) <= set(weights)


def test_functions_share_what_they_share():
    from tests import models

    model = models.build("multifunction", "iOS18")
    weights = get_weights_metadata(model)
    shared = [name for name in weights if "/" not in name]
    own = [name for name in weights if "/" in name]
    assert len(shared) == 2
    assert {name.partition("/")[0] for name in own} == {"base", "adapted"}
    for name in shared:
        assert len(weights[name].child_ops) == 2
    for name in own:
        (child,) = weights[name].child_ops
        assert child.weight == name


def test_the_threshold_itself_is_not_above_it():
    from tests import models

    model = models.build("matmuls")
    assert "y" in get_weights_metadata(model, 64 * 96 - 1)
    assert "y" not in get_weights_metadata(model, 64 * 96)
    assert list(get_weights_metadata(model)) == list(get_weights_metadata(model, 2048))


def test_a_path_serves_and_values_outlive_the_package(tmp_path):
    from tests import models

    model = models.build("matmuls")
    path = tmp_path / "m.mlpackage"
    model.save(str(path))
    for source in (path, str(path)):
        weights = get_weights_metadata(source)
        assert str(weights) == str(get_weights_metadata(model))
    value = weights["y"].val
    del weights
    np.testing.assert_array_equal(value, cto.get_weights_metadata(model)["y"].val)
    assert value.base is not None
    with pytest.raises(ModelFormatError):
        get_weights_metadata(tmp_path / "nothing.mlpackage")
    with pytest.raises(TypeError):
        get_weights_metadata(3)


def test_parameters_are_listed_in_the_order_of_coremltools():
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    for versions in SSAOpRegistry.core_ops.values():
        for op in versions.values():
            declared = [key for key in op.input_spec.input_types if key in _PARAMETER_ORDER]
            assert sorted(declared, key=_declared) == declared, op
