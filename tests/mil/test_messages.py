"""The messages come without coremltools, and are its own nevertheless."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

FIRST_US = """
    import sys
    from mlopt.mil import messages
    import mlopt.mil.opening, mlopt.mil.writer, mlopt.mil.raising.upgrade, mlopt.mil.targets
    loaded = [name for name in sys.modules if name.split(".")[0] in ("coremltools", "torch")]
    assert not loaded, loaded
    from coremltools.proto import MIL_pb2, Model_pb2
"""
FIRST_COREMLTOOLS = """
    from coremltools.proto import MIL_pb2, Model_pb2
    from mlopt.mil import messages
    assert messages.MIL_pb2 is MIL_pb2
"""
SAME = """
    import copy, pickle
    assert messages.Model is Model_pb2.Model
    assert messages.Value is MIL_pb2.Value
    message = messages.Model(specificationVersion=7)
    assert isinstance(copy.deepcopy(message), Model_pb2.Model)
    assert Model_pb2.Model.FromString(message.SerializeToString()) == message
"""


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(FIRST_US, id="mlopt"),
        pytest.param(FIRST_COREMLTOOLS, id="coremltools", marks=pytest.mark.long),
    ],
)
def test_classes_are_the_same_in_either_order_of_import(before: str) -> None:
    code = textwrap.dedent(before) + textwrap.dedent(SAME)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
