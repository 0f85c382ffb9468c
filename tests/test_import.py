"""What importing mlopt costs, and what it offers."""

import subprocess
import sys

import pytest

import mlopt


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_import_loads_nothing_heavy():
    heavy = ["torch", "coremltools", "numpy", "numba", "attrs", "rich"]
    loaded = run(f"import sys, mlopt; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_rooms_load_on_first_use():
    code = "import sys, mlopt as cto; cto.errors.MlOptError; print('mlopt.mil' in sys.modules)"
    assert run(code).strip() == "False"
    assert run("import mlopt as cto; print(cto.coreml.__name__)").strip() == "mlopt.coreml"


@pytest.mark.parametrize("room", ["coreml", "mil", "palette"])
def test_no_room_loads_torch(room):
    code = f"import sys, mlopt; mlopt.{room}; print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_rooms_are_listed_and_others_refused():
    assert {"coreml", "errors", "mil", "palette", "__version__"} <= set(dir(mlopt))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mlopt.nonsense
