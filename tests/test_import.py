"""What importing mlopt costs, and what it offers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlopt

HEAVY = ["torch", "coremltools", "numpy", "numba", "attrs", "rich", "google.protobuf"]


def run(code: str) -> str:
    root = str(Path(mlopt.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_import_loads_nothing_heavy():
    assert run(f"import sys, mlopt; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_the_command_line_starts_without_the_library():
    heavy = ["torch", "coremltools", "numpy", "numba", "google.protobuf", "mlopt.coreml"]
    code = f"import sys, mlopt.cli; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


def test_rooms_load_on_first_use():
    code = "import sys, mlopt as cto; cto.errors.MlOptError; print('mlopt.mil' in sys.modules)"
    assert run(code) == "False"
    assert run("import mlopt as cto; print(cto.coreml.__name__)") == "mlopt.coreml"


def test_rooms_that_load_neither_torch_nor_coremltools():
    rooms = ["mil", "palette", "statistics", "coreml", "planning", "pages"]
    code = (
        f"import sys, mlopt\nfor room in {rooms}:\n    getattr(mlopt, room)\n"
        "    print([room, *(m for m in ('torch', 'coremltools') if m in sys.modules)])"
    )
    assert run(code).splitlines() == [str([room]) for room in rooms]


@pytest.mark.parametrize("room", [mlopt.coreml, mlopt.palette])
def test_rooms_offer_what_they_list(room):
    assert set(room.__all__) <= set(dir(room))
    assert all(getattr(room, name).__doc__ for name in room.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = room.nonsense


def test_functions_keep_the_names_that_their_modules_have_too():
    names = ["coreml.palettize", "coreml.decompress", "coreml.lint", "palette.palettize"]
    code = (
        "import importlib, mlopt\n"
        f"for room, name in {[name.split('.') for name in names]}:\n"
        "    module = importlib.import_module(f'mlopt.{room}.{name}')\n"
        "    print(getattr(getattr(mlopt, room), name) is getattr(module, name))"
    )
    assert run(code).split() == ["True"] * len(names)


def test_rooms_are_listed_and_others_refused():
    assert {"coreml", "errors", "mil", "palette", "__version__"} <= set(dir(mlopt))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mlopt.nonsense


def test_mil_offers_what_it_names():
    assert {"open_package", "PackageWriter", "Edits", "Target"} <= set(mlopt.mil.__all__)
    assert all(getattr(mlopt.mil, name).__doc__ for name in mlopt.mil.__all__)
