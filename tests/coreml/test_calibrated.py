"""Palettization with a calibration: the answers of layers, their biases, and what is not known."""

from __future__ import annotations

import attrs
import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt import runtime
from mlopt.calibration import calibrate
from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize
from mlopt.errors import ConfigError
from tests import judges
from tests.coreml.conftest import global_config, quietly, saved
from tests.runtime.programs import convert

FEATURES, WIDTH = 24, 40
GENERATOR = np.random.default_rng(7)


def normal(*shape):
    return (GENERATOR.standard_normal(shape) / 4).astype(np.float32)


W0, W1, W2 = normal(WIDTH, FEATURES), normal(WIDTH, WIDTH), normal(WIDTH, WIDTH)
B0, SHARED = normal(WIDTH), normal(WIDTH)
_MIX = normal(FEATURES, FEATURES) + 0.1 * np.eye(FEATURES, dtype=np.float32)
SAMPLES = [
    {"x": (GENERATOR.standard_normal((32, FEATURES)) @ _MIX + 0.5).astype(np.float32)}
    for _ in range(16)
]


@pytest.fixture(scope="module", params=["iOS18", "iOS15"])
def source(request, tmp_path_factory):
    """At iOS15, it is raised in the same edit."""

    def program(x):
        bias = mb.const(val=SHARED, name="shared_bias")
        h = mb.relu(x=mb.linear(x=x, weight=W0, bias=B0, name="first"))
        h = mb.relu(x=mb.linear(x=h, weight=W1, bias=bias, name="second"))
        h = mb.relu(x=mb.linear(x=h, weight=W2, bias=bias, name="third"))
        return mb.matmul(x=h, y=np.ascontiguousarray(W1.T), name="last")

    model = convert(program, SAMPLES[0], target=request.param)
    return saved(model, tmp_path_factory.mktemp("calibrated") / "source.mlpackage")


@pytest.fixture(scope="module")
def calibration(source):
    return calibrate(source, SAMPLES)


def config(**options):
    return global_config(**{"nbits": 2, "weight_threshold": 100, **options})


def tapped(path, names):
    program = runtime.load(path)
    runs = [program.run(sample, taps=names).taps for sample in SAMPLES]
    return {name: np.concatenate([run[name].numpy() for run in runs]) for name in names}


def layers(path):
    """Input, weight, bias of the three linear layers, as coremltools decompresses them."""
    values = judges.decompressed_constants(path)
    program = judges.load_program(path)
    layers = {}
    for op in judges.pymil_operations(program.functions["main"]):
        if op.op_type == "linear":
            bias = values.get(op.bias.name, op.bias.val)
            layers[op.name] = (op.x.name, values[op.weight.name], bias)
    return layers


def errors(source, path):
    """Of each layer, with the float model's inputs: errors of its outputs [positions, outputs]."""
    before, after = layers(source), layers(path)
    inputs = tapped(source, [x for x, _, _ in before.values()])
    return {
        name: inputs[x].astype(np.float64) @ (after[name][1] - w).T.astype(np.float64)
        + (after[name][2] - bias)
        for name, (x, w, bias) in before.items()
    }


def test_outputs_are_nearer_than_by_the_weights_alone(source, calibration, tmp_path):
    made = {}
    for method in ("plain", "diagonal", "hessian"):
        given = None if method == "plain" else calibration
        result = palettize(
            source,
            config(),
            output=tmp_path / f"{method}.mlpackage",
            calibration=given,
            method=method,
            correct_biases=False,
        )
        assert {row.method for row in result.report.palettized} == {method}
        made[method] = {n: (e**2).sum() for n, e in errors(source, result.path).items()}
        sizes = [row.bytes_after for row in result.report]
        assert sizes == [row.bytes_after for row in palettize(source, config()).report]
    for name in ("first", "second", "third"):
        assert made["hessian"][name] < 0.8 * made["plain"][name]
        assert made["hessian"][name] < made["diagonal"][name]


def test_a_bias_takes_the_mean_error(source, calibration, tmp_path):
    corrected = palettize(
        source, config(), output=tmp_path / "a.mlpackage", calibration=calibration
    )
    kept = palettize(
        source,
        config(),
        output=tmp_path / "b.mlpackage",
        calibration=calibration,
        correct_biases=False,
    )
    after, before = errors(source, corrected.path), errors(source, kept.path)
    for name, error in after.items():
        scale = np.abs(before[name].mean(axis=0)).max()
        assert np.abs(error.mean(axis=0)).max() < 0.02 * scale
        assert (error**2).sum() < (before[name] ** 2).sum()
    rows = {row.name: row for row in corrected.report.palettized}
    assert sum(row.has_corrected_bias for row in rows.values()) == 3
    assert not any(row.has_corrected_bias for row in kept.report.palettized)
    # two layers shared a bias, and have one each now; nothing is left over
    biases = [bias for _, _, bias in layers(corrected.path).values()]
    assert not np.array_equal(biases[1], biases[2])
    assert "shared_bias" not in judges.decompressed_constants(corrected.path)


def test_the_row_has_the_error_of_the_outputs(source, calibration, tmp_path):
    result = palettize(source, config(), output=tmp_path / "a.mlpackage", calibration=calibration)
    measured = errors(source, result.path)
    inputs = layers(source)
    taps = tapped(source, [x for x, _, _ in inputs.values()])
    by_reader = {row.consumers[0]: row for row in result.report.palettized}
    for name, (x, weight, _) in inputs.items():
        centred = taps[x].astype(np.float64) - taps[x].astype(np.float64).mean(axis=0)
        power = ((centred @ weight.T.astype(np.float64)) ** 2).sum()
        wanted = 10 * np.log10(power / (measured[name] ** 2).sum())
        assert by_reader[f"linear({name})"].output_snr_db == pytest.approx(wanted, abs=0.2)


def pruned(model):
    return cto.prune_weights(
        model,
        cto.OptimizationConfig(
            cto.OpMagnitudePrunerConfig(target_sparsity=0.4, weight_threshold=100)
        ),
    )


def quantized(model):
    return cto.linear_quantize_weights(
        model,
        cto.OptimizationConfig(
            cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=100)
        ),
    )


@pytest.mark.parametrize("compress", [pruned, quantized])
def test_compressed_weights_are_fitted_too(source, tmp_path, compress):
    model = quietly(compress, ct.models.MLModel(str(source), skip_model_load=True))
    compressed = saved(model, tmp_path / "compressed.mlpackage")
    calibration = calibrate(compressed, SAMPLES)
    plain, fitted = (
        palettize(
            compressed,
            config(),
            output=tmp_path / f"{n}.mlpackage",
            joint_compression=True,
            calibration=given,
            minimum_deployment_target="iOS18",
        )
        for n, given in enumerate((None, calibration))
    )
    assert [row.method for row in fitted.report.palettized] == ["hessian"] * 4
    before, after = errors(compressed, plain.path), errors(compressed, fitted.path)
    for name in ("first", "second", "third"):
        assert (after[name] ** 2).sum() < 0.7 * (before[name] ** 2).sum()
        assert np.abs(after[name].mean(axis=0)).max() < 0.05 * np.abs(after[name]).max()
    if compress is pruned:
        zeros = {n: layer[1] == 0 for n, layer in layers(compressed).items()}
        assert all((layers(fitted.path)[n][1][zero] == 0).all() for n, zero in zeros.items())


def test_a_layer_without_a_bias_gets_one(tmp_path):
    def program(x):
        return mb.linear(x=x, weight=W0, name="only")

    source = saved(convert(program, SAMPLES[0], target="iOS18"), tmp_path / "s.mlpackage")
    result = palettize(
        source,
        config(),
        output=tmp_path / "a.mlpackage",
        calibration=calibrate(source, SAMPLES),
    )
    (error,) = errors(source, result.path).values()
    assert np.abs(error.mean(axis=0)).max() < 0.02 * np.abs(error).max()


def test_what_several_layers_read_keeps_its_bias(tmp_path):
    def program(x):
        weight = mb.const(val=normal(FEATURES, FEATURES), name="tied")
        h = mb.linear(x=x, weight=weight, bias=normal(FEATURES), name="first")
        return mb.linear(x=h, weight=weight, bias=normal(FEATURES), name="second")

    source = saved(convert(program, SAMPLES[0], target="iOS18"), tmp_path / "s.mlpackage")
    result = palettize(
        source,
        config(),
        output=tmp_path / "a.mlpackage",
        calibration=calibrate(source, SAMPLES),
    )
    (row,) = result.report.palettized
    assert (row.method, row.has_corrected_bias) == ("hessian", False)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_byte(source, calibration, tmp_path, workers):
    one, other = (
        palettize(
            source,
            config(),
            output=tmp_path / f"{n}.mlpackage",
            calibration=calibration,
            workers=w,
        )
        for n, w in enumerate((2, workers))
    )
    assert judges.messages_equal_except(one.path, other.path) == []


def test_a_calibration_of_another_model_is_refused(source, package_of, tmp_path):
    def program(x):
        return mb.linear(x=x, weight=normal(17, FEATURES), bias=normal(17), name="other")

    other = saved(convert(program, SAMPLES[0], target="iOS18"), tmp_path / "o.mlpackage")
    with pytest.raises(ConfigError, match="it was made of another model: calibrate"):
        palettize(
            source,
            config(),
            output=tmp_path / "a.mlpackage",
            calibration=calibrate(other, SAMPLES),
        )
    assert not (tmp_path / "a.mlpackage").exists()


def test_a_fine_tuned_copy_is_served_and_told(calibration, tmp_path):
    def program(x):
        h = mb.relu(x=mb.linear(x=x, weight=W0 * np.float32(1.5), bias=B0, name="first"))
        return mb.linear(x=h, weight=normal(WIDTH, WIDTH), bias=SHARED, name="second")

    source = saved(convert(program, SAMPLES[0], target="iOS18"), tmp_path / "s.mlpackage")
    result = palettize(source, config(), output=tmp_path / "a.mlpackage", calibration=calibration)
    assert {row.method for row in result.report.palettized} == {"hessian"}
    assert any("another version of the model" in note for note in result.report.notes)


def test_unknown_weights_are_named(source, calibration, tmp_path):
    some = attrs.evolve(calibration, weights=calibration.weights[:1])
    result = palettize(source, config(), output=tmp_path / "a.mlpackage", calibration=some)
    methods = [row.method for row in result.report.palettized]
    assert sorted(methods) == ["hessian", *["plain"] * (len(methods) - 1)]
    assert any("without statistics" in note for note in result.report.notes)


def test_a_file_serves_as_well(source, calibration, tmp_path):
    calibration.save(tmp_path / "m.calibration")
    one, other = (
        palettize(source, config(), output=tmp_path / f"{n}.mlpackage", calibration=given)
        for n, given in enumerate((calibration, tmp_path / "m.calibration"))
    )
    assert judges.messages_equal_except(one.path, other.path) == []


def test_forms_that_moments_cannot_refine_say_so(source, calibration, tmp_path):
    options = {"granularity": "per_grouped_channel", "group_size": 8, "channel_axis": 1}
    result = palettize(
        source,
        config(cluster_dim=2, **options),
        output=tmp_path / "a.mlpackage",
        calibration=calibration,
        minimum_deployment_target="iOS18",
    )
    rows = [row for row in result.report.palettized if "linear" in row.consumers[0]]
    assert {row.method for row in rows} == {"diagonal"}
    assert all("mean squares of its inputs alone" in row.note for row in rows)


def test_methods_that_need_a_calibration_are_refused_without(source):
    with pytest.raises(ConfigError, match="method 'hessian' needs a calibration"):
        palettize(source, config(), method="hessian")
    with pytest.raises(ConfigError, match="method must be one of"):
        palettize(source, config(), method="best")


def test_rules_have_methods_of_their_own(source, calibration, tmp_path):
    rules = config()
    rules.set_op_name("second", attrs.evolve(rules.global_config, method="plain"))
    rules.set_op_name("third", attrs.evolve(rules.global_config, method="diagonal"))
    result = palettize(source, rules, output=tmp_path / "a.mlpackage", calibration=calibration)
    methods = {row.consumers[0]: row.method for row in result.report.palettized}
    assert methods["linear(first)"] == "hessian"
    assert methods["linear(second)"] == "plain"
    assert methods["linear(third)"] == "diagonal"


def test_other_modes_are_as_they_were(source, calibration, tmp_path):
    rules = OptimizationConfig(
        global_config=OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=100)
    )
    one, other = (
        palettize(source, rules, output=tmp_path / f"{n}.mlpackage", calibration=given)
        for n, given in enumerate((None, calibration))
    )
    assert judges.messages_equal_except(one.path, other.path) == []


def test_guided_statistics_keep_the_outputs_of_the_model(tmp_path):
    """Half of the positions, with inputs of another kind, hardly reach the output."""
    mask = np.repeat([1.0, 0.05], 16)[:, None].astype(np.float32)
    parts = [4 * normal(6, FEATURES) for _ in mask[::16]]
    samples = [
        {
            "x": np.concatenate(
                [GENERATOR.standard_normal((16, 6)) @ part for part in parts]
            ).astype(np.float32)
        }
        for _ in range(16)
    ]
    model = convert(
        lambda x: mb.mul(x=mb.linear(x=x, weight=W0, name="only"), y=mask),
        samples[0],
        target="iOS18",
    )
    source = saved(model, tmp_path / "source.mlpackage")
    reference, noise = runtime.load(source), {}
    for statistics in ("hessian", "guided"):
        given = calibrate(source, samples, statistics=statistics)
        path = tmp_path / f"{statistics}.mlpackage"
        palettize(source, config(), output=path, calibration=given)
        changed = runtime.load(path)
        noise[statistics] = sum(
            np.square(next(iter(changed.predict(s).values())) - y).sum()
            for s in samples
            for y in reference.predict(s).values()
        )
    assert noise["guided"] < 0.7 * noise["hessian"]


def test_guided_statistics_are_reported(source, calibration):
    guided = calibrate(source, SAMPLES, statistics="guided")
    report = palettize(source, config(), calibration=guided).report
    assert {row.method for row in report.palettized} == {"guided"}
    assert sum(row.has_corrected_bias for row in report.palettized) == 3
    assert "by the calibration: guided 4, hessian 0, diagonal 0" in report.summary()
    same = palettize(source, config(), calibration=guided, method="guided").report
    assert [row.output_snr_db for row in same] == [row.output_snr_db for row in report]
    diagonal = palettize(source, config(), calibration=guided, method="diagonal").report
    assert {row.method for row in diagonal.palettized} == {"diagonal"}
    assert "guided" not in palettize(source, config(), calibration=calibration).report.summary()
    with pytest.raises(ConfigError, match="needs statistics 'guided', and the calibration has 'he"):
        palettize(source, config(), calibration=calibration, method="guided")
    with pytest.raises(ConfigError, match="method 'guided' needs a calibration, got None"):
        palettize(source, config(), method="guided")
