"""Weights that coremltools compressed for iOS16, raised, beside what it writes for iOS18."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlopt.coreml import decompress, raise_target
from tests import foreign, judges
from tests.canonical import canonical
from tests.coreml.conftest import raw, saved

#: Every form once, and those that are made for iOS17 too, in float32, once more.
SOURCES = {("iOS16", "float16"), ("iOS17", "float32")}
CASES = [case for case in foreign.CASES if case[1:] in SOURCES]


def described(package: Path) -> dict[str, Any]:
    """Return type and values of every constexpr operation, by the name that it writes."""
    spec, folder = judges.spec_and_weights(package)
    found = {}
    for op in judges.operations(spec.mlProgram.functions["main"]):
        if op.type.startswith("constexpr_"):
            assert list(op.attributes) == ["name"]
            found[op.outputs[0].name] = (
                op.type,
                {
                    key: (
                        str(argument.arguments[0].value.type),
                        raw(argument.arguments[0].value, folder),
                    )
                    for key, argument in op.inputs.items()
                },
            )
    return found


@pytest.mark.parametrize(("name", "target", "precision"), CASES)
@pytest.mark.covering(1)
def test_as_coremltools_writes_it_for_ios18(
    name: str, target: str, precision: str, tmp_path: Path
) -> None:
    """The same operations on the same bytes of the same types; decompressed the same numbers."""
    source = saved(foreign.build(name, target, precision), tmp_path / "in.mlpackage")
    direct = saved(foreign.build(name, "iOS18", precision), tmp_path / "direct.mlpackage")
    output = raise_target(source, tmp_path / "out", "iOS18")
    assert canonical(judges.load_program(output)) == canonical(judges.load_program(direct))
    assert described(direct)
    assert described(output) == described(direct)

    plain, newer = (decompress(p, p.with_name(f"dense-{p.name}")) for p in (source, output))
    before, after = (judges.decompressed_constants(path) for path in (plain, newer))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].tobytes() == value.tobytes(), key
