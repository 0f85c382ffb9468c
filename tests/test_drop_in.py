"""``import mlopt as cto`` has every public name that ``import coremltools.optimize as cto`` has."""

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import mlopt
from mlopt.drop_in import names_besides
from tests.test_import import run

OPTIMIZE = "coremltools.optimize"
# what mlopt has a version of
OWN_MODULES = {"coreml", "torch", "torch.palettization", "torch.palettization.fake_palettize"}


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch")
    return importlib.import_module(f"{OPTIMIZE}.torch") and importlib.import_module(OPTIMIZE)


def public(module):
    """Public names of a module of coremltools, without modules that it imports from elsewhere."""
    for name in dir(module):
        value = getattr(module, name)
        is_foreign = isinstance(value, types.ModuleType) and OPTIMIZE not in value.__name__
        if not name.startswith("_") and not is_foreign:
            yield name, value


def modules_of(reference):
    """Every public module below coremltools.optimize, by its name there, loaded or not."""
    yield from ["coreml", "torch"]
    for room in ("coreml", "torch"):
        parent = getattr(reference, room)
        for found in pkgutil.walk_packages(parent.__path__, f"{parent.__name__}."):
            short = found.name.removeprefix(f"{OPTIMIZE}.")
            parts = short.split(".")
            if not any(part.startswith(("_", "test_")) for part in parts):
                yield short


def test_every_module_and_every_name_is_there(reference):
    seen = set()
    for short in modules_of(reference):
        theirs = importlib.import_module(f"{OPTIMIZE}.{short}")
        ours = importlib.import_module(f"mlopt.{short}")
        seen.add(short)
        if short not in OWN_MODULES and not short.startswith("torch.palettization"):
            assert ours is theirs
            assert theirs.__spec__.name == theirs.__name__ == f"{OPTIMIZE}.{short}"
            continue
        for name, value in public(theirs):
            if short.endswith("fake_palettize") and name != "FakePalettize":
                continue  # parts of their implementation
            mine = getattr(ours, name)
            if isinstance(value, types.ModuleType):
                assert name in dir(ours), f"{short}.{name}"
            elif mine is not value:
                assert mine.__module__.startswith("mlopt."), f"{short}.{name}"
    assert seen >= OWN_MODULES | {
        "coreml.experimental",
        "torch.layerwise_compression.algorithms",
        "torch.pruning.pruning_scheduler",
        "torch.quantization.modules.observers",
        "torch.optimization_config",
    }


def test_what_is_mlopts_own_stays_so(reference):
    from mlopt.torch.palettization.palettization_config import (
        DEFAULT_PALETTIZATION_OPTIONS,
        DKMPalettizerConfig,
    )
    from mlopt.torch.palettization.sensitive_k_means import SKMPalettizer

    assert DKMPalettizerConfig is mlopt.torch.palettization.DKMPalettizerConfig
    assert SKMPalettizer is mlopt.torch.palettization.SKMPalettizer
    theirs = reference.torch.palettization.palettization_config
    assert DEFAULT_PALETTIZATION_OPTIONS is theirs.DEFAULT_PALETTIZATION_OPTIONS
    assert mlopt.coreml.OptimizationConfig is not reference.coreml.OptimizationConfig


def test_objects_are_coremltools_own(reference):
    for name in ("prune_weights", "linear_quantize_weights", "OpLinearQuantizerConfig"):
        assert getattr(mlopt.coreml, name) is getattr(reference.coreml, name)
    from mlopt.torch.quantization import LinearQuantizer

    assert LinearQuantizer is reference.torch.quantization.LinearQuantizer


def test_a_submodule_is_loaded_once(reference):
    import mlopt.torch.pruning.pruning_scheduler as scheduler

    assert scheduler is reference.torch.pruning.pruning_scheduler
    assert sys.modules["mlopt.torch.pruning"] is reference.torch.pruning


@pytest.mark.parametrize("module", ["mlopt.coreml", "mlopt.torch", "mlopt.torch.palettization"])
def test_names_are_listed(module):
    if "torch" in module:
        pytest.importorskip("torch")
    loaded = importlib.import_module(module)
    assert set(names_besides(module)) | set(loaded.__all__) <= set(dir(loaded))


def test_nothing_else_is_there():
    assert not hasattr(mlopt.coreml, "quantise_weights")
    with pytest.raises(AttributeError, match=r"'mlopt\.coreml' has no attribute '_config'"):
        _ = mlopt.coreml._config
    with pytest.raises(ModuleNotFoundError, match=r"mlopt\.coreml\.nothing"):
        importlib.import_module("mlopt.coreml.nothing")


def test_no_such_module_below_a_borrowed_one(reference):
    with pytest.raises(ModuleNotFoundError, match=r"mlopt\.torch\.pruning\.nothing"):
        importlib.import_module("mlopt.torch.pruning.nothing")


def test_listing_and_asking_in_vain_load_nothing():
    code = (
        "import sys, mlopt.coreml; dir(mlopt.coreml); hasattr(mlopt.coreml, 'nothing'); "
        "print([m for m in ('torch', 'coremltools') if m in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.long
def test_importing_a_borrowed_module_first_works(reference):
    # in a process where nothing else has loaded either of the two
    code = (
        "import mlopt.torch.pruning as ours; import coremltools.optimize.torch.pruning as theirs; "
        "from mlopt.coreml.experimental import OpActivationLinearQuantizerConfig; "
        "assert ours is theirs"
    )
    root = mlopt.__path__[0].rpartition("mlopt")[0]
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, cwd=root, capture_output=True
    )
