"""Sequential palettization: what it writes, whom it serves, and what it refuses."""

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt import runtime
from mlopt.calibration import calibrate, palettize_sequentially
from mlopt.coreml import palettize
from mlopt.errors import ConfigError, InputError
from tests import judges
from tests.coreml.conftest import global_config, saved
from tests.runtime.programs import convert

WIDTH = 32


def normal(*shape, seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


MIX = np.eye(WIDTH) + normal(WIDTH, WIDTH, seed=1, scale=0.2)
SAMPLES = [
    {"x": (normal(40, WIDTH, seed=100 + number) @ MIX + 0.3).astype(np.float32)}
    for number in range(12)
]
HELD_OUT = [
    {"x": (normal(40, WIDTH, seed=900 + number) @ MIX + 0.3).astype(np.float32)}
    for number in range(12)
]
EMBEDDING = normal(64, WIDTH, seed=8, scale=0.2)


def weight(seed, rows=WIDTH, columns=WIDTH):
    return normal(rows, columns, seed=seed, scale=1.2 / np.sqrt(columns))


def residual_network(x):
    """Blocks of two layers on a stream; a layer without a bias; a head whose output is a tanh."""
    for number in range(4):
        h = mb.layer_norm(x=x, axes=[-1])
        h = mb.linear(
            x=h,
            weight=weight(10 * number, 48),
            bias=normal(48, seed=number, scale=0.1),
            name=f"up_{number}",
        )
        h = mb.gelu(x=h, mode="EXACT")
        h = mb.matmul(x=h, y=weight(10 * number + 1, 48, WIDTH), name=f"down_{number}")
        x = mb.add(x=x, y=h)
    return mb.tanh(x=mb.linear(x=x, weight=weight(99), name="head"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequential")
    return saved(convert(residual_network, SAMPLES[0]), folder / "source.mlpackage")


@pytest.fixture(scope="module")
def calibration(source):
    return calibrate(source, SAMPLES)


@pytest.fixture(scope="module")
def guided(source):
    return calibrate(source, SAMPLES, statistics="guided")


def config(**options):
    return global_config(**{"nbits": 2, "weight_threshold": 100, **options})


def answers(path, samples=HELD_OUT):
    program = runtime.load(path)
    return np.concatenate([next(iter(program.predict(sample).values())) for sample in samples])


def ratio(wanted, given):
    """Signal-to-noise ratio in dB."""
    wanted, given = np.asarray(wanted, np.float64), np.asarray(given, np.float64)
    return 10 * np.log10(np.square(wanted).sum() / np.square(given - wanted).sum())


def test_the_answers_are_nearer_than_of_weights_fitted_one_by_one(source, guided, tmp_path):
    wanted = answers(source)
    one_by_one = palettize(source, config(), output=tmp_path / "a.mlpackage", calibration=guided)
    sequential = palettize_sequentially(
        source, config(), SAMPLES, output=tmp_path / "b.mlpackage", calibration=guided
    )
    assert {row.method for row in sequential.report.palettized} == {"sequential"}
    before, after = (ratio(wanted, answers(r.path)) for r in (one_by_one, sequential))
    assert after > before + 0.5
    sizes = [[row.bytes_after for row in r.report] for r in (one_by_one, sequential)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("statistics", ["hessian", "guided"])
def test_the_report_has_what_the_layers_of_the_written_package_give(
    source, calibration, guided, statistics, tmp_path
):
    known = guided if statistics == "guided" else calibration
    result = palettize_sequentially(
        source, config(), SAMPLES, output=tmp_path / "out.mlpackage", calibration=known
    )
    before, after = runtime.load(source), runtime.load(result.path)
    readers = [row.consumers[0] for row in result.report.palettized]
    steps = [(step.node, step.node.outputs[0].name) for step in before.plan.body.steps]
    names = [name for node, name in steps if f"{node.op_type}({node.name})" in readers]
    assert len(names) == len(readers) == 9
    runs = [[p.run(s, taps=names).taps for s in SAMPLES] for p in (before, after)]
    for name, row in zip(names, result.report.palettized, strict=True):
        wanted, given = (np.concatenate([run[name].numpy() for run in each]) for each in runs)
        assert ratio(wanted, given) == pytest.approx(row.output_snr_db, abs=0.02)


CHANNELS = 16
IMAGES = [
    {"x": normal(1, CHANNELS, 10, 10, seed=300 + number, scale=1.0) + 0.2} for number in range(16)
]


def kernel(seed, *shape):
    return normal(*shape, seed=seed, scale=1.4 / np.sqrt(np.prod(shape[1:])))


def convolutional_network(x):
    """Blocks that expand, filter each channel, and are added to a stream; a head of features."""
    for number in range(3):
        wide = 2 * CHANNELS
        up = kernel(3 * number, wide, CHANNELS, 1, 1)
        h = mb.relu6(x=mb.conv(x=x, weight=up, bias=normal(wide, seed=number, scale=0.3)))
        each = kernel(3 * number + 1, wide, 1, 3, 3)
        h = mb.relu(x=mb.conv(x=h, weight=each, groups=wide, pad_type="same"))
        down = kernel(3 * number + 2, CHANNELS, wide, 1, 1)
        h = mb.conv(x=h, weight=down, bias=normal(CHANNELS, seed=number, scale=0.1))
        x = mb.add(x=h, y=x)
    turned = kernel(40, CHANNELS, 8, 2, 2)
    x = mb.conv_transpose(x=x, weight=turned, strides=[2, 2])
    x = mb.reduce_mean(x=mb.relu(x=x), axes=[-1, -2])
    return mb.linear(x=x, weight=kernel(41, 32, 8), name="head")


@pytest.mark.parametrize("statistics", ["hessian", "guided"])
def test_a_convolutional_network(statistics, tmp_path):
    path = saved(convert(convolutional_network, IMAGES[0]), tmp_path / "source.mlpackage")
    known = calibrate(path, IMAGES, statistics=statistics)
    wanted = answers(path, IMAGES)
    ratios = []
    for name, make in (("a", palettize), ("b", palettize_sequentially)):
        given = () if make is palettize else (IMAGES,)
        result = make(path, config(), *given, calibration=known, output=tmp_path / name)
        ratios.append(ratio(wanted, answers(result.path, IMAGES)))
    assert ratios[1] > ratios[0] + 1
    (*_, last) = result.report.palettized
    assert last.output_snr_db == pytest.approx(ratios[1], abs=0.02)
    assert {row.method for row in result.report.palettized} == {"sequential"}


def test_the_first_weight_is_fitted_as_without_samples(source, calibration, tmp_path):
    """What it gets is what the calibration has seen, and there is no error before it."""
    one_by_one = palettize(
        source, config(), output=tmp_path / "a.mlpackage", calibration=calibration
    )
    sequential = palettize_sequentially(
        source, config(), SAMPLES, output=tmp_path / "b.mlpackage", calibration=calibration
    )
    first = one_by_one.report.palettized[0].name
    stored = [judges.decompressed_constants(r.path)[first] for r in (one_by_one, sequential)]
    assert np.isclose(*stored, rtol=1e-3).mean() > 0.99
    other = one_by_one.report.palettized[-1].name
    stored = [judges.decompressed_constants(r.path)[other] for r in (one_by_one, sequential)]
    assert np.isclose(*stored, rtol=1e-3).mean() < 0.9


def test_the_result_does_not_depend_on_threads(source, guided, tmp_path):
    made = [
        palettize_sequentially(
            source,
            config(),
            SAMPLES,
            output=tmp_path / f"{workers}.mlpackage",
            calibration=guided,
            workers=workers,
        ).path
        for workers in (1, 3)
    ]
    files = [next(path.rglob("weight.bin")).read_bytes() for path in made]
    assert files[0] == files[1]


def test_rules_and_methods_hold(source, calibration, tmp_path):
    rules = config()
    names = [row.name for row in palettize(source, config()).report.palettized]
    rules.set_op_name(names[0], config(method="plain").global_config)
    rules.set_op_name(names[1], None)
    result = palettize_sequentially(
        source, rules, SAMPLES, output=tmp_path / "out.mlpackage", calibration=calibration
    )
    methods = {row.name: row.method for row in result.report.palettized}
    assert methods.pop(names[0]) == "plain"
    assert names[1] not in methods
    assert set(methods.values()) == {"sequential"}
    kept, before = (judges.decompressed_constants(p)[names[1]] for p in (result.path, source))
    assert np.array_equal(kept, before)


def test_weights_that_are_looked_up_or_shared_have_the_statistics_of_the_calibration(tmp_path):
    def program(ids):
        table = mb.const(val=EMBEDDING, name="embedding")
        x = mb.gather(x=table, indices=ids, axis=0)
        x = mb.add(x=x, y=mb.linear(x=mb.relu(x=x), weight=weight(3), name="layer"))
        return mb.linear(x=x, weight=table, name="head")

    samples = [
        {"ids": np.random.default_rng(n).integers(0, 64, 50).astype(np.int32)} for n in range(6)
    ]
    path = saved(convert(program, samples[0]), tmp_path / "source.mlpackage")
    known = calibrate(path, samples)
    result = palettize_sequentially(path, config(nbits=4), samples, calibration=known)
    methods = {row.name: row.method for row in result.report.palettized}
    assert methods.pop("embedding") == "hessian"
    assert list(methods.values()) == ["sequential"]
    assert ratio(answers(path, samples), answers(result.path, samples)) > 15


def test_progress_counts_every_weight_once(source, calibration):
    calls = []
    palettize_sequentially(
        source,
        config(),
        SAMPLES,
        calibration=calibration,
        progress=lambda done, total, name: calls.append((done, total, name)),
    )
    assert len(calls) == 9
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)


def test_progress_says_that_gradients_come_first(source, guided):
    calls = []
    palettize_sequentially(
        source,
        config(),
        SAMPLES[:3],
        calibration=guided,
        progress=lambda done, total, name: calls.append((done, name)),
    )
    assert calls[:3] == [(0, f"gradient {number} of 3") for number in (1, 2, 3)]
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        ([], {}, InputError, "no samples"),
        ([3], {}, InputError, "sample 0 is int"),
        ([SAMPLES[0], {"y": SAMPLES[0]["x"]}], {}, InputError, "sample 1"),
        (SAMPLES[:1], {"alpha": 1.5}, ConfigError, "alpha must be from 0 to 1, got 1.5"),
        (SAMPLES[:1], {"alpha": float("nan")}, ConfigError, "alpha must be from 0 to 1"),
        (SAMPLES[:1], {"function": "other"}, ConfigError, "no function 'other'"),
        (
            [{"x": np.full_like(SAMPLES[0]["x"], np.nan)}],
            {},
            ConfigError,
            "has NaN or infinite elements",
        ),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    source, calibration, samples, options, error, message, tmp_path
):
    output = tmp_path / "out.mlpackage"
    with pytest.raises(error, match=message):
        palettize_sequentially(
            source, config(), samples, calibration=calibration, output=output, **options
        )
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_of_another_model_is_refused(source, tmp_path):
    def other(x):
        return mb.linear(x=x, weight=weight(77, 20), name="other")

    path = saved(convert(other, SAMPLES[0]), tmp_path / "other.mlpackage")
    known = calibrate(path, SAMPLES)
    with pytest.raises(ConfigError, match="it was made of another model"):
        palettize_sequentially(source, config(), SAMPLES, calibration=known)
