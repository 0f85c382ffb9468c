import copy
import enum
import inspect
import io
import pickle

import attrs
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlopt.choices import NBITS
from mlopt.coreml import Granularity
from mlopt.errors import ConfigError
from mlopt.torch.palettization.granularity import PalettizationGranularity
from mlopt.torch.palettization.module_configs import (
    ModulePostTrainingPalettizerConfig,
    ModuleSKMPalettizerConfig,
)

CLASSES = [ModulePostTrainingPalettizerConfig, ModuleSKMPalettizerConfig]
GROUPED = {"granularity": "per_grouped_channel"}

both = pytest.mark.parametrize("config_type", CLASSES)


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.torch.palettization")


def refusal(*args, **kwargs) -> str:
    messages = set()
    for config_type in CLASSES:
        with pytest.raises(ConfigError) as caught:
            config_type(*args, **kwargs)
        messages.add(str(caught.value))
    (message,) = messages
    return message


def configs(config_type=ModulePostTrainingPalettizerConfig):
    def build(groups, length, scale, **rest):
        grouped = {} if groups is None else GROUPED | {"group_size": groups * (length or 1)}
        has_scale = scale and (length or 1) == 1
        return config_type(
            **grouped, cluster_dim=length, enable_per_channel_scale=has_scale, **rest
        )

    own = {}
    if config_type is ModulePostTrainingPalettizerConfig:
        own = {"enable_fast_kmeans_mode": st.booleans(), "rounding_precision": st.integers(0, 9)}
    return st.builds(
        build,
        groups=st.none() | st.integers(1, 64),
        length=st.none() | st.integers(1, 4),
        scale=st.booleans(),
        n_bits=st.sampled_from(NBITS),
        lut_dtype=st.sampled_from([None, torch.int8, torch.uint8]),
        channel_axis=st.sampled_from([0, 1]),
        **own,
    )


# --- granularity ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def their_granularity():
    module = pytest.importorskip("coremltools.optimize.torch.optimization_config")
    return module.PalettizationGranularity


def test_granularity_has_the_members_of_coremltools(their_granularity):
    theirs = [(member.name, member.value) for member in their_granularity]
    assert [(member.name, member.value) for member in PalettizationGranularity] == theirs


@pytest.mark.parametrize(
    "value",
    [
        "per_grouped_channel",
        "PER_GROUPED_CHANNEL",
        Granularity.PER_GROUPED_CHANNEL,
        enum.Enum("Theirs", {"PER_GROUPED_CHANNEL": 3}).PER_GROUPED_CHANNEL,  # type: ignore[attr-defined]
    ],
)
def test_granularity_by_name_and_by_a_like_named_member(value):
    assert PalettizationGranularity(value) is PalettizationGranularity.per_grouped_channel


def test_granularity_of_both_torch_sides_and_core_ml_are_one(their_granularity):
    ours = PalettizationGranularity.per_grouped_channel
    assert PalettizationGranularity(their_granularity.per_grouped_channel) is ours
    assert ours == Granularity.PER_GROUPED_CHANNEL == "per_grouped_channel" == str(ours)
    assert hash(ours) == hash(Granularity.PER_GROUPED_CHANNEL)
    assert Granularity.parse(ours) is Granularity.PER_GROUPED_CHANNEL


@pytest.mark.parametrize("value", ["per_channel", "", None, 1])
def test_granularity_that_palettes_lack(value):
    with pytest.raises(ConfigError, match="one of per_tensor, per_grouped_channel"):
        PalettizationGranularity(value)
    assert "granularity must be one of" in refusal(granularity=value)


# --- values --------------------------------------------------------------------------------------


@both
def test_signature_is_that_of_coremltools(reference, config_type):
    ours = inspect.signature(config_type).parameters
    theirs = inspect.signature(getattr(reference, config_type.__name__)).parameters
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


@both
def test_defaults_are_those_of_coremltools(reference, config_type):
    ours, theirs = config_type(), getattr(reference, config_type.__name__)()
    for field in attrs.fields(config_type):
        if field.name == "granularity":
            assert ours.granularity.name == theirs.granularity.name
        else:
            assert getattr(ours, field.name) == getattr(theirs, field.name)


@pytest.mark.parametrize("n_bits", NBITS)
def test_n_bits_that_a_table_can_have(n_bits):
    assert ModuleSKMPalettizerConfig(n_bits).n_bits == n_bits
    assert type(ModuleSKMPalettizerConfig(np.int8(n_bits)).n_bits) is int


@pytest.mark.parametrize("n_bits", [0, 5, 7, 16, -1, True, 4.0, "4"])
def test_n_bits_that_it_cannot_have(n_bits):
    assert refusal(n_bits=n_bits).startswith("n_bits must be")


def test_none_is_the_default():
    nothing = {
        f.name: None
        for f in attrs.fields(ModulePostTrainingPalettizerConfig)
        if f.name != "granularity"
    }
    config = ModulePostTrainingPalettizerConfig(**nothing)
    assert config.as_dict() == ModulePostTrainingPalettizerConfig().as_dict()
    assert config.n_bits == 4


@pytest.mark.parametrize("dtype", [torch.int8, "int8", "INT8", "torch.int8", np.int8])
def test_lut_dtype_is_kept_as_torchs(dtype):
    config = ModuleSKMPalettizerConfig(lut_dtype=dtype)
    assert config.lut_dtype is torch.int8
    assert config.lut_dtype_name == "int8"
    assert ModuleSKMPalettizerConfig().lut_dtype_name is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.qint8, "int4", "i8", 8, ""])
def test_lut_dtype_that_no_target_has(dtype):
    assert "lut_dtype must be None (the dtype of the weight) or one of int8, uint8" in refusal(
        lut_dtype=dtype
    )


def test_groups_and_their_size_belong_together():
    assert "group_size is required by granularity per_grouped_channel" in refusal(**GROUPED)
    message = refusal(group_size=8)
    assert "belongs to granularity per_grouped_channel only, got 8 with per_tensor" in message
    assert "set granularity='per_grouped_channel' or leave group_size out" in message
    assert ModuleSKMPalettizerConfig(**GROUPED, group_size=8).is_grouped
    assert not ModuleSKMPalettizerConfig().is_grouped


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8"])
def test_the_size_of_a_group_is_a_number_of_channels(size):
    assert "group_size must be an integer of at least 1" in refusal(**GROUPED, group_size=size)


@pytest.mark.parametrize("axis", [2, -1, True, "0", 1.0])
def test_channels_are_output_or_input_channels(axis):
    assert ModuleSKMPalettizerConfig(channel_axis=1).channel_axis == 1
    assert "channel_axis must be" in refusal(channel_axis=axis)


def test_vectors():
    assert ModuleSKMPalettizerConfig().cluster_dim is None
    assert ModuleSKMPalettizerConfig().vector_length == 1
    assert ModuleSKMPalettizerConfig(cluster_dim=4).vector_length == 4
    assert "cluster_dim must be an integer of at least 1, got 0" in refusal(cluster_dim=0)
    assert ModuleSKMPalettizerConfig(**GROUPED, group_size=8, cluster_dim=4)
    # weights are left alone for it, one by one, as coremltools leaves them
    assert ModuleSKMPalettizerConfig(**GROUPED, group_size=6, cluster_dim=4)


def test_vectors_have_no_scale():
    assert ModuleSKMPalettizerConfig(cluster_dim=1, enable_per_channel_scale=True)
    assert "got True with cluster_dim=2; use cluster_dim=1" in refusal(
        cluster_dim=2, enable_per_channel_scale=True
    )


def test_flags_are_booleans():
    assert "enable_per_channel_scale must be True or False" in refusal(enable_per_channel_scale=1)
    with pytest.raises(ConfigError, match="enable_fast_kmeans_mode must be True or False, got 'n"):
        ModulePostTrainingPalettizerConfig(enable_fast_kmeans_mode="no")


@pytest.mark.parametrize("precision", [-1, True, 3.0, "4"])
def test_rounding_precision_is_a_number_of_places(precision):
    assert ModulePostTrainingPalettizerConfig(rounding_precision=0).rounding_precision == 0
    with pytest.raises(ConfigError, match="rounding_precision must be an integer of at least 0"):
        ModulePostTrainingPalettizerConfig(rounding_precision=precision)


@pytest.mark.parametrize(
    "case",
    [
        {"n_bits": 4.0},
        {"lut_dtype": torch.float16},
        {"granularity": "per_channel"},
        {"granularity": "per_grouped_channel"},
        {"granularity": "per_grouped_channel", "group_size": 0},
        {"group_size": 8},
        {"channel_axis": 2},
        {"cluster_dim": 2, "enable_per_channel_scale": True},
    ],
)
def test_what_coremltools_refuses_is_refused(reference, case):
    for config_type in CLASSES:
        with pytest.raises((ValueError, TypeError, AssertionError)):
            getattr(reference, config_type.__name__)(**case)
    refusal(**case)


# --- a config as a value -------------------------------------------------------------------------


def test_a_config_is_a_value():
    config = ModulePostTrainingPalettizerConfig(6)
    assert config == ModulePostTrainingPalettizerConfig(n_bits=6)
    assert config != ModulePostTrainingPalettizerConfig(8)
    assert config != ModuleSKMPalettizerConfig(6)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.n_bits = 8
    with pytest.raises(ConfigError):
        attrs.evolve(config, n_bits=5)


def test_what_has_no_effect_makes_no_difference():
    config = ModulePostTrainingPalettizerConfig()
    rounded = ModulePostTrainingPalettizerConfig(enable_fast_kmeans_mode=False)
    same = [
        rounded,
        attrs.evolve(config, rounding_precision=2),
        attrs.evolve(config, cluster_dim=1),
    ]
    for other in same:
        assert other == config
        assert hash(other) == hash(config)
        assert other.as_dict() != config.as_dict()


def test_summary():
    assert ModuleSKMPalettizerConfig().summary == "4-bit kmeans, per tensor"
    assert ModuleSKMPalettizerConfig(channel_axis=1).summary == "4-bit kmeans, per tensor"
    config = ModuleSKMPalettizerConfig(2, "uint8", **GROUPED, group_size=8, cluster_dim=2)
    assert config.summary == "2-bit kmeans, groups of 8, vectors of 2, uint8 table"
    assert attrs.evolve(config, channel_axis=1).summary.endswith("table, along input channels")
    scaled = ModuleSKMPalettizerConfig(enable_per_channel_scale=True)
    assert scaled.summary == "4-bit kmeans, per tensor, per-channel scale"


# --- dictionaries and YAML -----------------------------------------------------------------------


def test_as_dict_has_every_parameter_as_a_plain_value():
    config = ModulePostTrainingPalettizerConfig(lut_dtype=torch.int8)
    assert config.as_dict() == {
        "n_bits": 4,
        "lut_dtype": "int8",
        "granularity": "per_tensor",
        "group_size": None,
        "channel_axis": 0,
        "cluster_dim": None,
        "enable_per_channel_scale": False,
        "enable_fast_kmeans_mode": True,
        "rounding_precision": 4,
    }
    assert type(config.as_dict()["granularity"]) is str


@given(st.one_of([configs(config_type) for config_type in CLASSES]))
def test_round_trip(config):
    values = config.as_dict()
    assert type(config).from_dict(values) == config
    assert type(config).from_dict(values).as_dict() == values
    assert type(config).from_yaml(io.StringIO(yaml.safe_dump(values))).as_dict() == values


@both
def test_coremltools_reads_what_is_written(reference, config_type):
    config = config_type(2, "int8", **GROUPED, group_size=8, channel_axis=1, cluster_dim=4)
    theirs = getattr(reference, config_type.__name__).from_dict(config.as_dict())
    assert (theirs.n_bits, theirs.lut_dtype, theirs.group_size) == (2, torch.int8, 8)
    assert config_type.from_dict(theirs.as_dict()) == config


@both
def test_from_dict_leaves_its_argument_alone(config_type):
    values = {"n_bits": 2, "lut_dtype": "torch.uint8"}
    before = dict(values)
    assert config_type.from_dict(values) == config_type(2, torch.uint8)
    assert values == before


@both
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nbits": 4}, "unknown key 'nbits'.*did you mean 'n_bits'"),
        ({"weight_threshold": 4}, "unknown key 'weight_threshold'; allowed: n_bits, lut_dtype"),
        ({"n_bits": 5}, "n_bits must be one of 1, 2, 3, 4, 6, 8, got 5"),
        ({1: 2}, "unknown key 1"),
        (4, "must be a mapping, got 4"),
        (None, "must be a mapping, got None"),
    ],
)
def test_from_dict_refuses(config_type, values, message):
    with pytest.raises(ConfigError, match=message):
        config_type.from_dict(values)


def test_rounding_belongs_to_post_training_only():
    with pytest.raises(ConfigError, match="unknown key 'rounding_precision'"):
        ModuleSKMPalettizerConfig.from_dict({"rounding_precision": 4})


@both
def test_yaml_files(tmp_path, config_type):
    path = tmp_path / "module.yaml"
    path.write_text("n_bits: 6\nlut_dtype: torch.int8\n")
    expected = config_type(6, torch.int8)
    assert config_type.from_yaml(path) == config_type.from_yaml(str(path)) == expected
    with open(path) as stream:
        assert config_type.from_yaml(stream) == expected
    assert config_type.from_yaml(io.StringIO("")) == config_type()
    path.write_text("n_bits: 6\nn_bits: 4\n")
    with pytest.raises(ConfigError, match=r"module\.yaml: the key 'n_bits' is repeated"):
        config_type.from_yaml(path)
