"""The protobuf messages of Core ML models, without the cost of importing coremltools.

``import coremltools`` takes seconds and hundreds of megabytes, while the generated message modules
that it ships need only protobuf. They are imported here from coremltools' ``proto`` folder under a
private package name. The native protobuf implementation registers message types by their full
protobuf name, so a later ``import coremltools`` receives the same classes, and messages move freely
between both.

Public names: ``Model_pb2``, ``MIL_pb2``, ``FeatureTypes_pb2`` and the most used classes, which also
serve as types in signatures. ``ProgramMessage`` and ``FunctionMessage`` are named so because
``mlopt.mil.program`` has views of them called ``Program`` and ``Function``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

_PRIVATE_PACKAGE = "mlopt_coreml_proto"


def _proto_folder() -> Path | None:
    """Return the folder of coremltools' generated messages, or None if it cannot be found."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)), "proto")
    return folder if (folder / "Model_pb2.py").is_file() else None


def _classes_are_shared() -> bool:
    """Return whether importing a generated module twice gives the same classes.

    Only protobuf's pure Python implementation builds new classes at each import.
    """
    from google.protobuf.internal import api_implementation

    return bool(api_implementation.Type() != "python")


def _import_messages() -> tuple[Any, Any, Any]:
    """Return the modules ``Model_pb2``, ``MIL_pb2`` and ``FeatureTypes_pb2``.

    Raises
    ------
    ImportError
        coremltools is not installed.
    """
    if "coremltools.proto" in sys.modules:
        package = "coremltools.proto"
    else:
        folder = _proto_folder() if _classes_are_shared() else None
        if folder is None:
            package = "coremltools.proto"
        else:
            package = _PRIVATE_PACKAGE
            if package not in sys.modules:
                module = types.ModuleType(package, "coremltools' messages, imported by themselves.")
                module.__path__ = [str(folder)]
                sys.modules[package] = module
    model = importlib.import_module(f"{package}.Model_pb2")
    mil = importlib.import_module(f"{package}.MIL_pb2")
    feature_types = importlib.import_module(f"{package}.FeatureTypes_pb2")
    return model, mil, feature_types


Model_pb2, MIL_pb2, FeatureTypes_pb2 = _import_messages()

if TYPE_CHECKING:

    class Message(Any):  # type: ignore[misc]
        """Any protobuf message; its fields are untyped, as in the generated classes."""

    class Model(Message): ...  # noqa: D101

    class ProgramMessage(Message): ...  # noqa: D101

    class FunctionMessage(Message): ...  # noqa: D101

    class Block(Message): ...  # noqa: D101

    class Operation(Message): ...  # noqa: D101

    class Binding(Message): ...  # noqa: D101

    class Value(Message): ...  # noqa: D101

    class ValueType(Message): ...  # noqa: D101

else:
    Model = Model_pb2.Model
    ProgramMessage = MIL_pb2.Program
    FunctionMessage = MIL_pb2.Function
    Block = MIL_pb2.Block
    Operation = MIL_pb2.Operation
    Binding = MIL_pb2.Argument.Binding
    Value = MIL_pb2.Value
    ValueType = MIL_pb2.ValueType
