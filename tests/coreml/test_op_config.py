import inspect

import attrs
import numpy as np
import pytest

from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.requests.granularity import Granularity


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.coreml")


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        OpPalettizerConfig(*args, **kwargs)
    return str(caught.value)


def test_signature_begins_with_that_of_coremltools(reference):
    ours = list(inspect.signature(OpPalettizerConfig).parameters.values())
    theirs = list(inspect.signature(reference.OpPalettizerConfig).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.name for p in ours[len(theirs) :]] == ["lut_dtype", "on_indivisible", "method"]
    for our, their in zip(ours, theirs, strict=False):
        if our.name != "granularity":
            assert our.default == their.default


def test_defaults():
    config = OpPalettizerConfig(nbits=4)
    assert config.mode == "kmeans"
    assert config.granularity is Granularity.PER_TENSOR
    assert (config.group_size, config.cluster_dim, config.weight_threshold) == (32, 1, 2048)
    assert (config.lut_dtype, config.on_indivisible) == (None, "skip")


def test_mode_in_any_case_is_kept_in_lower_case():
    assert OpPalettizerConfig("KMeans", 4).mode == "kmeans"
    assert "one of kmeans, uniform, unique, custom" in refusal(mode="kmean", nbits=4)
    assert "did you mean 'kmeans'?" in refusal(mode="kmean", nbits=4)
    refusal(mode=None, nbits=4)


@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 6, 8])
def test_nbits_that_a_table_can_have(nbits):
    assert OpPalettizerConfig(nbits=nbits).nbits == nbits
    assert type(OpPalettizerConfig(nbits=np.int64(nbits)).nbits) is int


@pytest.mark.parametrize("nbits", [0, 5, 7, 16, -1, True, 4.0, "4", np.float32(4)])
def test_nbits_that_it_cannot_have(nbits):
    assert "nbits must be" in refusal(nbits=nbits)


def test_nbits_belongs_to_the_modes_that_are_told():
    assert "nbits is required by mode 'kmeans'" in refusal()
    assert "nbits is required by mode 'uniform'" in refusal(mode="uniform")
    assert "nbits must be None for mode 'unique'" in refusal(mode="unique", nbits=4)
    assert "nbits must be None" in refusal(mode="custom", nbits=4, lut_function=len)
    assert OpPalettizerConfig(mode="unique").nbits is None


def test_lut_function_belongs_to_custom():
    assert OpPalettizerConfig(mode="CUSTOM", lut_function=len).lut_function is len
    assert "needs a lut_function" in refusal(mode="custom")
    assert "belongs to mode 'custom' only" in refusal(nbits=4, lut_function=len)
    assert "must be callable" in refusal(mode="custom", lut_function=3)


@pytest.mark.parametrize("name", ["per_grouped_channel", "PER_GROUPED_CHANNEL"])
def test_granularity_by_name(name):
    config = OpPalettizerConfig(nbits=4, granularity=name)
    assert config.granularity is Granularity.PER_GROUPED_CHANNEL
    assert config.granularity == "per_grouped_channel"
    assert str(config.granularity) == "per_grouped_channel"


def test_granularity_by_a_like_named_member_of_another_enum(reference):
    from coremltools.optimize.coreml._config import CompressionGranularity

    config = OpPalettizerConfig(nbits=4, granularity=CompressionGranularity.PER_GROUPED_CHANNEL)
    assert config.granularity is Granularity.PER_GROUPED_CHANNEL
    assert "group_size=1" in refusal(nbits=4, granularity=CompressionGranularity.PER_CHANNEL)


@pytest.mark.parametrize("granularity", ["per_channel", "per_block", "", None, 2])
def test_granularity_that_palettes_lack(granularity):
    assert "one of per_tensor, per_grouped_channel" in refusal(nbits=4, granularity=granularity)


@pytest.mark.parametrize("name", ["group_size", "cluster_dim", "weight_threshold"])
@pytest.mark.parametrize("value", [-1, True, 1.0, "2", [1]])
def test_whole_numbers_are_whole(name, value):
    assert f"{name} must be an integer of at least" in refusal(nbits=4, **{name: value})


@pytest.mark.parametrize("value", [True, 1.0, "2", [1], None])
def test_a_number_of_workers_is_whole(value):
    assert "num_kmeans_workers must be an integer" in refusal(nbits=4, num_kmeans_workers=value)


def test_there_is_no_vector_of_no_weights():
    assert "at least 1, got 0" in refusal(nbits=4, cluster_dim=0)


@pytest.mark.parametrize("size", [None, 0])
def test_no_group_size_is_all_channels(size):
    config = OpPalettizerConfig(nbits=4, granularity="per_grouped_channel", group_size=size)
    assert config.group_size == 0
    assert config.summary == "4-bit kmeans, per tensor"
    assert OpPalettizerConfig.from_dict(config.as_dict()) == config
    assert OpPalettizerConfig(nbits=4, group_size=size)


def test_weight_threshold():
    assert OpPalettizerConfig(nbits=4, weight_threshold=None).weight_threshold == 2048
    assert OpPalettizerConfig(nbits=4, weight_threshold=0).weight_threshold == 0


def test_channel_axis_may_count_from_the_end():
    assert OpPalettizerConfig(nbits=4, channel_axis=-1).channel_axis == -1
    assert "channel_axis must be an integer" in refusal(nbits=4, channel_axis=False)


def test_flag_is_a_boolean():
    assert OpPalettizerConfig(nbits=4, enable_per_channel_scale=np.True_).enable_per_channel_scale
    assert "True or False, got 'false'" in refusal(nbits=4, enable_per_channel_scale="false")
    refusal(nbits=4, enable_per_channel_scale=1)


def test_vectors():
    assert "cluster_dim=1" in refusal(mode="uniform", nbits=4, cluster_dim=2)
    assert OpPalettizerConfig(nbits=4, cluster_dim=2, enable_per_channel_scale=True)
    grouped = {"nbits": 4, "granularity": "per_grouped_channel"}
    assert OpPalettizerConfig(**grouped, group_size=12, cluster_dim=4)
    # Weights are left alone for it, one by one, as coremltools leaves them.
    assert OpPalettizerConfig(**grouped, group_size=6, cluster_dim=4)


@pytest.mark.parametrize("dtype", ["int8", "INT8", np.int8, np.dtype("int8")])
def test_lut_dtype(dtype):
    assert OpPalettizerConfig(nbits=4, lut_dtype=dtype).lut_dtype == "int8"


@pytest.mark.parametrize("dtype", ["int8", np.uint8])
def test_unique_has_no_lut_dtype(dtype):
    message = refusal(mode="unique", lut_dtype=dtype)
    assert "exactly" in message
    assert "leave lut_dtype out, or use mode 'kmeans' with nbits" in message


def test_lut_dtype_of_torch():
    torch = pytest.importorskip("torch")
    assert OpPalettizerConfig(nbits=4, lut_dtype=torch.uint8).lut_dtype == "uint8"


@pytest.mark.parametrize("dtype", ["int4", np.int16, np.float16, 8])
def test_lut_dtype_that_no_target_has(dtype):
    assert "one of int8, uint8" in refusal(nbits=4, lut_dtype=dtype)


def test_on_indivisible():
    assert OpPalettizerConfig(nbits=4, on_indivisible="Divisor").on_indivisible == "divisor"
    assert "one of skip, divisor, per_tensor" in refusal(nbits=4, on_indivisible="raise")


def test_a_config_is_a_value():
    config = OpPalettizerConfig(nbits=4)
    assert config == OpPalettizerConfig("KMEANS", np.int8(4))
    assert hash(config) == hash(OpPalettizerConfig(nbits=4))
    assert config != OpPalettizerConfig(nbits=6)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.nbits = 6
    assert attrs.evolve(config, nbits=6).nbits == 6
    with pytest.raises(ConfigError):
        attrs.evolve(config, nbits=5)


def test_summary():
    assert OpPalettizerConfig(mode="unique").summary == "unique, per tensor"
    config = OpPalettizerConfig(
        nbits=4,
        granularity="per_grouped_channel",
        group_size=16,
        cluster_dim=2,
        enable_per_channel_scale=True,
        lut_dtype="int8",
    )
    assert config.summary == (
        "4-bit kmeans, groups of 16, vectors of 2, per-channel scale, int8 table"
    )


def test_what_coremltools_refuses_is_refused(reference):
    cases = [
        {},
        {"nbits": 5},
        {"mode": "unique", "nbits": 2},
        {"mode": "custom"},
        {"nbits": 2, "lut_function": len},
        {"nbits": 2, "granularity": "per_block"},
        {"nbits": 2, "granularity": "per_channel"},
        {"nbits": 2, "weight_threshold": -1},
        {"nbits": 2, "enable_per_channel_scale": 1},
    ]
    for case in cases:
        with pytest.raises((ValueError, TypeError)):
            reference.OpPalettizerConfig(**case)
        refusal(**case)
