"""Converting models in tests, and what coremltools and the runtime make of the result."""

from __future__ import annotations

import warnings

import coremltools as ct
import numpy as np
import torch

import mlopt.runtime
from tests.judges import decompressed_constants, load_program, pymil_operations


def quietly(function, *args, **kwargs):
    """Call without the warnings of tracing and of coremltools, mlopt's own excepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="palettized weights")
        return function(*args, **kwargs)


def plainly_converted(model, examples, **options):
    """What ``coremltools.convert`` makes of a traced model, for iOS18."""
    types = [
        ct.TensorType(shape=e.shape, dtype=np.float32 if e.is_floating_point() else np.int32)
        for e in examples
    ]
    return quietly(
        lambda: ct.convert(
            torch.jit.trace(model, examples),
            inputs=types,
            minimum_deployment_target=ct.target.iOS18,
            **options,
        )
    )


def compressed_weights(model):
    """The weights that constexpr operations give, as coremltools loads and materialises them."""
    values = decompressed_constants(model)
    return [
        values[op.outputs[0].name]
        for op in pymil_operations(load_program(model).functions["main"])
        if op.op_type.startswith("constexpr_")
        and not all(
            user.op_type.startswith("constexpr_") for o in op.outputs for user in o.child_ops
        )
    ]


def outputs(model, examples):
    """What the runtime computes, in the order of the model's outputs."""
    description = model.get_spec().description
    names = [each.name for each in description.input]
    inputs = {
        name: example.numpy() if example.is_floating_point() else example.int().numpy()
        for name, example in zip(names, examples, strict=True)
    }
    found = mlopt.runtime.load(model).predict(inputs)
    return [found[each.name] for each in description.output]


def same_arrays(found, expected):
    """Whether two collections have equal arrays, in any order."""
    return sorted((a.shape, a.tobytes()) for a in found) == sorted(
        (a.shape, a.tobytes()) for a in expected
    )
