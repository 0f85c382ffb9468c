"""Quick errors: the errors of outputs by plain numpy, and those of some outputs near them."""

import attrs
import numpy as np
import pytest

from mlopt.calibration import calibrate
from mlopt.coreml import OpPalettizerConfig
from mlopt.mil.opening import open_package
from mlopt.palette import palettize
from mlopt.planning import quick_errors
from mlopt.planning.candidates import candidates_of

IMAGES = np.random.default_rng(0).uniform(size=(6, 1, 1, 8, 8)).astype(np.float32)
CONFIGS = [OpPalettizerConfig(nbits=nbits, weight_threshold=256) for nbits in (1, 2, 4, 6)]
CONFIGS.append(attrs.evolve(CONFIGS[1], granularity="per_grouped_channel", group_size=4))


def forms_of_weights(package, calibration, configs=CONFIGS):
    found = candidates_of(
        open_package(package),
        configs,
        target="iOS18",
        pinned={},
        calibration=calibration,
        method="auto",
        devices=(),
        joint_compression=False,
    )
    forms = [[form for form in each.forms if form.config] for each in found.weights]
    return [each for each in forms if each]


def in_decibels(errors):
    return -10 * np.log10(errors)


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_all_outputs_of_small_weights_are_looked_at(digits, is_calibrated):
    calibration = calibrate(digits, [{"image": i} for i in IMAGES]) if is_calibrated else None
    for forms in forms_of_weights(digits, calibration):
        wanted = []
        value = forms[0].decision.weight.value()
        for form in forms:
            moments = form.guidance.fitted()
            squares = None if moments is None else attrs.evolve(moments, second=None)
            stored = palettize(value, form.decision.result, moments=squares)[0].dequantize()
            error, wide = (array.astype(np.float64) for array in (stored - value, value))
            if moments is not None:
                (second,) = moments.second.astype(np.float64)
                error, wide = (moments.arrangement.matrices(a)[0] for a in (error, wide))
                powers = [((a @ second) * a).sum() for a in (error, wide)]
            else:
                powers = [(a**2).sum() for a in (error, wide)]
            wanted.append(powers[0] / powers[1])
        assert quick_errors.quick_errors(forms) == pytest.approx(wanted, rel=1e-2)


def test_some_outputs_tell_about_the_same(digits, monkeypatch):
    calibration = calibrate(digits, [{"image": image} for image in IMAGES])
    for forms in forms_of_weights(digits, calibration):
        monkeypatch.undo()
        wanted = quick_errors.quick_errors(forms)
        monkeypatch.setattr(quick_errors, "_OUTPUTS", 24)
        monkeypatch.setattr(quick_errors, "_ELEMENTS", 0)
        one, two = (quick_errors.quick_errors(forms, workers=workers) for workers in (1, 2))
        assert one == two
        weight = forms[0].decision.weight
        assert (one == wanted) == (weight.shape[0] < 48)
        np.testing.assert_allclose(in_decibels(one), in_decibels(wanted), atol=2.0)


def test_forms_with_and_without_statistics_do_not_share_them(digits):
    calibration = calibrate(digits, [{"image": i} for i in IMAGES], statistics="diagonal")
    uniform = OpPalettizerConfig(mode="uniform", nbits=1, weight_threshold=256)
    for forms in forms_of_weights(digits, calibration, [uniform, *CONFIGS]):
        assert {form.guidance.moments is None for form in forms} == {True, False}
        alone = [quick_errors.quick_errors([form])[0] for form in forms]
        assert quick_errors.quick_errors(forms) == alone
        assert quick_errors.quick_errors(forms[::-1]) == alone[::-1]
