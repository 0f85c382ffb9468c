"""coremltools' configs given to mlopt's palettizers, and what its classes offer besides."""

import copy
import itertools

import attrs
import pytest
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.torch import palettization as ours

FAMILIES = ("PostTrainingPalettizer", "SKMPalettizer", "DKMPalettizer")


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("coremltools.optimize.torch.palettization")


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 32)
    )


def parameters(config):
    return {field.name: getattr(config, field.name) for field in attrs.fields(type(config))}


# --- what coremltools' configs take

GRIDS = {
    "PostTrainingPalettizer": {
        "n_bits": [None, 1, 2, 3, 4, 6, 8],
        "lut_dtype": [None, "int8", torch.uint8, "torch.int8"],
        "granularity": ["per_tensor", "per_grouped_channel"],
        "group_size": [None, 1, 5, 32],
        "channel_axis": [0, 1],
        "cluster_dim": [None, 1, 4],
        "enable_per_channel_scale": [None, False, True],
        "enable_fast_kmeans_mode": [None, True, False],
        "rounding_precision": [None, 4],
    },
    "DKMPalettizer": {
        "n_bits": [None, 2, 4],
        "weight_threshold": [0, 2048],
        "granularity": ["per_tensor", "per_grouped_channel"],
        "group_size": [None, 1, 5, 32],
        "channel_axis": [None, 0],
        "cluster_dim": [None, 1, 4],
        "dtype": [torch.qint8, "quint8", torch.float32],
        "lut_dtype": ["f32", "f16", "b16", "i8", "u8"],
        "cluster_permute": [None, (1, 0, 2, 3)],
        "kmeans_init": ["auto", "opt1d", "kmeans++", "cpu.kmeans++"],
        "palett_mode": ["dkm", "gsm", "hard"],
        "per_channel_scaling_factor_scheme": ["min_max", "abs"],
    },
}
GRIDS["SKMPalettizer"] = {
    name: values
    for name, values in GRIDS["PostTrainingPalettizer"].items()
    if name not in ("enable_fast_kmeans_mode", "rounding_precision")
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_of_values_that_coremltools_takes_is_taken(family, theirs):
    name = f"Module{family}Config"
    taken = 0
    for one, other in itertools.combinations(GRIDS[family], 2):
        for values in itertools.product(GRIDS[family][one], GRIDS[family][other]):
            given = dict(zip((one, other), values, strict=True))
            if given.get("dtype") == "quint8":
                given |= {"quant_min": 0, "quant_max": 255}
            if "group_size" in given and given["group_size"] is not None:
                given.setdefault("granularity", "per_grouped_channel")
            try:
                reference = getattr(theirs, name)(**given)
            except (AssertionError, ValueError, TypeError):
                continue
            config = getattr(ours, f"{family}Config")(global_config=reference)
            assert config.global_config == getattr(ours, name)(**given)
            taken += 1
    assert taken > 150


# --- taken over


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_configuration_is_taken_over(family, theirs):
    wanted = getattr(theirs, f"Module{family}Config")
    reference = getattr(theirs, f"{family}Config")(
        global_config=wanted(n_bits=2),
        module_type_configs={nn.Linear: wanted(n_bits=6)},
        module_name_configs={"0": None, r"[2-3]": wanted(n_bits=3)},
    )
    palettizer = getattr(ours, family)(model(), reference)
    config = palettizer._config
    assert type(config) is getattr(ours, f"{family}Config")
    for name, module in model().named_modules():
        expected = reference.get_module_config(name, module)
        found = config.get_module_config(name, module)
        if expected is None:
            assert found is None
        else:
            assert found == getattr(ours, f"Module{family}Config")(**parameters(expected))


def test_it_palettizes_what_an_own_configuration_does(theirs):
    reference = theirs.PostTrainingPalettizerConfig.from_dict(
        {
            "global_config": {"n_bits": 2},
            "module_name_configs": {
                "4": {"n_bits": 4, "granularity": "per_grouped_channel", "group_size": 8}
            },
        }
    )
    own = ours.PostTrainingPalettizerConfig.from_dict(
        {
            "global_config": {"n_bits": 2},
            "module_name_configs": {
                "4": {"n_bits": 4, "granularity": "per_grouped_channel", "group_size": 8}
            },
        }
    )
    states = [
        ours.PostTrainingPalettizer(model(), config).compress().state_dict()
        for config in (reference, own)
    ]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_number_of_samples_and_lists_are_taken_over(theirs):
    reference = theirs.SKMPalettizerConfig.from_dict(
        {"global_config": {"n_bits": 2}, "calibration_nsamples": 16}
    )
    assert ours.SKMPalettizer(model(), reference)._config.calibration_nsamples == 16
    rules = {nn.Conv2d: [{"n_bits": 4, "weight_threshold": 1000}, {"weight_threshold": 300}]}
    reference = theirs.DKMPalettizerConfig.from_dict({"module_type_configs": rules})
    config = ours.DKMPalettizer(model(), reference)._config
    assert config == ours.DKMPalettizerConfig.from_dict({"module_type_configs": rules})
    assert [rule.weight_threshold for rule in config.module_type_configs[nn.Conv2d]] == [300, 1000]


def test_a_configuration_of_another_palettizer_is_refused(theirs):
    with pytest.raises(ConfigError, match="PostTrainingPalettizerConfig, or coremltools' class of"):
        ours.PostTrainingPalettizer(model(), theirs.SKMPalettizerConfig())
    with pytest.raises(ConfigError, match="global_config must be a ModuleSKMPalettizerConfig"):
        ours.SKMPalettizerConfig(theirs.ModuleDKMPalettizerConfig())


def test_what_core_ml_cannot_hold_names_the_rule(theirs):
    reference = theirs.PostTrainingPalettizerConfig(
        module_name_configs={"0": theirs.ModulePostTrainingPalettizerConfig(n_bits=5)}
    )
    with pytest.raises(ConfigError, match=r"module_name_configs\['0'\]: n_bits must be one of"):
        ours.PostTrainingPalettizer(model(), reference)


def test_a_vector_belongs_to_one_group():
    rule = {"granularity": "per_grouped_channel", "group_size": 8, "cluster_dim": 16}
    config = ours.PostTrainingPalettizerConfig.from_dict({"global_config": rule})
    palettizer = ours.PostTrainingPalettizer(model(), config)
    palettizer.compress()
    row = palettizer.report()["2.weight"]
    assert row.outcome == "kept"
    assert row.reason.startswith("cluster_dim 16 does not divide groups of 8 channels")


# --- what the classes offer besides


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_method_of_the_palettizers_is_there(family, theirs):
    reference, own = getattr(theirs, family), getattr(ours, family)
    assert {name for name in dir(reference) if not name.startswith("_")} <= set(dir(own))
    palettizer = own(model())
    # theirs tells only after a first use
    assert {nn.Linear, nn.Conv2d, nn.Embedding} <= set(palettizer.supported_modules)
    assert isinstance(nn.Conv2d(1, 1, 1), palettizer.supported_modules)


def test_a_policy_for_sharding_says_what_to_do():
    palettizer = ours.SKMPalettizer(model())
    for call in (
        lambda: palettizer.compute_sensitivity([], nn.MSELoss(), fsdp_auto_wrap_policy=object()),
        lambda: palettizer.compress([], nn.MSELoss(), fsdp_auto_wrap_policy=object()),
    ):
        with pytest.raises(ConfigError, match="shard the model first, FullyShardedDataParallel"):
            call()


def test_activations_need_a_dtype_with_codes():
    assert ours.ModuleDKMPalettizerConfig(dtype="float32").dtype == torch.float32
    with pytest.raises(ConfigError, match=r"got torch\.float32; use torch\.qint8"):
        ours.ModuleDKMPalettizerConfig(dtype=torch.float32, quantize_activations=True)


# --- metadata as coremltools registers it


@pytest.mark.parametrize("lut_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("more", [{}, {"enable_per_channel_scale": True}], ids=["plain", "scale"])
def test_tables_in_8_bits_are_described_as_coremltools_does(lut_dtype, more, theirs):
    from coremltools.optimize.torch._utils.metadata_utils import CompressionMetadata

    fields = []
    for library in (ours, theirs):
        rule = library.ModulePostTrainingPalettizerConfig(n_bits=2, lut_dtype=lut_dtype, **more)
        config = library.PostTrainingPalettizerConfig(global_config=rule)
        compressed = library.PostTrainingPalettizer(copy.deepcopy(model()), config).compress()
        state = {
            name.removeprefix("0."): tensor
            for name, tensor in compressed.state_dict().items()
            if name.startswith("0._COREML_")
        }
        kinds = state.pop("_COREML_/weight/compression_type").tolist()
        # theirs fails to convert what it says with a scale
        assert kinds == ([2] if library is ours and more else [2, 3])
        fields.append({name: tuple(tensor.shape) for name, tensor in state.items()})
        (metadata,) = CompressionMetadata.from_state_dict(state).values()
        assert int(metadata.quantization_n_bits) == 8
        # the table is what the codes stand for, in either library
        zero = 0.0 if metadata.zero_point is None else metadata.zero_point.double()
        codes = metadata.lut.double() / metadata.quantization_scale.double() + zero
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert (metadata.zero_point is None) == (lut_dtype == "int8")
    assert fields[0] == fields[1]


def test_tables_of_vectors_in_8_bits_are_converted_too():
    """coremltools fails on one that is described as in 8 bits."""
    import coremltools as ct
    import numpy as np

    from tests.torch.test_convert import quietly

    config = ours.PostTrainingPalettizerConfig.from_dict(
        {"global_config": {"n_bits": 4, "cluster_dim": 2, "lut_dtype": "int8"}}
    )
    x = torch.rand(1, 4, 8, 8)
    layers = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU()).eval()
    compressed = ours.PostTrainingPalettizer(layers, config).compress()
    found = quietly(
        ct.convert,
        quietly(torch.jit.trace, compressed, x),
        inputs=[ct.TensorType(shape=x.shape)],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
    )
    assert int(compressed[0].get_buffer("_COREML_/weight/quantization_n_bits")) == 8
    (lut,) = found._mil_program.find_ops(op_type="constexpr_lut_to_dense")
    assert lut.lut.shape == (1, 1, 1, 1, 16, 2)
    dense = lut.materialized_val_inference()
    assert np.array_equal(dense, compressed[0].weight.detach().numpy())
