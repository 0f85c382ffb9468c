"""Packages with weights that coremltools compressed, in every form that its functions write.

``FORMS`` lists what each one is called, the targets that have it, and how it is made. ``build``
makes one; the models are shared by the whole session, so a test must not change them.

``FORMS`` does not hold what coremltools 9.0 fails to make: vectors of an already sparse weight
(IndexError), the table of a grouped palette quantized per channel (NotImplementedError).
``handmade`` makes packages from operations that are written by hand.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import coremltools.optimize.coreml as cto
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.models import MLModel

from mlopt.mil.messages import Model, Operation
from mlopt.mil.values import immediate_value, string_value, tensor_type
from tests import judges, models

NEW = ("iOS18",)
ALL = ("iOS16", "iOS18")
EVERY = ("iOS16", "iOS17", "iOS18")


@functools.cache
def source(target: str, precision: str) -> MLModel:
    """Return the model that is compressed: a convolution, its transpose, a linear and a matmul.

    Input ``x`` [1, 8, 10, 10]. The weights are ``conv_w`` [32, 8, 3, 3], ``up_w`` [32, 16, 2, 2],
    ``linear_w`` [48, 16] and ``y`` [48, 40].
    """
    weights = models.Weights(seed=5, precision=precision)
    named = {
        name: weights(*shape)
        for name, shape in {
            "conv_w": (32, 8, 3, 3),
            "up_w": (32, 16, 2, 2),
            "linear_w": (48, 16),
            "y": (48, 40),
        }.items()
    }

    def body(x: Any) -> Any:
        def weight(name: str) -> Any:
            return mb.const(val=named[name], name=name)

        x = mb.conv(x=x, weight=weight("conv_w"), pad_type="same", name="conv")
        x = mb.conv_transpose(x=mb.relu(x=x), weight=weight("up_w"), name="up")
        x = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)
        x = mb.linear(x=x, weight=weight("linear_w"), name="linear")
        return mb.matmul(x=x, y=weight("y"), name="product")

    return models.build_program(body, (1, 8, 10, 10), target=target, precision=precision)


Step = Callable[[Any], Any]


def palettized(**options: Any) -> Step:
    """A step that palettizes the data of a model."""
    options = {"weight_threshold": 0} | options

    def step(model: Any) -> Any:
        joint = options.get("joint", False)
        config = cto.OpPalettizerConfig(**{k: v for k, v in options.items() if k != "joint"})
        return cto.palettize_weights(model, cto.OptimizationConfig(config), joint)

    return step


def quantized(**options: Any) -> Step:
    """A step that quantizes the data of a model."""
    options = {"weight_threshold": 0} | options

    def step(model: Any) -> Any:
        joint = options.get("joint", False)
        config = cto.OpLinearQuantizerConfig(**{k: v for k, v in options.items() if k != "joint"})
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(config), joint)

    return step


def pruned(config: Any, *, joint: bool = False, **options: Any) -> Step:
    """A step that makes the data of a model sparse."""
    config = config(weight_threshold=0, **options)
    return lambda model: cto.prune_weights(model, cto.OptimizationConfig(config), joint)


@attrs.frozen
class Form:
    """One form: the targets that have it, and the steps that make it one after another."""

    targets: tuple[str, ...]
    steps: tuple[Step, ...]
    precisions: tuple[str, ...] = ("float16",)


BOTH = ("float16", "float32")
_sparse = pruned(cto.OpThresholdPrunerConfig, threshold=0.1, minimum_sparsity_percentile=0.0)
_grouped: dict[str, Any] = {"granularity": "per_grouped_channel", "group_size": 8}
_halved: dict[str, Any] = {"granularity": "per_block", "block_size": 8}

FORMS: dict[str, Form] = {
    "lut kmeans 4": Form(EVERY, (palettized(mode="kmeans", nbits=4),), BOTH),
    "lut kmeans 6": Form(ALL, (palettized(mode="kmeans", nbits=6),)),
    "lut kmeans 1": Form(ALL, (palettized(mode="kmeans", nbits=1),)),
    "lut uniform 2": Form(ALL, (palettized(mode="uniform", nbits=2),), BOTH),
    "lut uniform 8": Form(ALL, (palettized(mode="uniform", nbits=8),)),
    "lut 3": Form(NEW, (palettized(mode="kmeans", nbits=3),)),
    "lut grouped": Form(NEW, (palettized(mode="kmeans", nbits=4, **_grouped),), BOTH),
    "lut grouped, axis 1": Form(
        NEW, (palettized(mode="kmeans", nbits=2, channel_axis=1, **_grouped),)
    ),
    "lut vectors": Form(NEW, (palettized(mode="kmeans", nbits=4, cluster_dim=2),)),
    "lut vectors, grouped": Form(
        NEW, (palettized(mode="kmeans", nbits=2, cluster_dim=4, **_grouped),), BOTH
    ),
    "lut scaled": Form(
        NEW, (palettized(mode="kmeans", nbits=4, enable_per_channel_scale=True, **_grouped),), BOTH
    ),
    "quantized int8": Form(
        EVERY, (quantized(mode="linear_symmetric", granularity="per_channel"),), BOTH
    ),
    "quantized int8, shifted": Form(
        ALL, (quantized(mode="linear", granularity="per_channel"),), BOTH
    ),
    "quantized uint8": Form(ALL, (quantized(mode="linear", dtype="uint8"),)),
    "quantized uint8, symmetric": Form(
        ALL, (quantized(mode="linear_symmetric", dtype=np.uint8, granularity="per_tensor"),)
    ),
    "quantized int8 per tensor": Form(
        ALL, (quantized(mode="linear", granularity="per_tensor"),), BOTH
    ),
    "quantized int4": Form(
        NEW, (quantized(mode="linear_symmetric", dtype="int4", granularity="per_channel"),)
    ),
    "quantized int4 per tensor": Form(
        NEW, (quantized(mode="linear", dtype="int4", granularity="per_tensor"),)
    ),
    "quantized uint4": Form(
        NEW, (quantized(mode="linear", dtype="uint4", granularity="per_channel"),), BOTH
    ),
    "quantized int4 per block": Form(
        NEW, (quantized(mode="linear_symmetric", dtype="int4", **_halved),), BOTH
    ),
    "quantized uint4 per block": Form(
        NEW, (quantized(mode="linear", dtype="uint4", granularity="per_block", block_size=2),)
    ),
    "quantized uint8 per block": Form(NEW, (quantized(mode="linear", dtype="uint8", **_halved),)),
    "quantized int8 per block": Form(
        NEW, (quantized(mode="linear", granularity="per_block", block_size=16),)
    ),
    "sparse threshold": Form(EVERY, (_sparse,), BOTH),
    "sparse magnitude": Form(ALL, (pruned(cto.OpMagnitudePrunerConfig, target_sparsity=0.7),)),
    "sparse n:m": Form(ALL, (pruned(cto.OpMagnitudePrunerConfig, n_m_ratio=(3, 4)),)),
    "sparse block": Form(
        ALL, (pruned(cto.OpMagnitudePrunerConfig, target_sparsity=0.5, block_size=4),)
    ),
    "sparse, all zeros": Form(ALL, (pruned(cto.OpThresholdPrunerConfig, threshold=100.0),)),
    "sparse, palettized": Form(
        NEW, (_sparse, palettized(mode="kmeans", nbits=4, joint=True)), BOTH
    ),
    "sparse, palettized in groups": Form(
        NEW, (_sparse, palettized(mode="kmeans", nbits=2, joint=True, **_grouped))
    ),
    "sparse, quantized": Form(NEW, (_sparse, quantized(mode="linear_symmetric", joint=True)), BOTH),
    "sparse, quantized uint8": Form(
        NEW, (_sparse, quantized(mode="linear", dtype="uint8", joint=True))
    ),
    "sparse, quantized int4 per block": Form(
        NEW, (_sparse, quantized(mode="linear_symmetric", dtype="int4", joint=True, **_halved))
    ),
    "palettized, quantized": Form(
        NEW,
        (
            palettized(mode="kmeans", nbits=4),
            quantized(mode="linear_symmetric", granularity="per_tensor", joint=True),
        ),
        BOTH,
    ),
    "palettized in groups, quantized": Form(
        NEW,
        (
            palettized(mode="kmeans", nbits=4, **_grouped),
            quantized(mode="linear_symmetric", granularity="per_tensor", joint=True),
        ),
    ),
    "quantized, palettized": Form(
        NEW,
        (
            quantized(mode="linear_symmetric", granularity="per_channel"),
            palettized(mode="kmeans", nbits=4, joint=True),
        ),
    ),
    "sparse, palettized, quantized": Form(
        NEW,
        (
            _sparse,
            palettized(mode="kmeans", nbits=4, joint=True),
            quantized(mode="linear_symmetric", granularity="per_tensor", joint=True),
        ),
    ),
}

CASES = [
    (name, target, precision)
    for name, form in FORMS.items()
    for target in form.targets
    for precision in form.precisions
]


@functools.cache
def build(name: str, target: str, precision: str = "float16") -> MLModel:
    """Return the model of a form."""
    model = source(target, precision)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for step in FORMS[name].steps:
            model = step(model)
    return model


def materialised_constants(source: Any, function: str = "main") -> dict[str, np.ndarray]:
    """Return what every constexpr operation of a function gives, by the names of its outputs."""
    (program,) = judges.load_programs(source)
    return {
        var.name: value
        for op in judges.pymil_operations(program.functions[function])
        if op.op_type.startswith("constexpr_")
        for var, value in zip(op.outputs, judges.materialised(op), strict=True)
    }


# --- packages made by hand ------------------------------------------------------------------------

Type = tuple[str, tuple[int, ...]]
"""Element type by name, and shape."""


def value(data: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
    """Return a Value in the message; integers of elements narrower than a byte are packed."""
    bits = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "int4": 4, "uint6": 6}.get(dtype)
    array = np.asarray(data)
    if bits is not None:
        shape = array.shape if shape is None else shape
        number = sum(
            (int(code) & ((1 << bits) - 1)) << (i * bits)
            for i, code in enumerate(array.reshape(-1))
        )
        array = np.frombuffer(number.to_bytes(-(-array.size * bits // 8), "little"), np.uint8)
    return immediate_value(array, dtype, shape)


def constant(name: str, content: Any) -> Any:
    """Return a const operation."""
    op = Operation(type="const")
    op.attributes["name"].CopyFrom(string_value(name))
    op.attributes["val"].CopyFrom(content)
    op.outputs.add(name=name, type=content.type)
    return op


def constexpr(
    kind: str, outputs: Mapping[str, Type], *, old: bool = False, **parameters: Any
) -> Any:
    """Return a ``constexpr_<kind>`` operation.

    ``parameters``: Values, or names; ``old``: the former are attributes, as up to CoreML7.
    """
    op = Operation(type=f"constexpr_{kind}")
    op.attributes["name"].CopyFrom(string_value(next(iter(outputs))))
    for key, bound in parameters.items():
        if isinstance(bound, str):
            op.inputs[key].arguments.add().name = bound
        elif old:
            op.attributes[key].CopyFrom(bound)
        else:
            op.inputs[key].arguments.add().value.CopyFrom(bound)
    for name, (dtype, shape) in outputs.items():
        op.outputs.add(name=name, type=tensor_type(dtype, shape))
    return op


_FOLDER = tempfile.TemporaryDirectory(prefix="mlopt-tests-")


@functools.cache
def _template(target: str) -> Path:
    model = models.build_program(
        lambda x: mb.identity(x=x), (1, 4), target=target, precision="float32"
    )
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    models.quietly(model.save, str(folder / "template.mlpackage"))
    return folder / "template.mlpackage"


def handmade(
    path: Path,
    target: str,
    operations: Iterable[Any],
    reads: Iterable[str],
    returns: Iterable[str] = (),
) -> Path:
    """Write a package whose program begins with ``operations``; return its path.

    ``reads``: names that an ordinary operation reads; ``returns``: names that the block returns.
    """
    shutil.copytree(_template(target), path)
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    rest = list(block.operations)
    del block.operations[:]
    types: dict[str, Any] = {}
    for op in operations:
        block.operations.add().CopyFrom(op)
        types |= {output.name: output.type for output in op.outputs}
    for name in reads:
        op = block.operations.add(type="identity")
        op.inputs["x"].arguments.add().name = name
        op.outputs.add(name=f"{name}_read", type=types[name])
        op.attributes["name"].CopyFrom(string_value(f"{name}_read"))
    block.operations.extend(rest)
    block.outputs.extend(returns)
    file.write_bytes(spec.SerializeToString())
    return path
