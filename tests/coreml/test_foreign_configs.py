"""Configs of coremltools where mlopt's are expected, and mlopt's where coremltools' are."""

import io
import itertools
import shutil

import numpy as np
import pytest

import mlopt as cto
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig
from mlopt.coreml.config import for_palettization
from mlopt.errors import ConfigError

# coremltools leaves temporary folders for the garbage collector to remove
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.coreml")


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """The digit classifier for iOS18 as an ``MLModel``."""
    from coremltools.models import MLModel

    newer = digits.with_name("digits-iOS18.mlpackage")
    copy = tmp_path_factory.mktemp("model") / "digits.mlpackage"
    return MLModel(str(shutil.copytree(newer, copy)), skip_model_load=True)


def operations(model):
    """How often each type of operation occurs in the main function of a model."""
    program = next(iter(model.get_spec().mlProgram.functions.values()))
    (block,) = program.block_specializations.values()
    found = {}
    for operation in block.operations:
        found[operation.type] = found.get(operation.type, 0) + 1
    return found


# --- what coremltools' own palettizer config takes

# the values of its tests and of its documentation
TOGETHER = {
    "mode": ["kmeans", "KMEANS", "uniform", "Unique"],
    "nbits": [None, 1, 2, 3, 4, 6, 8],
    "granularity": ["per_tensor", "per_grouped_channel"],
    "group_size": [None, 0, 1, 6, 32],
    "cluster_dim": [1, 4],
}
BY_ITSELF = {
    "channel_axis": [None, 0, 1, -1],
    "enable_per_channel_scale": [False, True],
    "num_kmeans_workers": [-1, 0, 1, 4],
    "weight_threshold": [None, 0, 1024],
}


def arguments():
    for values in itertools.product(*TOGETHER.values()):
        yield dict(zip(TOGETHER, values, strict=True))
    for name, values in BY_ITSELF.items():
        yield from ({"nbits": 4, name: value} for value in values)


def test_every_value_that_coremltools_takes_is_taken(reference):
    taken = 0
    for given in arguments():
        if given.get("mode") == "uniform" and given["cluster_dim"] > 1:
            continue  # refused there as soon as a weight is palettized
        try:
            theirs = reference.OpPalettizerConfig(**given)
        except ValueError:
            continue
        assert OptimizationConfig(theirs).global_config == OpPalettizerConfig(**given)
        taken += 1
    assert taken == 333


@pytest.mark.parametrize(("group_size", "cluster_dim"), [(0, 1), (1, 2), (16, 1), (48, 1)])
def test_groups_are_those_of_coremltools(reference, model, group_size, cluster_dim):
    # 48 channels divide nothing here, and a group of one channel holds no vector of two
    config = reference.OptimizationConfig(
        reference.OpPalettizerConfig(
            nbits=1,
            granularity="per_grouped_channel",
            group_size=group_size,
            cluster_dim=cluster_dim,
            weight_threshold=500,
        )
    )
    ours = cto.coreml.palettize_weights(model, config)
    theirs = reference.palettize_weights(model, config)
    shapes = [
        {
            op.name.removesuffix("_palettized"): op.lut.shape
            for op in palettized._mil_program.find_ops(op_type="constexpr_lut_to_dense")
        }
        for palettized in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    assert bool(shapes[0]) == (group_size != 48 and (group_size, cluster_dim) != (1, 2))


# --- taken over


def test_a_configuration_of_coremltools_palettizes(reference, digits):
    theirs = reference.OptimizationConfig(
        global_config=reference.OpPalettizerConfig(nbits=4, weight_threshold=500),
        op_type_configs={"linear": None},
        op_name_configs={"conv2_weight_to_fp16": reference.OpPalettizerConfig(mode="unique")},
    )
    ours = OptimizationConfig(
        global_config=OpPalettizerConfig(nbits=4, weight_threshold=500),
        op_type_configs={"linear": None},
        op_name_configs={"conv2_weight_to_fp16": OpPalettizerConfig(mode="unique")},
    )
    assert for_palettization(theirs) == ours
    assert cto.coreml.preview(digits, theirs) == cto.coreml.preview(digits, ours)


def test_single_rules_of_coremltools_are_taken_over(reference):
    def function(weight):
        return [0.0, 1.0], np.zeros(weight.shape, np.uint8)

    config = OptimizationConfig(reference.OpPalettizerConfig(mode="custom", lut_function=function))
    assert config.global_config == OpPalettizerConfig(mode="custom", lut_function=function)
    config.set_op_type("conv", reference.OpPalettizerConfig(nbits=3))
    config.set_op_name("a", reference.OpPalettizerConfig(nbits=6))
    assert config.op_type_configs == {"conv": OpPalettizerConfig(nbits=3)}
    assert config.op_name_configs == {"a": OpPalettizerConfig(nbits=6)}


def test_what_is_put_into_the_mappings_directly_is_taken_over(reference):
    config = OptimizationConfig()
    config.op_type_configs["conv"] = reference.OpPalettizerConfig(nbits=3)
    assert for_palettization(config).op_type_configs == {"conv": OpPalettizerConfig(nbits=3)}
    config.op_name_configs["a"] = 4
    with pytest.raises(ConfigError, match=r"op_name_configs\['a'\] must be an OpPalettizerConfig"):
        for_palettization(config)


def test_what_palettizing_cannot_take_says_what_can(reference):
    quantizer = reference.OpLinearQuantizerConfig()
    for kind in (OptimizationConfig, reference.OptimizationConfig):
        config = kind(quantizer, {"conv": reference.OpThresholdPrunerConfig()})
        with pytest.raises(ConfigError) as caught:
            for_palettization(config)
        message = str(caught.value)
        assert "global_config is an OpLinearQuantizerConfig, which linear_quantize_we" in message
        assert "op_type_configs['conv'] is an OpThresholdPrunerConfig, which prune_we" in message
    with pytest.raises(ConfigError, match=r"wrap a single config as OptimizationConfig"):
        for_palettization(reference.OpPalettizerConfig(nbits=4))
    deprecated = reference.OptimizationConfig(
        global_config=reference.OpPalettizerConfig(nbits=4),
        is_deprecated=True,
        op_selector=lambda op: True,
    )
    with pytest.raises(ConfigError, match="op_selector"):
        for_palettization(deprecated)


# --- one configuration for both


def test_it_serves_coremltools_quantizer(model):
    config = cto.coreml.OptimizationConfig(
        global_config=cto.coreml.OpLinearQuantizerConfig(weight_threshold=500),
        op_name_configs={"conv2*": None},
    )
    quantized = cto.coreml.linear_quantize_weights(model, config)
    assert operations(quantized)["constexpr_blockwise_shift_scale"] == 2
    names = cto.coreml.get_weights_metadata(quantized, weight_threshold=500)
    assert {name for name, weight in names.items() if weight.compression is None} == {
        "conv2_weight_to_fp16"
    }


def test_it_serves_coremltools_pruner(model):
    config = cto.coreml.OptimizationConfig()
    config.set_global(cto.coreml.OpThresholdPrunerConfig(threshold=0.03))
    config.set_op_type("conv", None)
    pruned = cto.coreml.prune_weights(model, config)
    assert operations(pruned)["constexpr_sparse_to_dense"] == 1


def test_it_serves_coremltools_palettizer(reference, model):
    """Such as the one in a pass pipeline of a conversion."""
    arguments = {"mode": "uniform", "nbits": 2, "weight_threshold": 500, "group_size": 16}
    arguments["granularity"] = "per_grouped_channel"
    expected = reference.palettize_weights(
        model, reference.OptimizationConfig(reference.OpPalettizerConfig(**arguments))
    ).get_spec()
    rule = OpPalettizerConfig(**arguments)
    assert isinstance(OptimizationConfig(rule).global_config, reference.OpPalettizerConfig)
    for config in (
        OptimizationConfig(rule),
        OptimizationConfig(op_type_configs={"conv": rule, "linear": rule}),
        OptimizationConfig(op_name_configs={"*_weight_to_fp16": rule}),
    ):
        found = reference.palettize_weights(model, config).get_spec()
        assert found.mlProgram == expected.mlProgram
    # with mlopt's rules in it, one of coremltools is for mlopt only
    mixed = reference.OptimizationConfig(op_type_configs={"conv": rule, "linear": rule})
    assert for_palettization(mixed) == OptimizationConfig(None, {"conv": rule, "linear": rule})
    for more in ({"lut_dtype": "int8"}, {"on_indivisible": "divisor"}):
        config = OptimizationConfig(OpPalettizerConfig(nbits=2, weight_threshold=500, **more))
        with pytest.raises(ConfigError, match="coremltools' palettizer has no"):
            reference.palettize_weights(model, config)


def test_users_with_different_rules_are_told(reference):
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program
    from coremltools.converters.mil.mil import types as mil_types

    value = np.ones((4, 4), np.float32)
    with Function({"x": mb.placeholder((2, 4), dtype=mil_types.fp32)}) as function:
        weight = mb.const(val=value, name="shared")
        first = mb.linear(x=function.inputs["x"], weight=weight, name="first")
        second = mb.linear(x=first, weight=weight, name="second")
        function.set_outputs([second])
    program = Program()
    program.add_function("main", function)
    const = program.find_ops(op_type="const")
    (shared,) = [op for op in const if op.name == "shared"]
    config = OptimizationConfig(
        reference.OpThresholdPrunerConfig(), op_name_configs={"second": None}
    )
    with pytest.raises(ConfigError, match=r"linear\(first\), linear\(second\) have different"):
        config._get_const_op_config(shared)
    config.set_op_name("shar*", None)
    # the name of an operation is exact, and decides before the glob does
    assert config._get_const_op_config(shared) is None
    config.set_op_name("shared", reference.OpThresholdPrunerConfig(threshold=0.5))
    assert config._get_const_op_config(shared).threshold == 0.5


def test_coremltools_says_which_operations_a_config_is_for(reference):
    structured = reference.OpMagnitudePrunerConfig(n_m_ratio=(1, 2))
    with pytest.raises(ConfigError, match=r"op_type_configs\['matmul'\]"):
        OptimizationConfig(op_type_configs={"matmul": structured})
    config = OptimizationConfig(op_type_configs={"conv": structured})
    with pytest.raises(ConfigError, match=r"op_type_configs\['matmul'\]"):
        config.set_op_type("matmul", structured)


def test_they_go_to_plain_values_and_back(reference):
    config = OptimizationConfig(
        global_config=reference.OpLinearQuantizerConfig(
            mode="linear", dtype=np.uint8, granularity="per_block", block_size=[1, 32]
        ),
        op_type_configs={
            "conv": reference.OpMagnitudePrunerConfig(n_m_ratio=(1, 4), dim=1),
            "linear": OpPalettizerConfig(nbits=4),
        },
        op_name_configs={"a": reference.OpThresholdPrunerConfig(threshold=0.25), "b": None},
    )
    assert OptimizationConfig.from_yaml(io.StringIO(config.to_yaml())) == config


def test_the_type_of_the_whole_holds_for_each_rule(reference):
    values = {
        "config_type": "OpThresholdPrunerConfig",
        "global_config": {"threshold": 0.01},
        "op_type_configs": {
            "conv": {"config_type": "OpMagnitudePrunerConfig", "n_m_ratio": [3, 4]},
            "linear": {"config_type": "OpPalettizerConfig", "nbits": 4},
        },
    }
    config = OptimizationConfig.from_dict(values)
    assert config.global_config == reference.OpThresholdPrunerConfig(threshold=0.01)
    assert config.op_type_configs["conv"] == reference.OpMagnitudePrunerConfig(n_m_ratio=(3, 4))
    assert config.op_type_configs["linear"] == OpPalettizerConfig(nbits=4)
    assert values["op_type_configs"]["conv"]["config_type"] == "OpMagnitudePrunerConfig"
