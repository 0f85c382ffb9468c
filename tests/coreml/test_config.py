import copy
import io

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.requests.granularity import Granularity


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.coreml")


# --- dictionaries and YAML -----------------------------------------------------------------------


def op_configs():
    def build(mode, nbits, group_size, cluster_dim, lut_dtype, **rest):
        told = mode in ("kmeans", "uniform")
        return OpPalettizerConfig(
            mode=mode,
            nbits=nbits if told else None,
            group_size=group_size,
            cluster_dim=1 if mode == "uniform" else cluster_dim,
            lut_dtype=None if mode == "unique" else lut_dtype,
            **rest,
        )

    return st.builds(
        build,
        mode=st.sampled_from(["kmeans", "uniform", "unique"]),
        nbits=st.sampled_from([1, 2, 3, 4, 6, 8]),
        group_size=st.integers(0, 64),
        cluster_dim=st.integers(1, 4),
        granularity=st.sampled_from(list(Granularity)),
        channel_axis=st.none() | st.integers(-4, 3),
        enable_per_channel_scale=st.booleans(),
        num_kmeans_workers=st.integers(-1, 8),
        weight_threshold=st.integers(0, 10**9),
        lut_dtype=st.sampled_from([None, "int8", "uint8"]),
        on_indivisible=st.sampled_from(["skip", "divisor", "per_tensor"]),
    )


names = st.text(min_size=1, max_size=12).filter(
    lambda text: all(c.isprintable() or c == " " for c in text) and text != "const"
)
rules = st.dictionaries(names, st.none() | op_configs(), max_size=3)
configs = st.builds(OptimizationConfig, st.none() | op_configs(), rules, rules)


@given(op_configs())
def test_op_config_round_trip(config):
    values = config.as_dict()
    assert OpPalettizerConfig.from_dict(values) == config
    assert None not in values.values()


@given(configs)
def test_dict_round_trip(config):
    assert OptimizationConfig.from_dict(config.as_dict()) == config


@given(configs)
def test_yaml_round_trip_keeps_the_order_of_the_rules(config):
    back = OptimizationConfig.from_yaml(io.StringIO(config.to_yaml()))
    assert back == config
    assert list(back.op_name_configs) == list(config.op_name_configs)


DICTIONARY = {
    "config_type": "OpPalettizerConfig",
    "global_config": {"mode": "kmeans", "nbits": 4},
    "op_type_configs": {"conv": {"mode": "uniform", "nbits": 1}, "linear": None},
    "op_name_configs": {"conv_1": {"config_type": "OpPalettizerConfig", "mode": "unique"}},
}


def test_from_dict_leaves_its_argument_alone():
    given_ = copy.deepcopy(DICTIONARY)
    config = OptimizationConfig.from_dict(given_)
    assert given_ == DICTIONARY
    assert config == OptimizationConfig.from_dict(given_)
    assert config == OptimizationConfig(
        OpPalettizerConfig(nbits=4),
        {"conv": OpPalettizerConfig("uniform", 1), "linear": None},
        {"conv_1": OpPalettizerConfig("unique")},
    )


def test_coremltools_reads_what_is_written(reference):
    ours = OptimizationConfig.from_dict(DICTIONARY)
    theirs = reference.OptimizationConfig.from_dict(ours.as_dict())
    assert theirs.global_config == reference.OpPalettizerConfig(nbits=4)
    assert theirs.op_type_configs["linear"] is None
    assert theirs.op_name_configs["conv_1"].mode == "UNIQUE"


def test_everything_in_a_dictionary_is_optional():
    assert OptimizationConfig.from_dict({}) == OptimizationConfig()
    nothing = {"global_config": None, "op_type_configs": None, "op_name_configs": None}
    assert OptimizationConfig.from_dict(nothing) == OptimizationConfig(None, {}, {})


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        ({"op_name_config": {}}, "did you mean 'op_name_configs'"),
        ({"module_type_configs": {}}, "did you mean 'op_type_configs'"),
        ({"nbits": 4}, "put it under 'global_config'"),
        ({"global_config": {"n_bits": 4}}, r"global_config: unknown key 'n_bits'.*'nbits'"),
        ({"op_type_configs": {"conv": {"nbits": 5}}}, r"op_type_configs\['conv'\]: nbits must be"),
        ({"op_name_configs": {"c": 4}}, r"op_name_configs\['c'\]: .* must be a mapping, got 4"),
        ({"op_type_configs": ["conv"]}, "op_type_configs must be a mapping"),
        ({"op_name_configs": {1: None}}, "quotes"),
        ({"config_type": "OpPruner"}, "config_type must be one of OpPalettizerConfig, OpLinear"),
        ({"config_type": 3}, "config_type must be one of OpPalettizerConfig"),
        (
            {"op_type_configs": {"conv": {"config_type": "OpMagnitudePrunerConfig"}}},
            r"op_type_configs\['conv'\]: coremltools refuses an OpMagnitudePrunerConfig",
        ),
        (
            {"config_type": "OpLinearQuantizerConfig", "global_config": {"nbits": 4}},
            r"global_config: .*OpLinearQuantizerConfig: .*nbits",
        ),
        ({"global_config": {"mode": "custom", "lut_function": len}}, "set_global"),
        (None, "must be a mapping, got None"),
        ([], "must be a mapping"),
    ],
)
def test_from_dict_refuses(dictionary, message):
    with pytest.raises(ConfigError, match=message):
        OptimizationConfig.from_dict(dictionary)


def test_a_function_cannot_be_written():
    config = OptimizationConfig(
        op_name_configs={"a": OpPalettizerConfig(mode="custom", lut_function=len)}
    )
    with pytest.raises(ConfigError, match=r"op_name_configs\['a'\].*lut_function"):
        config.as_dict()
    with pytest.raises(ConfigError):
        config.to_yaml()


def test_yaml_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(DICTIONARY))
    expected = OptimizationConfig.from_dict(DICTIONARY)
    assert OptimizationConfig.from_yaml(path) == expected
    assert OptimizationConfig.from_yaml(str(path)) == expected
    with open(path) as text, open(path, "rb") as binary:
        assert OptimizationConfig.from_yaml(text) == expected
        assert OptimizationConfig.from_yaml(binary) == expected
    written = tmp_path / "written.yaml"
    text = expected.to_yaml(written)
    assert written.read_text() == text
    assert OptimizationConfig.from_yaml(written) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping, got None"),
        ("- 1\n", "must be a mapping"),
        ("kmeans", "must be a mapping"),
        ("a: [1", "not readable as YAML"),
        ("a: !!python/object:os.system {}", "not readable as YAML"),
        ("op_name_configs:\n  a: null\n  a: {nbits: 4}\n", "'a' is repeated in line 3"),
        ("global_config: {nbits: 5}", "nbits must be one of"),
    ],
)
def test_errors_in_yaml_name_the_file(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        OptimizationConfig.from_yaml(path)
    assert str(path) in str(caught.value)
    with open(path) as stream, pytest.raises(ConfigError, match=r"broken\.yaml"):
        OptimizationConfig.from_yaml(stream)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x00\xff\x80")
    with pytest.raises(ConfigError, match=r"model\.bin"):
        OptimizationConfig.from_yaml(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        OptimizationConfig.from_yaml(tmp_path / "none.yaml")


def test_anchors_and_merges_of_yaml():
    text = """
    op_name_configs:
      a: &four {nbits: 4}
      b: &vectors {nbits: 2, cluster_dim: 2}
      c: {<<: *four, <<: *vectors, mode: kmeans}
    """
    config = OptimizationConfig.from_yaml(io.StringIO(text))
    assert config.op_name_configs["c"].cluster_dim == 2


# --- the configuration of a model ----------------------------------------------------------------


def test_set_rules():
    four = OpPalettizerConfig(nbits=4)
    config = OptimizationConfig()
    config.set_global(four)
    config.set_op_type("conv", None)
    config.set_op_name("conv_1", four)
    assert config == OptimizationConfig(
        global_config=four, op_type_configs={"conv": None}, op_name_configs={"conv_1": four}
    )
    config.set_global(None)
    assert config.global_config is None
    config.set_global(op_config=four)
    config.set_op_type(op_type="conv", op_config=four)
    config.set_op_name(op_name="conv", op_config=four)


def test_mappings_are_copied():
    mine = {"conv": None}
    config = OptimizationConfig(op_type_configs=mine)
    config.set_op_type("linear", None)
    assert mine == {"conv": None}
    assert OptimizationConfig().op_type_configs is not OptimizationConfig().op_type_configs


def test_constants_have_no_type_of_their_own():
    with pytest.raises(ConfigError, match=r"'const'.*global_config"):
        OptimizationConfig(op_type_configs={"const": None})
    with pytest.raises(ConfigError, match="'const'"):
        OptimizationConfig().set_op_type("const", OpPalettizerConfig(nbits=4))
    OptimizationConfig(op_name_configs={"const": None})


@pytest.mark.parametrize("wrong", [4, "kmeans", {"nbits": 4}, object()])
def test_only_configs_are_configs(wrong):
    with pytest.raises(ConfigError, match="global_config must be an OpPalettizerConfig"):
        OptimizationConfig(wrong)
    with pytest.raises(ConfigError, match=r"op_name_configs\['a'\]"):
        OptimizationConfig(op_name_configs={"a": wrong})
    with pytest.raises(ConfigError):
        OptimizationConfig().set_op_type("a", wrong)
    with pytest.raises(ConfigError):
        OptimizationConfig().set_op_name("a", wrong)
    config = OptimizationConfig()
    with pytest.raises(ConfigError):
        config.global_config = wrong


@pytest.mark.parametrize("key", ["", None, 3])
def test_keys_are_names(key):
    with pytest.raises(ConfigError, match="must be a name"):
        OptimizationConfig(op_name_configs={key: None})
