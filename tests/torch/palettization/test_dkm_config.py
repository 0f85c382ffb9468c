import copy
import inspect
import io
import itertools
import pickle

import attrs
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.torch.palettization.config import DKMPalettizerConfig, PostTrainingPalettizerConfig
from mlopt.torch.palettization.decisions import decide
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig
from mlopt.torch.palettization.module_configs import ModulePostTrainingPalettizerConfig
from mlopt.torch.palettization.rules import resolve, resolve_shared, unmatched_rules

Module = ModuleDKMPalettizerConfig
Config = DKMPalettizerConfig
GROUPED = {"granularity": "per_grouped_channel"}
NAMES = [field.name for field in attrs.fields(Module)]


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.torch.palettization")


def refusal(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        Module(**values)
    return str(caught.value)


# --- every parameter: its default, what it accepts and what it refuses ---------------------------


def test_names_order_and_defaults_are_those_of_coremltools(reference):
    ours = inspect.signature(Module).parameters
    theirs = inspect.signature(reference.ModuleDKMPalettizerConfig).parameters
    assert list(ours) == NAMES
    assert [name for name in NAMES if name not in OURS] == list(theirs)
    assert not any(ours[name].default for name in OURS)
    assert {n: ours[n].default for n in theirs} == {n: p.default for n, p in theirs.items()}
    config, their_config = Module(), reference.ModuleDKMPalettizerConfig()
    assert config.granularity.name == their_config.granularity.name
    for name in theirs:
        if name != "granularity":
            assert getattr(config, name) == getattr(their_config, name), name


def test_every_parameter_is_described():
    described = inspect.getdoc(Module).partition("Parameters\n")[2].partition("Raises\n")[0]
    headings = [line for line in described.splitlines() if line and line[0] not in " -"]
    assert ", ".join(headings).split(", ") == NAMES


FLAGS = [
    "enable_per_channel_scale",
    "quantize_activations",
    "enforce_zero",
    "add_extra_centroid",
    "palett_unique",
    "palett_shard",
    "palett_batch_mode",
    "palett_dist",
    "implicit_gradient",
]
OURS = ["implicit_gradient"]
"""What coremltools does not have."""
INTEGERS = {
    "weight_threshold": 0,
    "milestone": 0,
    "kmeans_max_iter": 1,
    "kmeans_opt1d_threshold": 0,
    "palett_min_tsize": 0,
    "kmeans_batch_threshold": 0,
    "kmeans_n_init": 1,
}
COUNTS_OR_NONE = ["cluster_dim", "partition_size"]
NUMBERS = ["prune_threshold", "palett_epsilon", "palett_lambda", "kmeans_error_bnd"]
SHARES = ["zero_threshold", "palett_cluster_tol"]
SHARES_ABOVE_ZERO = ["palett_max_mem", "percentage_palett_enable"]
WORDS = {
    "kmeans_init": ("auto", "opt1d", "kmeans++", "cpu.kmeans++"),
    "palett_mode": ("dkm", "gsm", "hard"),
    "per_channel_scaling_factor_scheme": ("min_max", "abs"),
}
SPECIAL = {"n_bits", "granularity", "group_size", "channel_axis", "quant_min", "quant_max"} | {
    "dtype",
    "lut_dtype",
    "cluster_permute",
    "palett_tau",
    "cluster_dtype",
}


def test_every_parameter_has_a_test():
    tables = [FLAGS, INTEGERS, COUNTS_OR_NONE, NUMBERS, SHARES, SHARES_ABOVE_ZERO, WORDS, SPECIAL]
    assert sorted(itertools.chain(*tables)) == sorted(NAMES)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_booleans(name):
    assert getattr(Module(**{name: True}), name) is True
    assert getattr(Module(**{name: np.bool_(False)}), name) is False
    for wrong in (1, 0, "true", None):
        assert f"{name} must be True or False, got" in refusal(**{name: wrong})


@pytest.mark.parametrize(("name", "minimum"), INTEGERS.items())
def test_integers(name, minimum):
    for value in (minimum, np.int64(minimum), 10**9):
        assert type(getattr(Module(**{name: value}), name)) is int
    for wrong in (minimum - 1, True, 2.0, "8", None):
        assert f"{name} must be an integer of at least {minimum}, got" in refusal(**{name: wrong})


@pytest.mark.parametrize("name", COUNTS_OR_NONE)
def test_counts_that_may_be_left_out(name):
    assert getattr(Module(**{name: 1}), name) == 1
    assert getattr(Module(**{name: None}), name) is None
    for wrong in (0, True, 2.0, "8"):
        assert f"{name} must be an integer of at least 1, got" in refusal(**{name: wrong})


@pytest.mark.parametrize("name", [*NUMBERS, *SHARES])
def test_numbers_from_zero(name):
    for value in (0, 0.5, np.float32(0.5)):
        kept = getattr(Module(**{name: value}), name)
        assert (type(kept), kept) == (float, value)
    for wrong in (-1e-9, float("nan"), float("inf"), True, "much", None):
        assert f"{name} must be a number of at least 0" in refusal(**{name: wrong})


@pytest.mark.parametrize("name", [*SHARES, *SHARES_ABOVE_ZERO])
def test_shares_end_at_one(name):
    assert getattr(Module(**{name: 1}), name) == 1.0
    assert "at most 1, got 1.5" in refusal(**{name: 1.5})


@pytest.mark.parametrize("name", [*SHARES_ABOVE_ZERO, "palett_tau"])
def test_numbers_above_zero(name):
    assert getattr(Module(**{name: 1e-9}), name) == 1e-9
    for wrong in (0, 0.0, -1.0, float("nan"), False, "a", None):
        assert f"{name} must be a number above 0" in refusal(**{name: wrong})


def test_a_number_that_yaml_takes_for_text():
    text = yaml.safe_load("palett_tau: 1e-6")
    assert text == {"palett_tau": "1e-6"}
    message = refusal(**text)
    assert "got '1e-6'; that is text: in YAML write 1.0e-06" in message
    assert "in YAML write 0.5" in refusal(palett_tau="0.5")
    assert Module.from_yaml(io.StringIO("palett_tau: 1.0e-06")).palett_tau == 1e-6


@pytest.mark.parametrize(("name", "words"), WORDS.items())
def test_words(name, words):
    for value in words:
        assert getattr(Module(**{name: value.upper()}), name) == value
    for wrong in ("topk", "nf4", "nf4_fit", "", None, 1):
        assert f"{name} must be one of {', '.join(words)}, got" in refusal(**{name: wrong})


def test_n_bits():
    for n_bits in NBITS:
        assert Module(np.int8(n_bits)).n_bits == n_bits
    assert Module(n_bits=None).n_bits is None
    for wrong in (0, 5, 7, 16, True, 4.0, "4"):
        assert refusal(n_bits=wrong).startswith("n_bits must be")


def test_n_bits_of_modules(reference):
    from coremltools.optimize.torch.palettization.palettization_config import (
        DEFAULT_PALETTIZATION_SCHEME as THEIRS,
    )

    small = {
        nn.Linear: nn.Linear(2, 2),
        nn.Conv1d: nn.Conv1d(1, 1, 1),
        nn.Conv2d: nn.Conv2d(1, 1, 1),
        nn.Conv3d: nn.Conv3d(1, 1, 1),
        nn.LayerNorm: nn.LayerNorm(2),
        nn.MultiheadAttention: nn.MultiheadAttention(2, 1),
        nn.Embedding: nn.Embedding(2, 2),
    }
    assert {c: Module().nbits_for(m) for c, m in small.items()} == {
        c: values["n_bits"] for c, values in THEIRS.items()
    }
    assert Module().nbits_for(small[nn.MultiheadAttention].out_proj) == 4
    assert Module().nbits_for(parametrizations.weight_norm(nn.Linear(2, 2))) == 4
    assert Module(n_bits=3).nbits_for(small[nn.Linear]) == 3


def test_groups():
    config = Module(**GROUPED, group_size=8)
    assert (config.is_grouped, config.group_size) == (True, 8)
    assert "group_size is required by granularity per_grouped_channel" in refusal(**GROUPED)
    assert "belongs to granularity per_grouped_channel only" in refusal(group_size=8)
    assert "group_size must be an integer of at least 1" in refusal(**GROUPED, group_size=0)
    assert "granularity must be one of" in refusal(granularity="per_channel")


def test_only_output_channels():
    assert Module(channel_axis=None).channel_axis == 0
    message = refusal(channel_axis=1)
    assert message.startswith("channel_axis must be 0, got 1")
    assert "only the output channel axis is supported by DKM" in message
    assert "channel_axis must be an integer" in refusal(channel_axis=True)


def test_vectors():
    assert Module().vector_length == 1
    assert Module(cluster_dim=4).vector_length == 4
    assert Module(**GROUPED, group_size=6, cluster_dim=4)  # weights are left alone for it
    assert "use cluster_dim=1" in refusal(cluster_dim=2, enable_per_channel_scale=True)


@pytest.mark.parametrize("dtype", [torch.quint8, "quint8", "torch.quint8", "QUINT8"])
def test_dtype_of_activations(dtype):
    assert Module(dtype=dtype, quant_min=0, quant_max=255).dtype is torch.quint8


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, "qint4", "i8", None, 8])
def test_dtype_that_activations_lack(dtype):
    assert "dtype must be one of qint8, quint8, float32, got" in refusal(dtype=dtype)


def test_codes():
    config = Module(quant_min=np.int8(-8), quant_max=7)
    assert (config.quant_min, config.quant_max) == (-8, 7)
    assert type(config.quant_min) is int
    for wrong in ({"quant_min": -129}, {"quant_max": 128}, {"quant_min": 5, "quant_max": 5}):
        assert "both codes of qint8, -128 to 127" in refusal(**wrong)
    message = refusal(dtype="quint8")
    assert "both codes of quint8, 0 to 255, got -128 and 127" in message
    assert "quant_min=0, quant_max=255" in message
    assert "quant_min must be an integer, got -8.0" in refusal(quant_min=-8.0)
    assert "quant_max must be an integer" in refusal(quant_max=True)


@pytest.mark.parametrize(
    ("short", "names", "in_spec"),
    [
        ("i8", ["I8", "int8", "torch.int8", torch.int8, np.int8, np.dtype("int8")], "int8"),
        ("u8", ["uint8", torch.uint8, np.uint8], "uint8"),
        ("f16", ["float16", torch.half, np.float16], None),
        ("bf16", ["bfloat16", torch.bfloat16], None),
        ("f32", ["float32", torch.float, np.float32, None], None),
    ],
)
def test_lut_dtype(short, names, in_spec):
    for name in (short, *names):
        config = Module(lut_dtype=name)
        assert config.lut_dtype == short
        assert config.lut_dtype_name == in_spec
    assert PaletteSpec(nbits=4, lut_dtype=config.lut_dtype_name)


@pytest.mark.parametrize("name", ["lut_dtype", "cluster_dtype"])
@pytest.mark.parametrize("dtype", ["i4", torch.qint8, torch.float64, "", 8, ["i8"]])
def test_what_tables_cannot_be_stored_in(name, dtype):
    assert f"{name} must be one of i8, u8, f16, bf16, f32" in refusal(**{name: dtype})


def test_the_older_name_of_lut_dtype():
    assert Module(cluster_dtype="int8") == Module(lut_dtype="i8")
    assert Module(cluster_dtype=torch.float16, lut_dtype="f16") == Module(lut_dtype="f16")
    assert Module(cluster_dtype="f32") == Module()
    assert attrs.evolve(Module(cluster_dtype="i8"), lut_dtype="u8") == Module(lut_dtype="u8")
    message = refusal(cluster_dtype="i8", lut_dtype="u8")
    assert "got 'i8' as well as lut_dtype='u8'; leave cluster_dtype out" in message
    assert "f32, oc_last, got 'i4'" in refusal(cluster_dtype="i4")


@pytest.mark.parametrize("order", [(1, 2, 3, 0), [1, 2, 3, 0], np.array([1, 2, 3, 0])])
def test_permutation(order):
    config = Module(cluster_permute=order)
    assert config.cluster_permute == (1, 2, 3, 0)
    assert {type(axis) for axis in config.cluster_permute} == {int}
    assert config.permutation_for(4) == (1, 2, 3, 0)
    assert config.permutation_for(2) is None
    assert Module().permutation_for(4) is None


@pytest.mark.parametrize("order", [(), (1, 2), (0, 0), (0, -1), (0.0, 1.0), "10", 1, (True, False)])
def test_what_is_no_permutation(order):
    assert "cluster_permute must be" in refusal(cluster_permute=order)


def test_output_channels_last():
    config = Module(cluster_dtype="oc_last", lut_dtype="i8")
    assert (config.cluster_dtype, config.lut_dtype, config.cluster_permute) == (
        "oc_last",
        "i8",
        None,
    )
    assert config.permutation_for(4) == (1, 2, 3, 0)
    assert config.permutation_for(2) == (1, 0)
    message = refusal(cluster_dtype="oc_last", cluster_permute=(1, 0))
    assert "stands for a cluster_permute, got it as well as (1, 0); keep one" in message


def test_partitions_as_groups():
    assert Module().group_size_for((16, 4, 3, 3)) is None
    assert Module(**GROUPED, group_size=8).group_size_for((16, 4, 3, 3)) == 8
    config = Module(partition_size=72)
    assert config.group_size_for((16, 4, 3, 3)) == 2
    assert config.group_size_for((4, 16, 3, 3), axis=1) == 2
    assert config.group_size_for((72, 1)) is config.group_size_for((2, 2)) is None
    kept = config.group_size_for((16, 50))
    assert kept == Keep(
        "partition_size 72 is not a multiple of the 50 elements of a channel",
        "partition_size is not a number of channels",
    )
    kept = Module(partition_size=72, cluster_dim=4).group_size_for((16, 36))
    assert isinstance(kept, Keep)
    assert kept.reason == "cluster_dim 4 does not divide the 2 channels of partition_size 72"
    message = refusal(partition_size=72, **GROUPED, group_size=8)
    assert "got 72 as well as group_size=8; leave partition_size out" in message


@pytest.mark.parametrize(
    "case",
    [
        {"n_bits": 4.0},
        {"weight_threshold": "8"},
        {"granularity": "per_channel"},
        GROUPED,
        {"group_size": 8},
        {"channel_axis": 1},
        {"quantize_activations": 1},
        {"dtype": torch.int8},
        {"lut_dtype": 8},
        {"cluster_permute": 3},
        {"palett_tau": "1e-4"},
        {"per_channel_scaling_factor_scheme": "max"},
    ],
)
def test_what_coremltools_refuses_is_refused(reference, case):
    with pytest.raises((ValueError, TypeError, AssertionError)):
        reference.ModuleDKMPalettizerConfig(**case)
    refusal(**case)


# --- a config as a value -------------------------------------------------------------------------


def configs():
    def build(groups, length, scale, codes, permute, **rest):
        grouped = {} if groups is None else GROUPED | {"group_size": groups * (length or 1)}
        if groups is not None:
            rest.pop("partition_size", None)
        dtype, (least, greatest) = codes
        if rest.get("palett_mode") == "gsm":
            rest["implicit_gradient"] = False
        if permute is not None:
            rest["cluster_permute" if isinstance(permute, tuple) else "cluster_dtype"] = permute
        return Module(
            **grouped,
            cluster_dim=length,
            enable_per_channel_scale=scale and (length or 1) == 1,
            dtype=dtype,
            quant_min=least,
            quant_max=greatest,
            **rest,
        )

    def codes(dtype, least, greatest):
        ordered = st.lists(st.integers(least, greatest), min_size=2, max_size=2, unique=True)
        return st.tuples(st.just(dtype), ordered.map(sorted))

    some = {
        **{name: st.booleans() for name in FLAGS if name != "enable_per_channel_scale"},
        **{name: st.integers(minimum, 10**6) for name, minimum in INTEGERS.items()},
        **{name: st.floats(0, 1e9) for name in NUMBERS},
        **{name: st.floats(0, 1) for name in SHARES},
        **{name: st.floats(0, 1, exclude_min=True) for name in SHARES_ABOVE_ZERO},
        **{name: st.sampled_from(words) for name, words in WORDS.items()},
        "palett_tau": st.floats(0, 1e9, exclude_min=True),
        "n_bits": st.none() | st.sampled_from(NBITS),
        "lut_dtype": st.sampled_from(["i8", "u8", "f16", "bf16", "f32"]),
        "partition_size": st.none() | st.integers(1, 10**6),
    }
    return st.builds(
        lambda given, rest: build(**given, **rest),
        st.fixed_dictionaries(
            {
                "groups": st.none() | st.integers(1, 64),
                "length": st.none() | st.integers(1, 4),
                "scale": st.booleans(),
                "codes": codes(torch.qint8, -128, 127) | codes("quint8", 0, 255),
                "permute": st.none() | st.just("oc_last") | st.permutations(range(4)).map(tuple),
            }
        ),
        st.fixed_dictionaries({}, optional=some),
    )


@given(configs())
def test_round_trip(config):
    values = config.as_dict()
    optional = ("partition_size", "cluster_dtype", *OURS)
    without = {name for name in optional if not getattr(config, name)}
    assert list(values) == [name for name in NAMES if name not in without]
    assert Module.from_dict(values) == config
    assert Module.from_dict(values).as_dict() == values
    assert Module.from_yaml(io.StringIO(yaml.safe_dump(values))) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == attrs.evolve(config)


@given(configs())
def test_coremltools_reads_what_is_written(config):
    reference = pytest.importorskip("coremltools.optimize.torch.palettization")
    config = attrs.evolve(config, partition_size=None, cluster_dtype=None, implicit_gradient=False)
    theirs = reference.ModuleDKMPalettizerConfig.from_dict(config.as_dict())
    names = [name for name in NAMES if name not in ("granularity", *OURS)]
    assert {name: getattr(theirs, name) for name in names} == {
        name: getattr(config, name) for name in names
    }
    assert theirs.granularity.name == config.granularity.name
    assert Module.from_dict(theirs.as_dict()) == config


def test_a_config_is_a_value():
    config = Module(6, milestone=3)
    assert config == Module(n_bits=6, milestone=3, cluster_dim=1)
    assert hash(config) == hash(attrs.evolve(config, cluster_dim=1))
    assert config != Module(6)
    assert Module() != Module(4)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.n_bits = 8
    with pytest.raises(ConfigError):
        attrs.evolve(config, n_bits=5)


def test_plain_values():
    values = Module(lut_dtype=torch.int8, cluster_permute=[1, 0]).as_dict()
    assert (values["lut_dtype"], values["dtype"], values["granularity"]) == (
        "i8",
        "qint8",
        "per_tensor",
    )
    with pytest.raises(ConfigError, match=r"unknown key 'nbits'.*did you mean 'n_bits'"):
        Module.from_dict({"nbits": 4})


def test_summary():
    assert Module().summary == "2- or 4-bit differentiable kmeans, per tensor"
    config = Module(2, **GROUPED, group_size=8, cluster_dim=2, lut_dtype="i8")
    assert config.summary == ("2-bit differentiable kmeans, groups of 8, vectors of 2, int8 table")
    config = Module(4, milestone=10, lut_dtype="f16", dtype="quint8", quant_min=0)
    assert config.summary == (
        "4-bit differentiable kmeans, per tensor, f16 table, milestone 10, quant_min 0, "
        "dtype quint8"
    )


# --- configurations of models --------------------------------------------------------------------

PRINTED = {
    nn.Conv2d: [
        {"n_bits": 4, "cluster_dim": 4, "weight_threshold": 1000},
        {"n_bits": 2, "cluster_dim": 2, "weight_threshold": 300},
    ]
}
FOUR, TWO = (Module.from_dict(values) for values in PRINTED[nn.Conv2d])


def convolution(elements):
    return nn.Conv2d(1, elements, 1)


def asked(config, module, name="layer"):
    resolution = resolve(config, name, module)
    assert resolution.note is None
    return resolution.config or resolution.keep


def test_parameters_are_those_of_coremltools(reference):
    ours = inspect.signature(Config).parameters
    assert list(ours) == list(inspect.signature(reference.DKMPalettizerConfig).parameters)


def test_nothing_given_is_the_default_everywhere():
    for config in (Config(), Config(None, {}, {}), Config.from_dict({})):
        assert config.global_config == Module()
    assert Config.from_yaml(io.StringIO("")).global_config == Module()
    assert Config(module_type_configs=PRINTED).global_config is None
    assert Config.from_dict({"global_config": None}).global_config is None


def test_the_printed_example():
    config = Config.from_dict({"module_type_configs": PRINTED})
    assert config.module_type_configs == {nn.Conv2d: (TWO, FOUR)}
    assert asked(config, convolution(1001)) == FOUR
    assert asked(config, convolution(1000)) == TWO
    assert asked(config, convolution(301)) == TWO
    assert asked(config, convolution(300)) == Keep(
        "its weight has 300 elements, no more than weight_threshold 300 or 1000",
        "no more elements than weight_threshold",
    )
    rule = "module_type_configs['torch.nn.Conv2d']"
    assert resolve(config, "layer", convolution(300)).rule == rule
    assert asked(config, nn.Linear(100, 100)) is None


def test_modules_get_what_coremltools_gives_them(reference):
    ours = Config.from_dict({"module_type_configs": PRINTED})
    theirs = reference.DKMPalettizerConfig.from_dict({"module_type_configs": PRINTED})
    for elements in (300, 301, 1000, 1001):
        module = convolution(elements)
        # coremltools takes the last in the order of thresholds that is exceeded
        wanted = [
            config.n_bits
            for config in theirs.get_module_config("layer", module)
            if elements > config.weight_threshold
        ]
        got = resolve(ours, "layer", module).config
        assert (got and got.n_bits) == (wanted[-1] if wanted else None)


def test_a_list_is_kept_in_the_order_of_thresholds():
    for rule in ([FOUR, TWO], (TWO, FOUR), [TWO, FOUR.as_dict()]):
        config = Config(rule, {nn.Linear: rule}, {"a": rule})
        kept = (config.global_config, *config.module_type_configs.values())
        assert {*kept, *config.module_name_configs.values()} == {(TWO, FOUR)}
        assert config == Config((TWO, FOUR), {nn.Linear: (TWO, FOUR)}, {"a": (TWO, FOUR)})


def test_set_rules():
    config = Config()
    assert config.set_global([FOUR, TWO]).set_module_type("torch.nn.Linear", [FOUR]) is config
    config.set_module_name("a", [{"n_bits": 1}]).set_module_name("b", None)
    assert config.global_config == (TWO, FOUR)
    assert config.module_type_configs == {nn.Linear: (FOUR,)}
    assert config.module_name_configs == {"a": (Module(1),), "b": None}
    config.global_config = {"n_bits": 8}
    assert config.global_config == Module(8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "a list must hold one config or more, got an empty one"),
        ([FOUR, None], "got None in one; to leave modules alone, give None instead of a list"),
        ([FOUR, Module(8, 1000)], "must have different weight_threshold, got 1000, 1000"),
        ([{"n_bits": 5}], r"\[0\]: n_bits must be one of"),
        ([FOUR, [TWO]], r"\[1\] must be a ModuleDKMPalettizerConfig, a mapping"),
        (ModulePostTrainingPalettizerConfig(), "must be a ModuleDKMPalettizerConfig"),
        ("dkm", "must be a ModuleDKMPalettizerConfig"),
    ],
)
def test_rules_that_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"global_config.*{message}"):
        Config(wrong)
    with pytest.raises(ConfigError, match=rf"module_type_configs\['torch.nn.Linear'\].*{message}"):
        Config().set_module_type(nn.Linear, wrong)
    with pytest.raises(ConfigError, match=rf"module_name_configs\['a'\].*{message}"):
        Config.from_dict({"module_name_configs": {"a": wrong}})


def test_only_this_palettizer_has_lists():
    with pytest.raises(ConfigError, match=r"None \(leave alone\), got a builtins.list"):
        PostTrainingPalettizerConfig([ModulePostTrainingPalettizerConfig()])


def rules():
    return st.none() | configs() | st.lists(configs(), min_size=1, max_size=3).map(different)


def different(several):
    return [attrs.evolve(config, weight_threshold=n) for n, config in enumerate(several)]


@given(rules(), st.dictionaries(st.sampled_from([nn.Linear, "Conv2d", "a.package.Net"]), rules()))
def test_configurations_round_trip(rule, by_type):
    config = Config(rule, by_type, {"head": rule})
    values = config.as_dict()
    assert Config.from_dict(values) == config
    back = Config.from_yaml(io.StringIO(yaml.safe_dump(values, sort_keys=False)))
    assert back == config
    assert back.as_dict() == values


def test_coremltools_reads_a_written_configuration(reference):
    ours = Config(Module(4), PRINTED, {"conv1": None})
    values = ours.as_dict()
    values["module_type_configs"] = {"Conv2d": values["module_type_configs"]["torch.nn.Conv2d"]}
    theirs = reference.DKMPalettizerConfig.from_dict(values)
    assert [c.n_bits for c in theirs.module_type_configs["Conv2d"]] == [2, 4]


def test_yaml(tmp_path):
    path = tmp_path / "dkm.yaml"
    path.write_text(
        "global_config: {n_bits: 4, milestone: 10, dtype: qint8, cluster_permute: [1, 0]}\n"
        "module_type_configs:\n"
        "  Conv2d:\n"
        "    - {n_bits: 4, cluster_dim: 4, weight_threshold: 1000}\n"
        "    - {n_bits: 2, cluster_dim: 2, weight_threshold: 300}\n"
        "module_name_configs: {conv1: null}\n"
    )
    expected = Config(
        Module(4, milestone=10, cluster_permute=(1, 0)), {"Conv2d": [FOUR, TWO]}, {"conv1": None}
    )
    assert Config.from_yaml(path) == expected
    path.write_text("global_config: {palett_tau: 1e-5}")
    with pytest.raises(ConfigError, match=r"dkm\.yaml: global_config: palett_tau must be a number"):
        Config.from_yaml(path)


# --- which config a module gets ------------------------------------------------------------------


def test_a_single_config_has_a_threshold_too():
    config = Config()
    assert asked(config, nn.Linear(32, 64)) == Keep(
        "its weight has 2048 elements, no more than weight_threshold 2048",
        "no more elements than weight_threshold",
    )
    assert asked(config, nn.Linear(33, 64)) == Module(4)
    assert resolve(config, "layer", nn.Linear(2, 2)).rule == "global_config"
    assert asked(Config(Module(weight_threshold=0)), nn.Linear(1, 1)) == Module(4, 0)


def test_bits_of_the_decision_are_those_of_the_module():
    config = Config(Module(weight_threshold=0))
    assert asked(config, nn.Linear(2, 2)).n_bits == 4
    assert asked(config, convolution(2)).n_bits == 2
    assert config.global_config.n_bits is None


def test_all_weights_of_a_module_have_to_be_large():
    attention = nn.MultiheadAttention(64, 1, kdim=8, vdim=8)
    assert attention.k_proj_weight.numel() == 512 < attention.q_proj_weight.numel()
    assert asked(Config([Module(4, 512), Module(2, 511)]), attention) == Module(2, 511)
    kept = asked(Config(Module(4, 512)), attention)
    assert kept.reason.startswith("its k_proj_weight has 512 elements")
    assert asked(Config(Module(4, 512)), nn.MultiheadAttention(64, 1)) == Module(4, 512)


def test_a_module_too_small_for_its_rule_gets_no_other():
    config = Config(Module(8, 0), {nn.Conv2d: [FOUR, TWO]}, {"head": Module(1)})
    assert isinstance(asked(config, convolution(300)), Keep)
    assert isinstance(asked(config, nn.Linear(2, 2), "head"), Keep)
    assert asked(config, nn.Linear(2, 2)) == Module(8, 0)


def test_left_alone_by_a_rule_has_no_further_reason():
    resolution = resolve(Config(Module(), {nn.Linear: None}), "layer", nn.Linear(100, 100))
    assert (resolution.config, resolution.keep) == (None, None)
    resolution = resolve(Config().set_global(None), "layer", nn.Linear(100, 100))
    assert (resolution.keep, resolution.rule) == (None, "no rule")


def test_tied_modules():
    head = nn.Linear(64, 64)
    embedding = nn.Embedding(64, 64)
    embedding.weight = head.weight
    tied = [("embed", embedding), ("head", head)]
    resolution = resolve_shared(Config(), tied)
    assert resolution.config == Module(4)
    assert "Linear 'head' 4-bit differentiable kmeans" in resolution.note
    assert "Embedding 'embed' 2-bit differentiable kmeans" in resolution.note
    resolution = resolve_shared(Config(Module(4), {"Linear": Module(4, 4096)}), tied)
    assert (resolution.config, resolution.keep.category) == (
        None,
        "no more elements than weight_threshold",
    )
    assert resolution.rule == "module_type_configs['Linear']"
    reason = "its weight has 4096 elements, no more than weight_threshold 4096"
    assert f"'head' to be left alone ({resolution.rule}): {reason}" in resolution.note
    resolution = resolve_shared(Config(Module(4, 4096)), tied)
    assert (resolution.note, resolution.keep.reason) == (None, reason)
    resolution = resolve_shared(Config(Module(4), None, {"head": Module(8, 1)}), tied)
    assert (resolution.config, resolution.keep) == (Module(8, 1), None)


def test_the_more_careful_table_wins():
    embedding, head = nn.Embedding(64, 64), nn.Linear(64, 64)
    embedding.weight = head.weight
    tied = [("embed", embedding), ("head", head)]
    for first, second in itertools.permutations([Module(4), Module(4, lut_dtype="i8")]):
        config = Config(None, {"Embedding": first, "Linear": second})
        assert resolve_shared(config, tied).config == Module(4)


def test_rules_that_match_nothing():
    model = nn.Sequential(convolution(4), nn.Linear(4, 4))
    modules = list(model.named_modules())
    config = Config(None, {"Conv2d": [FOUR, TWO], "Conv1d": [FOUR]})
    (unmatched,) = unmatched_rules(config, modules, {"0", "1"})
    assert unmatched.key == "Conv1d"


def test_decisions_about_a_model():
    model = nn.Sequential(convolution(1200), convolution(4), nn.Linear(64, 64, bias=False))
    config = Config(Module(), {nn.Conv2d: [FOUR, TWO]})
    decisions, _ = decide(model, config)
    by_name = {decision.weight.name: decision.result for decision in decisions}
    assert by_name["0.weight"] == PaletteSpec(nbits=4, channel_axis=0, cluster_dim=4)
    assert isinstance(by_name["1.weight"], Keep)
    assert by_name["2.weight"] == PaletteSpec(nbits=4)
