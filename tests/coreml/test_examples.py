"""The examples of coremltools' overview of palettization, with only the import line changed."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from tests import judges
from tests.coreml.conftest import converted, operations_by_name, quietly, saved, stored

# "import coremltools.optimize as cto" reads "import mlopt as cto"; nothing else differs.
THRESHOLD = """
import coremltools as ct
import mlopt as cto

# load model
mlmodel = ct.models.MLModel(uncompressed_model_path)

# define op config
op_config = cto.coreml.OpPalettizerConfig(nbits=6, weight_threshold=512)

# define optimization config by applying the op config globally to all ops
config = cto.coreml.OptimizationConfig(global_config=op_config)

# palettize weights
compressed_mlmodel = cto.coreml.palettize_weights(mlmodel, config)
"""
PER_OPERATION = """
import coremltools as ct
import mlopt as cto

mlmodel = ct.models.MLModel(uncompressed_model_path)

global_config = cto.coreml.OpPalettizerConfig(nbits=6)
linear_config = cto.coreml.OpPalettizerConfig(nbits=8)
config = cto.coreml.OptimizationConfig(
    global_config=global_config,
    op_type_configs={"linear": linear_config},
    op_name_configs={"conv1": None, "conv3": None},
)
compressed_mlmodel = cto.coreml.palettize_weights(mlmodel, config)
"""
WEIGHTS = {
    "conv1_w": (64, 16, 3, 3),
    "conv2_w": (64, 64, 3, 3),
    "conv3_w": (64, 64, 3, 3),
    "small_w": (16, 64, 1, 1),
    "linear_w": (32, 1024),
}


@pytest.fixture(scope="module")
def uncompressed_model_path(tmp_path_factory):
    generator = np.random.default_rng(0)
    values = {
        name: (generator.standard_normal(shape) / 8).astype(np.float16)
        for name, shape in WEIGHTS.items()
    }

    def body(x):
        for name in ("conv1", "conv2", "conv3", "small"):
            weight = mb.const(val=values[f"{name}_w"], name=f"{name}_w")
            x = mb.conv(x=x, weight=weight, pad_type="same", name=name)
        x = mb.reshape(x=x, shape=[1, 1024])
        weight = mb.const(val=values["linear_w"], name="linear_w")
        return mb.linear(x=x, weight=weight, name="linear1")

    folder = tmp_path_factory.mktemp("example")
    return str(saved(converted(body, (1, 16, 8, 8), "iOS15"), folder / "model.mlpackage"))


def run(source, path):
    names = {"uncompressed_model_path": path}
    quietly(exec, compile(source, "example", "exec"), names)
    return names


def bits(model):
    """Weight to bits, None for a const."""
    ops = operations_by_name(model)
    return {
        name: stored(model, name).nbits if ops[name].type != "const" else None for name in WEIGHTS
    }


def test_six_bits_above_512(uncompressed_model_path):
    names = run(THRESHOLD, uncompressed_model_path)
    compressed = names["compressed_mlmodel"]
    assert isinstance(compressed, ct.models.MLModel)
    assert bits(compressed) == dict.fromkeys(WEIGHTS, 6)
    assert bits(names["mlmodel"]) == dict.fromkeys(WEIGHTS)
    differences = judges.messages_equal_except(names["mlmodel"], compressed, WEIGHTS, raised=True)
    assert differences == []
    assert compressed.get_spec().specificationVersion == 7


def test_linear_at_eight_bits_and_two_convolutions_left_out(uncompressed_model_path):
    compressed = run(PER_OPERATION, uncompressed_model_path)["compressed_mlmodel"]
    assert bits(compressed) == {
        "conv1_w": None,
        "conv2_w": 6,
        "conv3_w": None,
        "small_w": None,  # 1024 elements, not more than 2048
        "linear_w": 8,
    }
    judges.load_program(compressed)


def test_the_example_as_it_is_in_coremltools_gives_the_same_choice(uncompressed_model_path):
    theirs = run(
        PER_OPERATION.replace("import mlopt as cto", "import coremltools.optimize as cto"),
        uncompressed_model_path,
    )["compressed_mlmodel"]
    ops = operations_by_name(theirs)
    chosen = {name for name in WEIGHTS if f"{name}_palettized" in ops}
    assert chosen == {"conv2_w", "linear_w"}


def test_import_forms(uncompressed_model_path):
    import mlopt.coreml as by_module
    from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights

    assert by_module.palettize_weights is palettize_weights
    model = quietly(ct.models.MLModel, uncompressed_model_path, skip_model_load=True)
    positional = OptimizationConfig(OpPalettizerConfig("uniform", 2, None, "per_tensor"))
    keyword = OptimizationConfig(
        global_config=OpPalettizerConfig(mode="UNIFORM", nbits=2, granularity="per_tensor")
    )
    assert positional == keyword
    compressed = palettize_weights(mlmodel=model, config=positional)
    assert bits(compressed)["conv1_w"] == 2
    setters = OptimizationConfig()
    setters.set_global(OpPalettizerConfig(nbits=4))
    setters.set_op_type("conv", OpPalettizerConfig(nbits=2))
    setters.set_op_name("conv3", None)
    assert bits(palettize_weights(model, setters)) == {
        "conv1_w": 2,
        "conv2_w": 2,
        "conv3_w": None,
        "small_w": None,
        "linear_w": 4,
    }


DICTIONARY = {
    "config_type": "OpPalettizerConfig",
    "global_config": {"mode": "kmeans", "nbits": 6},
    "op_type_configs": {"linear": {"mode": "uniform", "nbits": 8, "weight_threshold": 100}},
    "op_name_configs": {"conv1": None, "conv3": None},
}
YAML = """
config_type: OpPalettizerConfig
global_config:
  mode: kmeans
  nbits: 6
op_type_configs:
  linear:
    mode: uniform
    nbits: 8
    weight_threshold: 100
op_name_configs:
  conv1: null
  conv3: null
"""


def test_configurations_from_dictionaries_and_files(uncompressed_model_path, tmp_path):
    import copy

    import mlopt as cto

    given = copy.deepcopy(DICTIONARY)
    from_dict = cto.coreml.OptimizationConfig.from_dict(given)
    assert given == DICTIONARY
    file = tmp_path / "config.yaml"
    file.write_text(YAML)
    from_yaml = cto.coreml.OptimizationConfig.from_yaml(str(file))
    assert from_dict == from_yaml
    model = quietly(ct.models.MLModel, uncompressed_model_path, skip_model_load=True)
    expected = {"conv1_w": None, "conv2_w": 6, "conv3_w": None, "small_w": None, "linear_w": 8}
    first, second = (cto.coreml.palettize_weights(model, c) for c in (from_dict, from_yaml))
    assert bits(first) == bits(second) == expected
    table = stored(first, "linear_w").table.ravel().astype(float)
    np.testing.assert_allclose(np.diff(table), np.diff(table).mean(), rtol=0.2)


def test_coremltools_own_configuration_is_taken(uncompressed_model_path):
    import coremltools.optimize as theirs

    import mlopt as cto

    model = quietly(ct.models.MLModel, uncompressed_model_path, skip_model_load=True)
    palettized = [
        cto.coreml.palettize_weights(
            model, made_with.OptimizationConfig(made_with.OpPalettizerConfig(nbits=4))
        )
        for made_with in (theirs.coreml, cto.coreml)
    ]
    one, other = (result.get_spec().SerializeToString(deterministic=True) for result in palettized)
    assert one == other
