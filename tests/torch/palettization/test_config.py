import copy
import inspect
import io

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlopt.coreml import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.torch.palettization.config import PostTrainingPalettizerConfig, SKMPalettizerConfig
from mlopt.torch.palettization.module_configs import (
    ModulePostTrainingPalettizerConfig,
    ModuleSKMPalettizerConfig,
)
from tests.torch.palettization.test_module_configs import configs as module_configs

CLASSES = [PostTrainingPalettizerConfig, SKMPalettizerConfig]
FOUR = ModulePostTrainingPalettizerConfig(4)
SIX = ModulePostTrainingPalettizerConfig(6)

both = pytest.mark.parametrize("config_type", CLASSES)


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.torch.palettization")


class Linear(nn.Linear):
    """The name of another class, in another module."""


# --- what is given -------------------------------------------------------------------------------


@both
def test_parameters_are_those_of_coremltools(reference, config_type):
    ours = inspect.signature(config_type).parameters
    theirs = inspect.signature(getattr(reference, config_type.__name__)).parameters
    assert list(ours) == list(theirs)
    if config_type is SKMPalettizerConfig:
        assert ours["calibration_nsamples"].default == theirs["calibration_nsamples"].default


@both
def test_nothing_given_is_the_default_everywhere(reference, config_type):
    theirs = getattr(reference, config_type.__name__)()
    for config in (
        config_type(),
        config_type(None, {}, {}),
        config_type.from_dict({}),
        config_type.from_yaml(io.StringIO("")),
    ):
        assert config.global_config == config_type.module_config()
        assert config.global_config.n_bits == theirs.global_config.n_bits


@both
def test_any_rule_replaces_the_default(reference, config_type):
    for rules in ({"module_type_configs": {nn.Linear: None}}, {"module_name_configs": {"a": None}}):
        assert config_type(**rules).global_config is None
        assert getattr(reference, config_type.__name__)(**rules).global_config is None
    # as in coremltools, what is set later does not
    assert config_type().set_module_name("a", None).global_config is not None


@both
def test_what_is_written_as_none_stays_none(config_type):
    assert config_type.from_dict({"global_config": None}).global_config is None
    config = config_type().set_global(None)
    assert config_type.from_dict(config.as_dict()) == config


def test_rules_as_objects_mappings_and_none():
    expected = PostTrainingPalettizerConfig(FOUR, {nn.Linear: SIX, nn.Conv2d: None}, {"a": FOUR})
    plain = PostTrainingPalettizerConfig(
        {"n_bits": 4}, {nn.Linear: {"n_bits": 6}, nn.Conv2d: None}, {"a": {}}
    )
    mixed = PostTrainingPalettizerConfig.from_dict(
        {
            "global_config": FOUR,
            "module_type_configs": {nn.Linear: SIX, nn.Conv2d: None},
            "module_name_configs": {"a": {"n_bits": 4}},
        }
    )
    assert expected == plain == mixed
    assert isinstance(plain.module_name_configs["a"], ModulePostTrainingPalettizerConfig)


@both
def test_set_rules(config_type):
    four, six = config_type.module_config(4), config_type.module_config(6)
    config = config_type()
    returned = (
        config.set_global(None)
        .set_module_type(nn.Linear, four)
        .set_module_type(object_type="Conv2d", opt_config={"n_bits": 6})
        .set_module_name(module_name="conv1", opt_config=None)
        .set_global(global_config=six)
    )
    assert returned is config
    assert config == config_type(six, {nn.Linear: four, "Conv2d": six}, {"conv1": None})


def test_a_rule_replaces_an_earlier_one():
    config = PostTrainingPalettizerConfig()
    config.set_module_name("a", FOUR).set_module_name("a", None)
    config.set_module_type(nn.Linear, FOUR).set_module_type("torch.nn.Linear", SIX)
    assert config.module_name_configs == {"a": None}
    assert config.module_type_configs == {nn.Linear: SIX}


def test_assigned_rules_are_read_too():
    config = PostTrainingPalettizerConfig()
    config.global_config = {"n_bits": 6}
    config.module_type_configs = {"torch.nn.Linear": {"n_bits": 6}}
    config.module_name_configs = None
    assert config == PostTrainingPalettizerConfig(SIX, {nn.Linear: SIX})
    with pytest.raises(ConfigError, match="global_config must be"):
        config.global_config = 4


def test_mappings_are_copied():
    mine = {"a": None}
    config = PostTrainingPalettizerConfig(module_name_configs=mine)
    config.set_module_name("b", None)
    assert mine == {"a": None}


@pytest.mark.parametrize("n", [0, -1, True, 2.0, "8", None])
def test_calibration_needs_samples(n):
    assert SKMPalettizerConfig(calibration_nsamples=1).calibration_nsamples == 1
    with pytest.raises(ConfigError, match="calibration_nsamples must be an integer of at least 1"):
        SKMPalettizerConfig(calibration_nsamples=n)


@pytest.mark.parametrize("wrong", [4, "kmeans", object(), ModuleSKMPalettizerConfig()])
def test_only_configs_of_the_palettizer_are_rules(wrong):
    wanted = "must be a ModulePostTrainingPalettizerConfig, a mapping of its parameters, or None"
    with pytest.raises(ConfigError, match=f"global_config {wanted}"):
        PostTrainingPalettizerConfig(wrong)
    with pytest.raises(ConfigError, match=rf"module_type_configs\['torch.nn.Linear'\] {wanted}"):
        PostTrainingPalettizerConfig(module_type_configs={nn.Linear: wrong})
    with pytest.raises(ConfigError, match=rf"module_name_configs\['a'\] {wanted}"):
        PostTrainingPalettizerConfig().set_module_name("a", wrong)
    with pytest.raises(ConfigError, match=wanted):
        PostTrainingPalettizerConfig().set_global(wrong)
    with pytest.raises(ConfigError, match=wanted):
        PostTrainingPalettizerConfig().set_module_type("Linear", wrong)


def test_configs_of_the_other_side_are_none_here():
    with pytest.raises(ConfigError, match=r"got a mlopt\.coreml\.op_config\.OpPalettizerConfig"):
        SKMPalettizerConfig(OpPalettizerConfig(nbits=4))


# --- keys ----------------------------------------------------------------------------------------


def test_a_loaded_class_has_one_key():
    config = PostTrainingPalettizerConfig(
        module_type_configs={"torch.nn.modules.linear.Linear": FOUR, "tests.nowhere.Net": FOUR}
    )
    assert list(config.module_type_configs) == [nn.Linear, "tests.nowhere.Net"]
    with pytest.raises(ConfigError, match=r"two keys for the same class, got 'torch\.nn\.Linear'"):
        PostTrainingPalettizerConfig(module_type_configs={nn.Linear: FOUR, "torch.nn.Linear": None})


@pytest.mark.parametrize("key", ["", None, 3, int, torch.relu, nn.Linear(1, 1)])
def test_keys_for_types_are_classes_or_names(key):
    with pytest.raises(ConfigError, match=r"a class of torch\.nn\.Module or the name of one, got"):
        PostTrainingPalettizerConfig(module_type_configs={key: None})
    with pytest.raises(ConfigError):
        PostTrainingPalettizerConfig().set_module_type(key, None)


def test_a_module_is_no_key_for_its_type():
    with pytest.raises(ConfigError, match="give its class, or name it in module_name_configs"):
        PostTrainingPalettizerConfig().set_module_type(nn.Linear(1, 1), None)


@pytest.mark.parametrize("key", [None, 3, nn.Linear])
def test_keys_for_names_are_text(key):
    with pytest.raises(ConfigError, match="must be the name of a module or a regular expression"):
        PostTrainingPalettizerConfig(module_name_configs={key: None})
    with pytest.raises(ConfigError):
        PostTrainingPalettizerConfig().set_module_name(key, None)


def test_any_text_may_be_a_name():
    names = dict.fromkeys(["", "layers.0.conv", "*.conv", "a[", "conv(1"])
    assert PostTrainingPalettizerConfig(module_name_configs=names).module_name_configs == names


# --- dictionaries and YAML -----------------------------------------------------------------------

DICTIONARY = {
    "global_config": {"n_bits": 4, "granularity": "per_grouped_channel", "group_size": 4},
    "module_type_configs": {"Linear": {"n_bits": 6}, "Conv2d": None},
    "module_name_configs": {"conv1": None, r"layers\.\d+": {"n_bits": 8}},
}

PRINTED = """\
global_config:
  n_bits: 4
module_type_configs:
  Linear:
    n_bits: 6
module_name_configs:
  conv1: null
  conv3: null
calibration_nsamples: 64
"""


@both
def test_from_dict_leaves_its_argument_alone(config_type):
    values = copy.deepcopy(DICTIONARY)
    config = config_type.from_dict(values)
    assert values == DICTIONARY
    assert config == config_type.from_dict(values)
    assert list(config.module_name_configs) == ["conv1", r"layers\.\d+"]


def test_the_yaml_of_the_overview(tmp_path):
    path = tmp_path / "palettization_config.yaml"
    path.write_text(PRINTED)
    expected = SKMPalettizerConfig(
        ModuleSKMPalettizerConfig(4),
        {"Linear": ModuleSKMPalettizerConfig(6)},
        {"conv1": None, "conv3": None},
        calibration_nsamples=64,
    )
    assert SKMPalettizerConfig.from_yaml(str(path)) == expected
    assert SKMPalettizerConfig.from_yaml(path) == expected
    with open(path) as text, open(path, "rb") as binary:
        assert SKMPalettizerConfig.from_yaml(text) == expected
        assert SKMPalettizerConfig.from_yaml(binary) == expected
    with pytest.raises(ConfigError, match="unknown key 'calibration_nsamples'"):
        PostTrainingPalettizerConfig.from_yaml(path)


def test_classes_are_written_by_qualified_names():
    class Local(nn.Module):
        pass

    config = PostTrainingPalettizerConfig(
        module_type_configs={nn.Linear: None, Linear: FOUR, Local: None, "Conv2d": None}
    )
    here = __name__
    local = f"{here}.test_classes_are_written_by_qualified_names.<locals>.Local"
    written = config.as_dict()["module_type_configs"]
    assert list(written) == ["torch.nn.Linear", f"{here}.Linear", local, "Conv2d"]
    back = PostTrainingPalettizerConfig.from_dict(config.as_dict()).module_type_configs
    assert list(back) == [nn.Linear, Linear, local, "Conv2d"]


def configs():
    rules = st.none() | module_configs(ModuleSKMPalettizerConfig)
    types = st.sampled_from([nn.Linear, nn.Conv2d, Linear, "Linear", "Conv1d", "a.package.Net"])
    return st.builds(
        SKMPalettizerConfig,
        rules,
        st.dictionaries(types, rules, max_size=3),
        st.dictionaries(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])), rules),
        st.integers(1, 1000),
    )


@given(configs())
def test_round_trip(config):
    values = config.as_dict()
    assert SKMPalettizerConfig.from_dict(values) == config
    back = SKMPalettizerConfig.from_yaml(io.StringIO(yaml.safe_dump(values, sort_keys=False)))
    assert back == config
    assert back.as_dict() == values
    assert list(back.module_name_configs) == list(config.module_name_configs)


@both
def test_coremltools_reads_what_is_written(reference, config_type):
    ours = config_type.from_dict(DICTIONARY)
    theirs = getattr(reference, config_type.__name__).from_dict(ours.as_dict())
    assert theirs.global_config.group_size == 4
    assert theirs.module_type_configs[nn.Linear].n_bits == 6
    assert theirs.module_name_configs["conv1"] is None


@both
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"module_type_config": {}}, "did you mean 'module_type_configs'"),
        ({"op_type_configs": {}}, "did you mean 'module_type_configs'"),
        ({"n_bits": 4}, "'n_bits' is a parameter of a rule.*put it under 'global_config'"),
        ({"global_config": {"nbits": 4}}, "global_config: unknown key 'nbits'.*'n_bits'"),
        (
            {"module_type_configs": {"Linear": {"n_bits": 5}}},
            r"module_type_configs\['Linear'\]: n_bits must be",
        ),
        ({"module_name_configs": {"c": 4}}, r"module_name_configs\['c'\] must be a Module.*a mapp"),
        ({"module_type_configs": ["Linear"]}, "module_type_configs must be a mapping"),
        ({"module_name_configs": {1: None}}, "quotes"),
        (None, "must be a mapping, got None"),
        ([], "must be a mapping"),
    ],
)
def test_from_dict_refuses(config_type, values, message):
    with pytest.raises(ConfigError, match=message):
        config_type.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping"),
        ("a: [1", "not readable as YAML"),
        ("module_name_configs:\n  a: null\n  a: {n_bits: 4}\n", "'a' is repeated"),
        ("global_config: {n_bits: 5}", "n_bits must be one of"),
    ],
)
def test_errors_in_yaml_name_the_file(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        SKMPalettizerConfig.from_yaml(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        SKMPalettizerConfig.from_yaml(tmp_path / "none.yaml")
