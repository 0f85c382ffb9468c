"""The ``MLModel`` that compression returns."""

import shutil

import pytest

import mlopt as cto

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("coremltools.optimize.coreml")


@pytest.fixture
def model(digits, tmp_path):
    from coremltools.models import MLModel

    copy = shutil.copytree(digits, tmp_path / "digits.mlpackage")
    return MLModel(str(copy), skip_model_load=True)


@pytest.fixture
def loads(monkeypatch):
    """Counts how often coremltools' loader is called."""
    from coremltools.converters.mil.frontend.milproto import load

    calls = []
    original = load.load

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(load, "load", counted)
    return calls


def configuration():
    return cto.coreml.OptimizationConfig(cto.coreml.OpPalettizerConfig(nbits=1))


def kinds(program):
    return {
        name: [op.op_type for op in function.operations]
        for name, function in program.functions.items()
    }


def test_the_program_is_that_of_coremltools_result(reference, model):
    ours = cto.coreml.palettize_weights(model, configuration())
    theirs = reference.palettize_weights(
        model, reference.OptimizationConfig(reference.OpPalettizerConfig(nbits=1))
    )
    assert type(ours._mil_program) is type(theirs._mil_program)
    found, expected = kinds(ours._mil_program), kinds(theirs._mil_program)
    assert sorted(found["main"]) == sorted(expected["main"])
    assert "constexpr_lut_to_dense" in str(ours._mil_program)
    assert ours._get_mil_internal() is not ours._mil_program

    plain = cto.coreml.decompress_weights(ours)
    assert "constexpr_lut_to_dense" not in kinds(plain._mil_program)["main"]
    assert kinds(cto.coreml.set_deployment_target(model, "iOS18")._mil_program)


def test_it_is_loaded_when_asked_for_and_once(model, loads, tmp_path):
    palettized = cto.coreml.palettize_weights(model, configuration())
    palettized.get_spec()
    palettized.save(str(tmp_path / "saved.mlpackage"))
    assert loads == []
    assert palettized._mil_program is palettized._mil_program
    assert len(loads) == 1
    palettized.save(str(tmp_path / "again.mlpackage"))
    names = cto.coreml.get_weights_metadata(cto.coreml.decompress_weights(palettized))
    assert names.keys() == cto.coreml.get_weights_metadata(model).keys()


def test_it_is_an_mlmodel_in_every_other_way(model, tmp_path):
    from coremltools.models import MLModel

    palettized = cto.coreml.palettize_weights(model, configuration())
    assert isinstance(palettized, MLModel)
    assert str(palettized).splitlines()[0] == str(model).splitlines()[0]
    path = str(tmp_path / "saved.mlpackage")
    palettized.save(path)
    saved = MLModel(path, skip_model_load=True)
    assert saved.get_spec() == palettized.get_spec()
    again = cto.coreml.palettize_weights(palettized, configuration())
    assert again.get_spec().specificationVersion == palettized.get_spec().specificationVersion
