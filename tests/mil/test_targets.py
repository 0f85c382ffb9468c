from __future__ import annotations

from typing import Any

import pytest

from mlopt.errors import ModelFormatError, TargetError
from mlopt.mil.targets import Target


@pytest.mark.parametrize(
    ("name", "version", "opset", "macos"),
    [
        ("iOS15", 6, "CoreML5", "macOS12"),
        ("iOS16", 7, "CoreML6", "macOS13"),
        ("iOS17", 8, "CoreML7", "macOS14"),
        ("iOS18", 9, "CoreML8", "macOS15"),
        ("iOS26", 10, "CoreML9", "macOS26"),
    ],
)
def test_table(ct: Any, name: str, version: int, opset: str, macos: str) -> None:
    target = Target[name]
    assert (target.specification_version, target.opset, target.macos) == (version, opset, macos)
    assert Target.of_specification(version) is target
    for spelling in (name, name.lower(), name.replace("iOS", "ios "), macos, macos.upper(), target):
        assert Target.parse(spelling) is target
    for family in (name, macos):
        member = getattr(ct.target, family)
        assert Target.parse(member) is target
        assert member.value == target
    from coremltools import _OPSET

    assert _OPSET[version] == opset


def test_coremltools_other_names(ct: Any) -> None:
    for name in ("watchOS8", "watchOS9", "watchOS10", "watchOS11", "tvOS15", "tvOS18"):
        assert Target.parse(name) is Target.of_specification(getattr(ct.target, name).value)


@pytest.mark.parametrize("wrong", ["iOS14", "android", "", 7, None, 16.0])
def test_unknown(wrong: object) -> None:
    with pytest.raises(TargetError, match="iOS16"):
        Target.parse(wrong)


def test_unknown_specification() -> None:
    with pytest.raises(ModelFormatError, match=r"here: .* 99 .* known are 6 \(iOS15\), "):
        Target.of_specification(99, "here")


def test_order() -> None:
    assert Target.iOS15 < Target.iOS16 < Target.iOS18
