"""Programs of a few operations, written with coremltools' builder, run here, and judged.

``run`` gives what mlopt computes. ``inferred`` gives what coremltools itself computes while it
builds the program, where its operation has a numpy inference: then all inputs are constants.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from mlopt.runtime import load

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
Arrays = Mapping[str, np.ndarray]


def convert(
    build: Callable[..., Any],
    inputs: Arrays,
    *,
    target: str = "iOS15",
    precision: str = "float32",
    shapes: Mapping[str, Sequence[Any]] | None = None,
    opset_only: bool = True,
) -> Any:
    """An MLModel of what ``build`` makes of variables named as ``inputs`` (same order).

    No graph pass runs, so the operations are those that ``build`` has written. ``shapes``: symbolic
    ones of some inputs (``ct.RangeDim()`` is not needed: use ``mb.program`` symbols).
    """
    opset = getattr(ct.target, target)
    specs = [
        mb.TensorSpec(
            tuple((shapes or {}).get(name, array.shape)),
            types.numpy_type_to_builtin_type(array.dtype),
        )
        for name, array in inputs.items()
    ]

    def named(*variables: Any) -> Any:
        return build(**dict(zip(inputs, variables, strict=True)))

    program = _with_parameters(named, list(inputs), specs, opset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=opset,
            compute_precision=getattr(ct.precision, precision.upper()),
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )


def run(
    build: Callable[..., Any],
    inputs: Arrays,
    *,
    target: str = "iOS15",
    computed: str = "float32",
    **options: Any,
) -> list[Any]:
    """The outputs of the program, in order; ``computed``: the runtime's precision."""
    model = convert(build, inputs, target=target, **options)
    program = load(model, precision=computed)
    outputs = program.predict(dict(inputs), seed=0)
    return [outputs[name] for name in program.outputs]


def assert_of_halves(array: np.ndarray) -> None:
    """That an output was computed in float16: ``predict`` gives it in float32, as coremltools."""
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, array.astype(np.float16))


def inferred(build: Callable[..., Any], inputs: Arrays, *, target: str = "iOS15") -> list[Any]:
    """What coremltools computes in numpy for constant inputs; AssertionError if it does not."""
    found: list[Any] = []

    def with_constants(_: Any) -> Any:
        constants = {name: mb.const(val=array) for name, array in inputs.items()}
        results = build(**constants)
        for result in results if isinstance(results, (list, tuple)) else [results]:
            assert result.val is not None, f"{result.op.op_type} has no value inference"
            found.append(np.asarray(result.val))
        return results

    spec = [mb.TensorSpec((1,))]
    _with_parameters(lambda _: with_constants(_), ["unused"], spec, getattr(ct.target, target))
    return found


def _with_parameters(
    function: Callable[..., Any], names: list[str], specs: list[Any], opset: Any
) -> Any:
    """``mb.program`` takes the names of inputs from the names of a function's parameters."""
    parameters = ", ".join(names)
    scope: dict[str, Any] = {"function": function}
    exec(f"def main({parameters}):\n    return function({parameters})", scope)
    return mb.program(input_specs=specs, opset_version=opset)(scope["main"])
