import contextlib
import copy
import functools
import re
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

import mlopt.coreml as coreml
from mlopt.errors import ConfigError, TargetError
from mlopt.torch import convert, load_state_dict, remove_palettes
from mlopt.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig
from tests.judges import decompressed_constants, load_program, pymil_operations
from tests.torch.conversions import quietly
from tests.torch.networks import IDS, every_kind
from tests.torch.palettization.test_post_training import FORMS, palettized

INPUTS = [ct.TensorType("ids", shape=IDS.shape, dtype=np.int32)]
OLD_FORMS = ("4 bits",)


def converted(model, **options):
    return quietly(convert, model, IDS, inputs=INPUTS, **options)


@functools.cache
def network(form, dtype=torch.float32):
    """The network palettized in a form, and its report; shared, so a test must not change it."""
    return palettized(every_kind(dtype), **FORMS[form])


@functools.cache
def result(form, precision="FLOAT16", dtype=torch.float32):
    """That network converted; shared as well."""
    precision = getattr(ct.precision, precision)
    return converted(network(form, dtype)[0], compute_precision=precision)


def with_its_warning(model, *args, **kwargs):
    """What ``convert`` gives, and the one warning that is its own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = convert(model, *args, **kwargs)
    (own,) = (str(w.message) for w in caught if "palettized weights" in str(w.message))
    return found, own


def traced(model):
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return quietly(torch.jit.trace, model, IDS)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def plainly_converted(model, target, **options):
    return quietly(
        ct.convert,
        traced(model),
        inputs=INPUTS,
        minimum_deployment_target=getattr(ct.target, target),
        **options,
    )


def named(values):
    """Values by the name of the torch parameter: dots for underscores, no suffix of a cast."""
    everything = every_kind().named_parameters(remove_duplicate=False)
    names = {re.sub(r"\W", "_", name): name for name, _ in everything}
    found = {}
    for key, value in values.items():
        for short, name in names.items():
            if re.fullmatch(rf"(p_)?{short}(_1)?(_to_fp16|_cast_fp16)?", key):
                found[name] = value
    return found


def compressed_weights(model):
    """Materialised by coremltools: the constexpr operations that others than these read."""
    values = decompressed_constants(model)
    found = {}
    for op in pymil_operations(load_program(model).functions["main"]):
        users = [user.op_type for output in op.outputs for user in output.child_ops]
        is_weight = any(not user.startswith("constexpr_") for user in users)
        if op.op_type.startswith("constexpr_") and is_weight:
            found[op.outputs[0].name] = values[op.outputs[0].name]
    return named(found)


def assert_equal_weights(ours, theirs):
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.short("4 bits", "scale", "uint8 table in groups", "input vectors", "int8 table, scale")
@pytest.mark.parametrize("form", FORMS)
def test_float32_weights_are_those_of_the_modules_bit_for_bit(form):
    model, report = network(form)
    weights = compressed_weights(result(form, "FLOAT32"))
    assert set(weights) == {row.name for row in report.palettized}
    expected = {name: model.get_parameter(name).detach().numpy() for name in weights}
    assert_equal_weights(weights, expected)


# Tables of other widths and groups take the same way as these.
@pytest.mark.short("vectors", "int8 table, scale")
@pytest.mark.parametrize(
    "form", [form for form in FORMS if form not in ("4 bits", "output groups", "int8 table")]
)
def test_both_ways_to_core_ml_give_the_same_weights(form):
    """In float16; but both scales of one form round at other places, so that is in float32."""
    precision = "FLOAT32" if form == "int8 table, scale" else "FLOAT16"
    ours = result(form, precision)
    target = {7: "iOS16", 9: "iOS18"}[ours.get_spec().specificationVersion]
    theirs = plainly_converted(
        network(form)[0], target, compute_precision=getattr(ct.precision, precision)
    )
    assert_equal_weights(compressed_weights(ours), compressed_weights(theirs))
    # nothing else differs either
    ops = [
        [op.op_type for op in pymil_operations(load_program(m).functions["main"])]
        for m in (ours, theirs)
    ]
    kinds = [[o for o in each if o != "const" and not o.startswith("constexpr_")] for each in ops]
    assert kinds[0] == kinds[1]


@pytest.mark.short("torch.bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_float16_weights_without_scales_are_those_of_the_modules_rounded(dtype):
    model, _ = network("3 bits", dtype)
    weights = compressed_weights(result("3 bits", dtype=dtype))
    expected = {n: model.get_parameter(n).detach().float().half().numpy() for n in weights}
    assert len(weights) == 19
    assert_equal_weights(weights, expected)


@pytest.mark.long
def test_half_precision_weights_with_scales_are_those_of_the_modules():
    for form in ("scale", "int8 table, scale", "uint8 table in groups"):
        model, _ = network(form, torch.float16)
        weights = compressed_weights(result(form, dtype=torch.float16))
        assert_equal_weights(weights, {n: model.get_parameter(n).detach().numpy() for n in weights})


def test_float32_weights_with_scales_in_float16_are_products_of_rounded_factors():
    """What coremltools gives as well; one rounding away from the module's."""
    model, _ = network("scale")
    weights = compressed_weights(result("scale"))
    for name, weight in weights.items():
        expected = model.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(weight, expected, rtol=2**-9, atol=2**-24)


@pytest.mark.parametrize(
    ("form", "types"),
    [
        ("4 bits", ["constexpr_lut_to_dense"]),
        ("vectors", ["constexpr_lut_to_dense"]),
        ("scale", ["constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"]),
        ("int8 table", ["constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"]),
    ],
)
def test_operations_are_those_of_the_one_emission(form, types):
    _, report = network(form)
    operations = [
        op.op_type
        for op in pymil_operations(load_program(result(form)).functions["main"])
        if op.op_type.startswith("constexpr_")
    ]
    assert operations == types * len(report.palettized)


@pytest.mark.short("iOS18")
@pytest.mark.parametrize("target", ["iOS17", "iOS18", "iOS26"])
def test_targets(target):
    model, _ = network("4 bits")
    found = converted(model, minimum_deployment_target=target)
    version = {"iOS16": 7, "iOS17": 8, "iOS18": 9, "iOS26": 10}[target]
    assert found.get_spec().specificationVersion == version
    assert_equal_weights(compressed_weights(found), compressed_weights(result("4 bits")))


def test_the_default_target_is_the_one_that_the_palettes_need():
    for form, version in (("4 bits", 7), ("3 bits", 9), ("scale", 9)):
        assert result(form).get_spec().specificationVersion == version


@pytest.mark.parametrize("form", [form for form in FORMS if form not in OLD_FORMS])
def test_targets_that_cannot_express_a_palette_are_refused_with_all_of_them(form):
    model, report = network(form)
    with pytest.raises(TargetError, match="Use iOS18") as error:
        converted(model, minimum_deployment_target=ct.target.iOS17)
    named_ones = re.findall(r"^- (\S+): .* needs iOS18$", str(error.value), re.MULTILINE)
    # a group of all channels is one table, which needs no newer target
    newer = [
        row
        for row in report.palettized
        if row.group_size is not None or row.lut_dtype is not None or "groups" not in form
    ]
    assert set(named_ones) == {row.name for row in newer}


@pytest.mark.long
def test_traced_and_exported_models_are_converted_too():
    model, _ = network("4 bits")
    expected = compressed_weights(result("4 bits"))
    from_trace = quietly(convert, traced(model), inputs=INPUTS)
    assert_equal_weights(compressed_weights(from_trace), expected)
    exported = quietly(lambda: torch.export.export(model, (IDS,)).run_decompositions({}))
    from_export = compressed_weights(quietly(convert, exported))
    assert {re.sub("^head", "embedding", name) for name in from_export} == set(expected)
    for name, weight in from_export.items():
        assert np.array_equal(weight, expected[re.sub("^head", "embedding", name)])


def test_a_traced_file_still_has_its_palettes(tmp_path):
    quietly(torch.jit.save, traced(network("4 bits")[0]), tmp_path / "model.pt")
    loaded = quietly(torch.jit.load, tmp_path / "model.pt")
    weights = compressed_weights(quietly(convert, loaded, inputs=INPUTS))
    assert_equal_weights(weights, compressed_weights(result("4 bits")))


@pytest.mark.long
def test_a_state_can_be_loaded_into_a_plain_model(tmp_path):
    model, _ = network("int8 table, scale")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    plain = every_kind()
    load_state_dict(plain, torch.load(tmp_path / "state.pt", weights_only=True))
    assert list(plain.state_dict()) == list(model.state_dict())
    theirs = compressed_weights(converted(plain, compute_precision=ct.precision.FLOAT32))
    assert_equal_weights(theirs, compressed_weights(result("int8 table, scale", "FLOAT32")))


def test_a_state_that_does_not_fit_leaves_the_model_as_it_was():
    model, _ = palettized(every_kind(), n_bits=2)
    other = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ConfigError, match=r"no '0\.weight' in the state"):
        load_state_dict(other, model.state_dict())
    wrong = {name: t for name, t in model.state_dict().items()}
    wrong["key.weight"] = torch.zeros(3, 3)
    with pytest.raises(ConfigError, match=r"'key\.weight' is \[3, 3\] in the state, \[8, 16\]"):
        load_state_dict(every_kind(), wrong)
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


def test_the_model_stays_as_it_is():
    model, _ = palettized(every_kind(torch.bfloat16), n_bits=2)
    model.train()
    before = copy.deepcopy(model.state_dict())
    converted(model)
    assert model.training
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after["key.weight"].dtype == torch.bfloat16


def test_a_model_cast_after_it_was_palettized_is_converted():
    model, _ = palettized(every_kind(), **FORMS["int8 table, scale"])
    weights = compressed_weights(converted(model.half()))
    assert len(weights) == 19
    for name, weight in weights.items():
        expected = model.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(weight, expected, rtol=2**-9, atol=2**-23)


def test_a_weight_changed_after_it_was_palettized_is_refused():
    model, _ = palettized(every_kind(), n_bits=2)
    with torch.no_grad():
        model.key.weight[0, 0] += 0.25
    with pytest.raises(ConfigError, match=r"key\.weight: the weight is not the one"):
        converted(model)
    remove_palettes(model)
    assert not any("/" in name for name in model.state_dict())
    assert not compressed_weights(converted(model))


def test_damaged_palettes_are_refused():
    model, _ = palettized(every_kind(), n_bits=2)
    state = model.state_dict()
    key = "key._MLOPT_/weight/indices"
    for damage in (state[key][:-1], state[key].to(torch.int32)):
        damaged = copy.deepcopy(model)
        damaged.key._buffers["_MLOPT_/weight/indices"] = damage
        with pytest.raises(ConfigError, match=r"key\.weight: the palette.*is damaged"):
            converted(damaged)
    del model.key._buffers["_COREML_/weight/lut"]
    with pytest.raises(ConfigError, match=r"key\.weight: the palette.*is damaged"):
        converted(model)


def test_tables_beyond_float16_are_refused_and_fit_float32():
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    model, _ = palettized(model, n_bits=2)
    example = torch.zeros(1, 16)
    with pytest.raises(ConfigError, match=r"0\.weight.*float16.*FLOAT32"):
        quietly(convert, model, example)
    found = quietly(convert, model, example, compute_precision=ct.precision.FLOAT32)
    assert found.get_spec().specificationVersion == 7


def test_a_weight_that_the_program_does_not_use_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x)

    model, _ = palettized(Net(), n_bits=2)
    found, warned = with_its_warning(model, torch.zeros(1, 16))
    assert "does not have: unused.weight" in warned
    assert len(coreml.get_weights_metadata(found, weight_threshold=0)) == 2


def test_quantized_weights_are_not_taken_for_palettes():
    """Weights that coremltools quantized are in the same program, with operations alike."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    config = PostTrainingPalettizerConfig.from_dict({"module_name_configs": {"0": {"n_bits": 2}}})
    model = PostTrainingPalettizer(model, config).compress()
    weight = model[1].weight.detach()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    model[1].weight.data = (weight / scale).round() * scale
    model[1].register_buffer("_COREML_/weight/compression_type", torch.tensor([3]))
    model[1].register_buffer("_COREML_/weight/quantization_n_bits", torch.tensor(8))
    model[1].register_buffer("_COREML_/weight/quantization_scale", scale)
    for target in ("iOS17", "iOS18"):
        found = quietly(
            convert,
            model,
            torch.zeros(1, 16),
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
        )
        listed = coreml.get_weights_metadata(found, weight_threshold=100)
        assert len(listed) == 2
        values = {tuple(np.unique(w.val)[:3]): w.val for w in listed.values()}
        assert any(np.array_equal(v, model[0].weight.detach().numpy()) for v in values.values())
        quantized = model[1].weight.detach().numpy()
        assert any(np.allclose(v, quantized, rtol=1e-6) for v in values.values())


@pytest.mark.long
def test_many_palettes_keep_their_identity():
    """More than float16 has integers for."""
    count = 2050
    layers = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(count)))

    class Last(nn.Module):
        """Only some are in the program, so that the test is quick."""

        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            for index in (0, 1, 2046, 2047, 2048, 2049):
                x = self.layers[index](x)
            return x

    model, _ = palettized(Last(), n_bits=2)
    found, _ = with_its_warning(model, torch.zeros(1, 2), compute_precision=ct.precision.FLOAT32)
    values = [
        materialised
        for name, materialised in decompressed_constants(found).items()
        if name.startswith("layers_")
    ]
    expected = [layers_weight(model, index) for index in (0, 1, 2046, 2047, 2048, 2049)]
    for weight in expected:
        assert any(weight.shape == v.shape and np.array_equal(weight, v) for v in values)


def layers_weight(model, index):
    return model.layers[index].weight.detach().numpy()


@pytest.mark.long
def test_package_dir_holds_the_finished_model(tmp_path):
    model, _ = palettized(every_kind(), n_bits=2)
    path = tmp_path / "out.mlpackage"
    found = converted(model, package_dir=str(path))
    assert_equal_weights(compressed_weights(found), compressed_weights(path))
    assert [p.name for p in tmp_path.iterdir()] == ["out.mlpackage"]


def test_dictionaries_and_tuples_of_examples_give_the_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x, y):
            return self.linear(x) + y

    model, _ = palettized(Two(), n_bits=2)
    example = (torch.zeros(1, 16), torch.zeros(1, 16))
    found = quietly(convert, model, example)
    assert [i.name for i in found.get_spec().description.input] == ["x", "y"]
    found = quietly(convert, model, {"x": example[0], "y": example[1]})
    assert [i.name for i in found.get_spec().description.input] == ["x", "y"]


def test_wrong_arguments_are_refused():
    model, _ = palettized(every_kind(), n_bits=2)
    with pytest.raises(ConfigError, match="no example_inputs"):
        convert(model)
    with pytest.raises(ConfigError, match="convert_to='neuralnetwork'"):
        convert(model, IDS, convert_to="neuralnetwork")
    with pytest.raises(ConfigError, match="got str"):
        convert("model.pt", IDS)
    already = traced(model)
    with pytest.raises(ConfigError, match="traced already"):
        convert(already, IDS)
    with pytest.raises(TargetError, match="unknown deployment target"):
        quietly(convert, model, IDS, minimum_deployment_target="iOS12")


def test_models_without_palettes_are_left_to_coremltools():
    found = quietly(convert, nn.Sequential(nn.Linear(16, 16)), torch.zeros(1, 16))
    assert found.get_spec().specificationVersion == 6


@pytest.mark.short("4 bits")
@pytest.mark.parametrize("form", ["4 bits", "output groups"])
def test_the_older_recipes_are_lossless_too(form):
    """A model of few values a weight: coremltools' palettization passes, and unique after it."""
    model, report = palettized(every_kind(), **FORMS[form])
    for plain in (model, copy.deepcopy(model)):
        if plain is not model:
            remove_palettes(plain)
        converted_plain = quietly(
            ct.convert,
            traced(plain),
            inputs=INPUTS,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.DEFAULT_PALETTIZATION,
        )
        for name, weight in compressed_weights(converted_plain).items():
            assert np.array_equal(weight, model.get_parameter(name).detach().numpy())
    plain = copy.deepcopy(model)
    remove_palettes(plain)
    dense = plainly_converted(plain, "iOS18", compute_precision=ct.precision.FLOAT32)
    options = dict(FORMS[form])
    options.pop("n_bits")
    config = coreml.OptimizationConfig(
        global_config=coreml.OpPalettizerConfig(mode="unique", weight_threshold=0, **options)
    )
    found = coreml.palettize_weights(dense, config)
    weights = compressed_weights(found)
    # batch norm is folded into one, and attention across splits another
    assert set(weights) >= {row.name for row in report.palettized} - {
        "conv2.weight",
        "attention.in_proj_weight",
    }
    for name, weight in weights.items():
        if name != "conv2.weight":
            assert np.array_equal(weight, model.get_parameter(name).detach().numpy())


@contextlib.contextmanager
def unsearched(monkeypatch):
    from coremltools.optimize import _utils

    def refuse(*args, **kwargs):
        raise AssertionError("indices were searched for")

    with monkeypatch.context() as patch:
        patch.setattr(_utils, "find_indices_for_lut", refuse)
        yield


def test_nothing_is_searched(monkeypatch):
    model, _ = palettized(every_kind(), n_bits=2)
    with unsearched(monkeypatch):
        assert len(compressed_weights(converted(model))) == 19


class Uses(nn.Module):
    """A square weight, or a kernel, used in a way of its own."""

    def __init__(self, use, is_kernel):
        super().__init__()
        if is_kernel:
            self.conv = nn.Conv2d(4, 4, 3, bias=False)
        else:
            self.linear = nn.Linear(16, 16, bias=False)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


USES = {
    "x @ W": lambda m, x: x @ m.linear.weight,
    "x @ W + b": lambda m, x: x @ m.linear.weight + 1.5,
    "twice": lambda m, x: (x @ m.linear.weight) @ m.linear.weight,
    "transposed": lambda m, x: torch.cat([x, m.linear.weight.t()]),
    "permuted rows": lambda m, x: nn.functional.linear(
        x, m.linear.weight.view(4, 4, 16).transpose(0, 1).reshape(16, 16)
    ),
    "as a convolution": lambda m, x: nn.functional.conv2d(
        x.t()[None, :, :, None], m.linear.weight[:, :, None, None]
    ),
    "transposed kernel": lambda m, x: nn.functional.conv2d(
        x.reshape(1, 4, -1, 16), m.conv.weight.transpose(0, 1)
    ),
    "turned kernel": lambda m, x: nn.functional.conv2d(
        x.reshape(1, 4, -1, 16), m.conv.weight.permute(0, 1, 3, 2)
    ),
    "in a batch": lambda m, x: torch.bmm(x[None], m.linear.weight[None]),
    "added": lambda m, x: x + m.linear.weight.t()[:1],
    "sliced": lambda m, x: nn.functional.linear(x, m.linear.weight[3:9]),
}


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("use", USES)
@pytest.mark.covering(1)
def test_weights_that_the_program_transposes_or_reshapes_are_stored_as_they_are(use, target):
    """coremltools folds such operations into quantized weights, but not into palettes."""
    model, _ = palettized(Uses(USES[use], "kernel" in use).eval(), n_bits=4)
    example = torch.zeros(16, 16)
    inputs = [ct.TensorType("x", shape=example.shape)]
    ours = quietly(convert, model, example, inputs=inputs, minimum_deployment_target=target)
    theirs = quietly(
        lambda: ct.convert(
            torch.jit.trace(model, example),
            inputs=inputs,
            minimum_deployment_target=getattr(ct.target, target),
        )
    )
    assert meaning(ours) == meaning(theirs)


def meaning(model):
    """What a program computes, without names: each operation with what it reads.

    Constants, compressed ones as coremltools materialises them, stand as their values, and what
    other operations give as the place of those.
    """
    values = decompressed_constants(model)
    found, places = [], {}
    for op in pymil_operations(load_program(model).functions["main"]):
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            continue
        reads = []
        for parameter, bound in sorted(op.inputs.items()):
            for var in bound if isinstance(bound, (list, tuple)) else [bound]:
                if var is None or parameter == "name":
                    continue
                if var.name in places:
                    reads.append((parameter, places[var.name]))
                elif var.name in values:
                    reads.append((parameter, values[var.name].tobytes()))
                elif var.op is not None and var.val is not None:
                    reads.append((parameter, np.asarray(var.val).tobytes()))
                else:
                    reads.append((parameter, var.name))  # an input of the model
        for output in op.outputs:
            places[output.name] = len(places)
        found.append((op.op_type, *reads))
    return found


def test_examples_in_a_dictionary_may_stand_in_any_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, ids, mask):
            return self.linear(ids) - mask

    model, _ = palettized(Net(), n_bits=2)
    example = torch.zeros(1, 8)
    found = quietly(convert, model, {"mask": example, "ids": example})
    assert [i.name for i in found.get_spec().description.input] == ["ids", "mask"]
    operations = list(pymil_operations(load_program(found).functions["main"]))
    reads = {op.op_type: op for op in operations}
    casts = {op.outputs[0].name: op.x.name for op in operations if op.op_type == "cast"}
    first = reads["linear"].x.name
    assert casts.get(first, first) == "ids"
    with pytest.raises(ConfigError, match="got 'masks'; it has ids, mask"):
        convert(model, {"masks": example, "ids": example})


def test_buffers_that_the_model_writes_to_stay_as_they_are():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("count", torch.zeros(8))

        def forward(self, x):
            self.count += 1
            return self.linear(x) + self.count

    model, _ = palettized(Counting(), n_bits=2)
    quietly(convert, model, torch.zeros(1, 8))
    assert not model.count.any()


def test_an_input_that_is_returned_under_its_name_is_converted():
    model, _ = palettized(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)), n_bits=2)
    assert quietly(convert, model, torch.zeros(1, 16)).get_spec().specificationVersion == 7


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["scale", "uint8 table in groups"])
def test_models_that_are_cast_keep_their_palettes(form, first, then):
    model = nn.Sequential(nn.Linear(16, 16)).to(first)
    model, _ = palettized(model, **FORMS[form])
    found = quietly(
        convert, model.to(then), torch.zeros(1, 16), compute_precision=ct.precision.FLOAT32
    )
    (weight,) = (w.val for w in coreml.get_weights_metadata(found, 0).values() if w.compression)
    expected = model[0].weight.detach().float().numpy()
    loosest = max(torch.finfo(first).eps, torch.finfo(then).eps)
    np.testing.assert_allclose(weight, expected, rtol=4 * loosest, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_smallest_change_of_a_half_precision_weight_is_seen(dtype):
    model = nn.Sequential(nn.Linear(16, 16)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(2.0**-14)
    model, _ = palettized(model, n_bits=4)
    bits = model[0].weight.detach().view(torch.int16)
    bits[0, 0] += 1
    with pytest.raises(ConfigError, match="changed after it was palettized"):
        convert(model, torch.zeros(1, 16))


def test_a_state_can_be_loaded_into_a_model_of_another_dtype():
    model, _ = palettized(nn.Sequential(nn.Linear(16, 16)), **FORMS["int8 table, scale"])
    half = nn.Sequential(nn.Linear(16, 16)).half()
    load_state_dict(half, model.state_dict())
    assert quietly(convert, half, torch.zeros(1, 16)) is not None


def test_reparametrized_models_are_converted():
    """Old-style pruning and weight_norm leave computed tensors behind, which cannot be copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(nn.Linear(16, 16))
    pruned = nn.utils.prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5)
    model = nn.Sequential(normed, pruned, nn.Linear(16, 16))
    compressed, report = palettized(model, n_bits=2)
    assert "remove_weight_norm" in report["0.weight_v"].reason
    assert "prune.remove" in report["1.weight_orig"].reason
    assert [row.name for row in report.palettized] == ["2.weight"]
    found = quietly(convert, compressed, torch.zeros(1, 16))
    (kept,) = (w for w in coreml.get_weights_metadata(found, 0).values() if w.compression)
    assert kept.val.shape == (16, 16)


@pytest.mark.parametrize(
    ("options", "version"), [({}, 7), ({"n_bits": 3}, 9), ({"group_size": 4}, 9)], ids=str
)
def test_palettes_of_coremltools_get_the_target_that_they_need(options, version):
    from coremltools.optimize.torch import palettization as reference

    rule = {"n_bits": 2} | options
    if "group_size" in options:
        rule["granularity"] = "per_grouped_channel"
    config = reference.PostTrainingPalettizerConfig.from_dict({"global_config": rule})
    model = nn.Sequential(nn.Linear(16, 16))
    model = quietly(reference.PostTrainingPalettizer(model, config).compress)
    found = quietly(convert, model, torch.zeros(1, 16))
    assert found.get_spec().specificationVersion == version
    assert any(w.compression for w in coreml.get_weights_metadata(found, 0).values())


def test_package_dir_is_checked_before_the_conversion(tmp_path):
    model, _ = palettized(nn.Sequential(nn.Linear(16, 16)), n_bits=2)
    with pytest.raises(ConfigError, match=r"end in \.mlpackage"):
        convert(model, torch.zeros(1, 16), package_dir=str(tmp_path / "out"))
    (tmp_path / "out.mlpackage").mkdir()
    (tmp_path / "out.mlpackage" / "file").touch()
    with pytest.raises(ConfigError, match="must be new"):
        convert(model, torch.zeros(1, 16), package_dir=str(tmp_path / "out.mlpackage"))


def test_traced_models_cannot_lose_their_palettes():
    with pytest.raises(ConfigError, match="before the model is traced"):
        remove_palettes(traced(network("4 bits")[0]))
