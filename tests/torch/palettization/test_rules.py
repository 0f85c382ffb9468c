import sys
import types
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from mlopt.requests.rules import UnmatchedRule
from mlopt.torch.palettization.config import PostTrainingPalettizerConfig, SKMPalettizerConfig
from mlopt.torch.palettization.module_configs import ModulePostTrainingPalettizerConfig
from mlopt.torch.palettization.module_types import loaded_class, type_name
from mlopt.torch.palettization.rules import resolve, resolve_shared, unmatched_rules

Module = ModulePostTrainingPalettizerConfig
Config = PostTrainingPalettizerConfig
TWO, FOUR, EIGHT = (Module(n_bits=n_bits) for n_bits in (2, 4, 8))
LINEAR = nn.Linear(2, 2)


class Special(nn.Linear):
    """A class derived from one of torch's."""


class Linear(nn.Module):
    """Another class of a name that torch has too."""


def decided(config, name="layer", module=LINEAR):
    resolution = resolve(config, name, module)
    assert resolution.note is None
    return resolution.config, resolution.rule


# --- one module ----------------------------------------------------------------------------------


def test_nothing_said():
    assert decided(Config().set_global(None)) == (None, "no rule")


def test_the_default():
    assert decided(Config()) == (FOUR, "global_config")


def test_name_before_type_before_global():
    config = Config(TWO, {"Linear": FOUR}, {"layer": EIGHT})
    assert decided(config) == (EIGHT, "module_name_configs['layer']")
    del config.module_name_configs["layer"]
    assert decided(config) == (FOUR, "module_type_configs['Linear']")
    del config.module_type_configs["Linear"]
    assert decided(config) == (TWO, "global_config")


def test_none_in_a_rule_leaves_alone_what_global_would_take():
    assert decided(Config(FOUR, {nn.Linear: None})) == (
        None,
        "module_type_configs['torch.nn.Linear']",
    )
    assert decided(Config(FOUR, {nn.Linear: EIGHT}, {"layer": None}))[0] is None


def test_an_expression_has_to_match_the_whole_name():
    config = Config(TWO, None, {r"layers\.\d+\.conv": FOUR})
    assert decided(config, "layers.12.conv") == (
        FOUR,
        r"module_name_configs['layers\\.\\d+\\.conv']",
    )
    assert decided(config, "layers.12.conv1")[0] is TWO
    assert decided(config, "all.layers.1.conv")[0] is TWO


def test_an_exact_name_beats_an_expression_written_before_it():
    config = Config(None, None, {"layer.*": TWO, "layer1": EIGHT})
    assert decided(config, "layer1")[0] is EIGHT
    assert decided(config, "layer2")[0] is TWO


def test_the_first_written_expression_wins():
    assert decided(Config(None, None, {"l.*": TWO, ".*": FOUR}))[0] is TWO
    assert decided(Config(None, None, {".*": FOUR, "l.*": TWO}))[0] is FOUR


def test_the_empty_name_is_the_model_itself():
    config = Config(None, None, {"": EIGHT, "layer": FOUR})
    assert decided(config, "") == (EIGHT, "module_name_configs['']")


@pytest.mark.parametrize("name", ["*.conv", "a[", "conv(1", "a{99999999999}"])
def test_what_is_no_expression_is_a_name(name):
    config = Config(TWO, None, {name: EIGHT})
    assert decided(config, name)[0] is EIGHT
    assert decided(config, "layer")[0] is TWO


@pytest.mark.parametrize(
    "key", [nn.Linear, "Linear", "torch.nn.Linear", "torch.nn.modules.linear.Linear"]
)
def test_a_key_for_a_type_covers_derived_types(key):
    config = Config(TWO, {key: FOUR})
    assert decided(config, module=LINEAR)[0] is FOUR
    assert decided(config, module=Special(2, 2))[0] is FOUR
    assert decided(config, module=nn.Bilinear(2, 2, 2))[0] is TWO


def test_a_rule_reaches_a_parametrized_module():
    module = parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(module) is not nn.Linear
    assert decided(Config(TWO, {"Linear": FOUR}), module=module)[0] is FOUR


@pytest.mark.parametrize("base", [nn.Linear, "Linear", nn.Module])
def test_the_most_derived_type_wins(base):
    for special in (Special, "Special", f"{__name__}.Special"):
        for rules in ({base: TWO, special: EIGHT}, {special: EIGHT, base: TWO}):
            config = Config(None, rules)
            assert decided(config, module=Special(2, 2))[0] is EIGHT
            assert decided(config)[0] is TWO


def test_a_bare_name_covers_classes_of_any_package_and_a_qualified_one_wins():
    config = Config(TWO, {"Linear": FOUR})
    assert decided(config, module=Linear())[0] is FOUR
    config.set_module_type("torch.nn.Linear", EIGHT)
    assert decided(config, module=Linear())[0] is FOUR
    assert decided(config, module=LINEAR)[0] is EIGHT


def test_a_name_may_be_given_before_its_package_is_loaded(monkeypatch):
    config = Config(TWO, {"late.package.Net": FOUR})
    assert decided(config)[0] is TWO
    package = types.ModuleType("late.package")
    vars(package)["Net"] = Special
    monkeypatch.setitem(sys.modules, "late.package", package)
    assert decided(config, module=Special(2, 2)) == (
        FOUR,
        "module_type_configs['late.package.Net']",
    )


def test_a_class_that_its_module_does_not_offer_has_the_name_that_it_gives_itself():
    class Local(nn.Module):
        pass

    name = type_name(Local)
    assert "<locals>" in name
    assert loaded_class(name) is None
    assert decided(Config(TWO, {name: FOUR}), module=Local())[0] is FOUR


def test_classes_and_their_qualified_names():
    for cls in (nn.Linear, nn.MultiheadAttention, nn.Module, Special, Linear):
        assert loaded_class(type_name(cls)) is cls
    assert type_name(nn.Linear) == "torch.nn.Linear"
    for name in (
        "Linear",
        "torch.nn",
        "torch.nn.Linera",
        "torch.float32",
        "no.such.Class",
        "..",
        "",
    ):
        assert loaded_class(name) is None


@pytest.mark.parametrize("config_type", [PostTrainingPalettizerConfig, SKMPalettizerConfig])
def test_modules_get_what_coremltools_gives_them(config_type):
    reference = pytest.importorskip("coremltools.optimize.torch.palettization")
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3),
            block=nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4)),
            embedding=nn.Embedding(4, 4),
            head=nn.Linear(4, 4),
        )
    )
    names = {"conv1": None, r"block\.0": {"n_bits": 8}, "h.*": {"n_bits": 1}}
    cases = [
        {},
        {"global_config": {"n_bits": 2}},
        {"module_type_configs": {nn.Linear: {"n_bits": 6}}},
        {"module_type_configs": {"Linear": {"n_bits": 6}, "Conv2d": None}},
        {"module_name_configs": names},
        {
            "global_config": {"n_bits": 2},
            "module_type_configs": {"Conv2d": {"n_bits": 3}, nn.Linear: None},
            "module_name_configs": names,
        },
    ]
    for case in cases:
        ours = config_type.from_dict(case)
        theirs = getattr(reference, config_type.__name__).from_dict(case)
        for name, module in model.named_modules():
            wanted = theirs.get_module_config(name, module)
            got = resolve(ours, name, module).config
            assert (got and got.n_bits) == (wanted and wanted.n_bits)


# --- several modules with one parameter ----------------------------------------------------------

TIED = (("embed", nn.Embedding(2, 2)), ("head", LINEAR))


def test_agreement_has_no_note():
    for config in (
        Config(FOUR),
        Config(None, {"Embedding": FOUR, "Linear": Module(n_bits=4)}),
        Config(None, {"Embedding": FOUR, "Linear": Module(cluster_dim=1, rounding_precision=2)}),
        Config(FOUR, {"Embedding": FOUR}),
    ):
        resolution = resolve_shared(config, TIED)
        assert (resolution.config, resolution.note) == (FOUR, None)
    assert resolution.rule == "module_type_configs['Embedding']"


def test_the_more_specific_rule_wins():
    config = Config(EIGHT, {"Linear": None}, {"embed": TWO})
    resolution = resolve_shared(config, TIED)
    assert (resolution.config, resolution.rule) == (TWO, "module_name_configs['embed']")
    assert resolution.note == (
        "its users ask for different things, the more specific one wins: "
        "Embedding 'embed' 2-bit kmeans, per tensor (module_name_configs['embed']); "
        "Linear 'head' to be left alone (module_type_configs['Linear'])"
    )


def test_among_equals_the_more_careful_rule_wins():
    def winner(first, second):
        both = [
            resolve_shared(Config(None, {"Embedding": a, "Linear": b}), TIED)
            for a, b in ((first, second), (second, first))
        ]
        assert both[0].config == both[1].config
        assert "the more careful one wins" in both[0].note
        return both[0].config

    grouped = Module(granularity="per_grouped_channel", group_size=16)
    smaller = Module(granularity="per_grouped_channel", group_size=8)
    assert winner(FOUR, None) is None
    assert winner(FOUR, EIGHT) is EIGHT
    assert winner(FOUR, grouped) is grouped
    assert winner(grouped, smaller) is smaller
    assert winner(FOUR, Module(n_bits=8, cluster_dim=4)) is FOUR
    assert winner(FOUR, Module(lut_dtype="int8")) is FOUR


@given(st.data())
def test_the_order_of_the_modules_does_not_matter(data):
    choice = st.sampled_from([None, TWO, FOUR, EIGHT])
    config = Config(
        data.draw(choice),
        data.draw(st.dictionaries(st.sampled_from(["Linear", nn.Embedding, nn.Module]), choice)),
        data.draw(st.dictionaries(st.sampled_from(["embed", "h.*", ".*"]), choice)),
    )
    owners = [*TIED, ("other", nn.Conv2d(1, 1, 1))]
    shuffled = data.draw(st.permutations(owners))
    assert resolve_shared(config, shuffled).config == resolve_shared(config, owners).config


# --- rules without use ---------------------------------------------------------------------------

MODEL = nn.Sequential(
    OrderedDict(
        conv1=nn.Conv2d(1, 1, 1),
        relu1=nn.ReLU(),
        block=nn.Sequential(OrderedDict(head=nn.Linear(2, 2), norm=nn.LayerNorm(2))),
    )
)
MODULES = list(MODEL.named_modules())
WITH_WEIGHTS = {"conv1", "block.head"}


def unmatched(by_type=None, by_name=None):
    return unmatched_rules(Config(None, by_type, by_name), MODULES, WITH_WEIGHTS)


def test_rules_that_match():
    assert unmatched({nn.Linear: FOUR, "Conv2d": None}, {"conv1": None, r"block\..*": TWO}) == ()


def test_a_rule_that_a_more_specific_one_overrules_matches_all_the_same():
    assert unmatched({"Linear": FOUR}, {"block.head": None, ".*": TWO}) == ()


def test_rules_that_match_nothing():
    bare, qualified, name, other = unmatched(
        {"Conv2D": FOUR, nn.Conv1d: None}, {"conv_1": None, "zzz.*": FOUR}
    )
    assert bare == UnmatchedRule(
        "module_type_configs", "Conv2D", ("Conv2d",), "the model has no module of this type"
    )
    assert (qualified.key, qualified.near_matches[0]) == ("torch.nn.Conv1d", "torch.nn.Conv2d")
    assert name.reason == "the model has no module of this name"
    assert str(name) == (
        "module_name_configs['conv_1']: the model has no module of this name; did you mean 'conv1'?"
    )
    assert other.near_matches == ()


def test_a_module_without_weights_exists_all_the_same():
    by_type, by_name = unmatched({"ReLU": FOUR}, {"relu1": FOUR})
    assert (
        by_type.reason == "the model has modules of this type, but none with weights to palettize"
    )
    assert by_name.reason == "the model has a module of this name, but without weights to palettize"


def test_a_container_is_not_what_it_contains():
    block, model = unmatched(None, {"block": FOUR, "": FOUR})
    assert block.reason.endswith(r"of its own; those inside it have the names 'block\\..*'")
    assert model.reason.endswith("of its own; those inside it have the names '.*'")


def test_a_rule_in_the_wrong_place():
    by_type, by_name = unmatched({"conv1": FOUR}, {"Linear": FOUR})
    assert by_type.reason.endswith("put it under module_name_configs")
    assert by_name.reason.endswith("put it under module_type_configs")


def test_what_is_neither_name_nor_expression():
    (rule,) = unmatched(None, {"*.head": FOUR})
    assert rule.reason.startswith("the model has no module of this name, and it is not a regular")
    assert "nothing to repeat at position 0 (any text is '.*')" in rule.reason
