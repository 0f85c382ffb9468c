"""``calibrate`` on whole models: what is shared, summed, resumed and refused."""

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

import mlopt
from mlopt.calibration import Calibration, calibrate, merge
from mlopt.calibration.samples import mark_of
from mlopt.calibration.sums import Sums
from mlopt.coreml.weights import weights_of
from mlopt.errors import ConfigError, DestinationError, InputError
from mlopt.mil.opening import open_package
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.statistics import content_of
from mlopt.statistics.held_out import held_out
from tests.calibration.comparisons import assert_same
from tests.runtime.programs import convert


def samples_for(model, count, function=None):
    return random_samples(load(model, function), count, 0)


def named(calibration, part):
    return next(weight for weight in calibration.weights if part in weight.name)


@pytest.fixture(scope="module")
def digit_samples(digits):
    return samples_for(digits, 6)


def test_the_digits_against_tapped_inputs(digits, digit_samples):
    calibration = calibrate(digits, digit_samples)
    program = load(digits)
    for weight in calibration.weights:
        if len(weight.shape) != 2:
            continue
        node = next(
            step.node
            for step in program.plan.body.steps
            if step.node.op_type == "linear"
            and step.node.inputs["weight"][0].name.startswith(weight.name.split("_to_fp16")[0])
        )
        tapped = node.inputs["x"][0].name
        x = np.concatenate(
            [
                program.run(sample, taps=[tapped]).taps[tapped].numpy().reshape(-1, weight.shape[1])
                for sample in digit_samples
            ]
        )
        moments = calibration.moments_of(weight)
        assert moments.count == len(x)
        assert np.allclose(moments.second[0], x.T @ x / len(x), rtol=1e-4, atol=1e-4)
        assert np.allclose(moments.mean[0], x.mean(0), rtol=1e-4, atol=1e-5)
    assert {name.split("_")[1] for name in calibration.without} == {"bias"}
    assert calibration.notes[0].startswith("6 samples: 8 or more are useful")


def test_several_samples_are_the_mean_of_each(digits, digit_samples):
    whole = calibrate(digits, digit_samples)
    each = merge([calibrate(digits, [sample]) for sample in digit_samples])
    assert_same(whole, each)


def test_parts_are_merged_to_the_whole(digits, digit_samples, tmp_path):
    whole = calibrate(digits, iter(digit_samples))
    paths = [tmp_path / f"{number}" for number in (1, 2, 3, 4)]
    for number, path in enumerate(paths, start=1):
        calibrate(digits, iter(digit_samples), part=(number, 4), output=path)
    assert [Calibration.load(path).samples for path in paths] == [2, 2, 1, 1]
    assert_same(whole, merge(paths, tmp_path / "merged"))


def test_the_file_holds_what_is_returned_in_memory(digits, digit_samples, tmp_path):
    output = tmp_path / "a.calibration"
    done = []
    returned = calibrate(
        digits, digit_samples, output=output, progress=lambda *now: done.append(now)
    )
    in_memory = calibrate(digits, digit_samples)
    assert_same(in_memory, returned, exactly=True)
    assert_same(in_memory, Calibration.load(output), exactly=True)
    assert done == [(number, 6) for number in range(1, 7)]
    assert list(tmp_path.iterdir()) == [output]


def test_diagonal_statistics_are_the_diagonal(digits, digit_samples):
    hessian = calibrate(digits, digit_samples)
    diagonal = calibrate(digits, digit_samples, statistics="diagonal")
    for key, moments in diagonal.moments.items():
        assert moments.second is None
        assert np.allclose(moments.diagonal, hessian.moments[key].diagonal, rtol=1e-4)
        assert np.allclose(moments.mean, hessian.moments[key].mean, rtol=1e-4, atol=1e-6)


class EndError(BaseException):
    """The end of a run, in the middle: no error of an operation."""


def interrupted(samples, after):
    yield from itertools.islice(samples, after)
    raise EndError


def test_an_interrupted_run_goes_on(digits, digit_samples, tmp_path):
    output = tmp_path / "a"
    for after in (0, 2, 3):
        with pytest.raises(EndError):
            calibrate(digits, interrupted(digit_samples, after), output=output)
        assert not output.exists()
        assert (tmp_path / "a.partial").exists()
    done = []
    resumed = calibrate(digits, digit_samples, output=output, progress=lambda *d: done.append(d))
    assert done == [(4, 6), (5, 6), (6, 6)]
    at_once = calibrate(digits, digit_samples)
    assert_same(at_once, resumed, exactly=True)
    assert resumed.marks == at_once.marks == tuple(map(mark_of, digit_samples))
    assert len(set(resumed.marks)) == 6
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("updates", range(9))
def test_a_run_that_ends_within_a_sample_goes_on(package_of, tmp_path, monkeypatch, updates):
    model = package_of("control_flow")
    samples = samples_for(model, 3)
    add, made = Sums.add, []

    def ending(self, *arguments):
        if len(made) == updates:
            raise EndError
        made.append(arguments)
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "add", ending)
        with pytest.raises(EndError):
            calibrate(model, samples, output=tmp_path / "a")
    resumed = calibrate(model, samples, output=tmp_path / "a")
    whole = calibrate(model, samples)
    assert_same(whole, resumed, exactly=True)
    assert resumed.remarks == whole.remarks


def test_a_run_that_ends_while_it_adds_begins_anew(digits, digit_samples, tmp_path, monkeypatch):
    update = torch.Tensor.add_

    def ending(self, other, **options):
        if options.get("alpha") == 1 and self.shape == (1, 288, 288):
            raise EndError
        return update(self, other, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "add_", ending)
        with pytest.raises(EndError):
            calibrate(digits, digit_samples, output=tmp_path / "a")
    resumed = calibrate(digits, digit_samples, output=tmp_path / "a")
    whole = calibrate(digits, digit_samples)
    assert_same(whole, resumed, exactly=True)
    assert "ended while it was adding to a matrix; all samples were summed anew" in resumed.notes[0]


def test_only_the_same_calibration_goes_on(digits, digit_samples, package_of, tmp_path):
    output = tmp_path / "a"
    with pytest.raises(EndError):
        calibrate(digits, interrupted(digit_samples, 3), output=output)
    with pytest.raises(ConfigError, match=r"a\.partial holds the unfinished sums of another"):
        calibrate(digits, digit_samples, output=output, statistics="diagonal")
    other = package_of("classifier")
    samples = samples_for(other, 3)
    with pytest.raises(ConfigError, match=r"a\.partial holds the unfinished sums of another"):
        calibrate(other, samples, output=output)
    with pytest.raises(ConfigError, match="has summed 3 samples, and they are not the first"):
        calibrate(digits, digit_samples[::-1], output=output)
    with pytest.raises(ConfigError, match="has summed 3 samples, and only 2 are given"):
        calibrate(digits, digit_samples[:2], output=output)
    with pytest.raises(ConfigError, match="is a calibration that is not finished"):
        Calibration.load(tmp_path / "a.partial")
    assert_same(
        calibrate(digits, digit_samples),
        calibrate(digits, digit_samples, output=output),
        exactly=True,
    )


def test_two_runs_do_not_write_one_file(digits, digit_samples, tmp_path):
    def samples():
        yield digit_samples[0]
        with pytest.raises(DestinationError, match="is being written by another run"):
            calibrate(digits, digit_samples, output=tmp_path / "a")
        yield from digit_samples[1:]

    assert calibrate(digits, samples(), output=tmp_path / "a").samples == 6


def test_tensors_and_lists_are_samples_too(digits, digit_samples, tmp_path):
    (name,) = digit_samples[0]
    given = [
        {name: torch.from_numpy(digit_samples[0][name])},
        {name: digit_samples[1][name].tolist()},
    ]
    calibration = calibrate(digits, given, output=tmp_path / "a")
    assert_same(calibrate(digits, digit_samples[:2]), calibration, exactly=True)


def test_weights_that_read_the_same_input_share_moments(package_of):
    model = package_of("transformer")
    calibration = calibrate(model, samples_for(model, 2))
    keys = {
        part: named(calibration, f"layers_0_{part}").moments
        for part in ("query", "key", "value", "out", "up", "down")
    }
    assert keys["query"] == keys["key"] == keys["value"]
    assert len(set(keys.values())) == 4


def test_a_tied_embedding_has_the_statistics_of_the_head(package_of):
    model = package_of("transformer")
    calibration = calibrate(model, samples_for(model, 2))
    weight = named(calibration, "embedding")
    assert weight.arrangement.columns == 64
    assert calibration.moments_of(weight).second is not None
    (remark,) = calibration.remarks
    assert "has the statistics of linear" in remark
    assert "not those of gather" in remark


def test_inputs_of_several_operations_are_added(package_of):
    model = package_of("control_flow")
    calibration = calibrate(model, samples_for(model, 4))
    outer = calibration.moments_of(named(calibration, "outer"))
    parts = [
        calibration.moments[named(calibration, name).moments].count
        for name in ("then_weight", "else_weight", "loop_weight")
    ]
    assert outer.count == sum(parts)
    assert parts[2] == 3 * 4
    assert parts[0] + parts[1] == 4


def test_operations_that_read_a_weight_in_other_directions_are_left_out(package_of):
    model = package_of("matmuls")
    calibration = calibrate(model, samples_for(model, 2))
    assert any("weight 'both" in remark for remark in calibration.remarks)
    assert len(calibration.weights) == 6


@pytest.mark.parametrize("kind", ["recurrent", "redefined", "convolutional", "stateful"])
def test_kinds_of_models(package_of, kind):
    model = package_of(kind, "iOS18")
    calibration = calibrate(model, samples_for(model, 2))
    assert calibration.weights
    weights, _ = weights_of(open_package(model))
    known = {weight.name for weight in calibration.weights} | set(calibration.without)
    assert known == {weight.name for weight in weights}
    for weight in calibration.weights:
        assert calibration.moments_of(weight).importance().shape == weight.shape


def test_functions_are_calibrated_one_by_one(package_of):
    model = package_of("multifunction", "iOS18")
    base = calibrate(model, samples_for(model, 2))
    adapted = calibrate(model, samples_for(model, 2), function="adapted")
    assert len(base.weights) == len(adapted.weights) == 4
    assert any("only function 'adapted' has it" in reason for reason in base.without.values())
    with pytest.raises(ConfigError, match="no function 'other'"):
        calibrate(model, [], function="other")


def test_a_compressed_weight_counts_with_its_plain_values(digits, digit_samples, tmp_path):
    config = mlopt.coreml.OptimizationConfig(
        mlopt.coreml.OpPalettizerConfig(nbits=4, weight_threshold=10)
    )
    path = tmp_path / "small.mlpackage"
    mlopt.coreml.palettize(digits, config, output=path)
    calibration = calibrate(path, digit_samples)
    values = {weight.name: weight.value() for weight in weights_of(open_package(path))[0]}
    assert len(calibration.weights) == 4
    for weight in calibration.weights:
        assert weight.content == content_of(values[weight.name])


def test_inputs_of_numbers_that_are_not_finite_are_refused(digits, digit_samples):
    name = next(iter(digit_samples[0]))
    wrong = {name: np.full_like(digit_samples[0][name], np.nan)}
    with pytest.raises(ConfigError, match=r"sample 2: an input of conv '.*' has NaN or infinite"):
        calibrate(digits, [*digit_samples[:2], wrong])


def test_without_samples_nothing_is_left(digits, tmp_path):
    with pytest.raises(InputError, match="there are no samples"):
        calibrate(digits, [], output=tmp_path / "digits.calibration")
    assert list(tmp_path.iterdir()) == []


def test_samples_that_do_not_fit_are_named(digits, digit_samples):
    with pytest.raises(InputError, match="there are no samples"):
        calibrate(digits, [])
    with pytest.raises(InputError, match="sample 1 is list"):
        calibrate(digits, [digit_samples[0], [1, 2]])
    with pytest.raises(InputError, match="sample 1: "):
        calibrate(digits, [digit_samples[0], {"other": 3}])
    with pytest.raises(InputError, match="got int"):
        calibrate(digits, 3)
    assert calibrate(digits, digit_samples[0]).samples == 1


def test_wrong_arguments_are_refused(digits, digit_samples, package_of, tmp_path):
    with pytest.raises(ConfigError, match="'diagonal' or 'hessian' or 'guided', got 'all'"):
        calibrate(digits, digit_samples, statistics="all")
    with pytest.raises(ConfigError, match=r"i from 1 to n, got \(3, 2\)"):
        calibrate(digits, digit_samples, part=(3, 2))
    with pytest.raises(DestinationError, match="cannot be written"):
        calibrate(digits, digit_samples, output=tmp_path / "missing" / "a")
    with pytest.raises(DestinationError, match="is a folder; name a file"):
        calibrate(digits, digit_samples, output=tmp_path)
    with pytest.raises(ConfigError, match="device must be available"):
        calibrate(digits, digit_samples, device="nothing")


def test_a_model_without_such_weights_is_refused():
    x = np.ones((4, 5), np.float32)
    model = convert(lambda x: mb.mul(x=x, y=np.ones((4, 5), np.float32)), {"x": x})
    with pytest.raises(ConfigError, match="no weight that inputs are multiplied by"):
        calibrate(model, [{"x": x}])


@pytest.mark.parametrize("statistics", ["hessian", "guided"])
@pytest.mark.parametrize(("is_counted", "last"), [(True, 8), (False, 7)])
def test_the_last_sample_is_held_out(digits, tmp_path, statistics, is_counted, last):
    samples = samples_for(digits, 9)
    given = samples if is_counted else iter(samples)
    calibration = calibrate(digits, given, statistics=statistics, output=tmp_path / "a")
    before = calibrate(digits, samples[:last], statistics=statistics)
    alone = calibrate(digits, samples, statistics=statistics, part=(last + 1, 100))
    assert alone.held_out is None
    for key, moments in calibration.moments.items():
        wanted = held_out(before.moments[key].second, alone.moments[key].second, last)
        assert moments.held_out.samples == last
        assert moments.held_out.seen_db == pytest.approx(wanted.seen_db, abs=0.05)
        assert moments.held_out.held_out_db == pytest.approx(wanted.held_out_db, abs=0.05)


def test_mean_squares_are_not_checked(digits, digit_samples):
    assert calibrate(digits, digit_samples, statistics="diagonal").held_out is None
