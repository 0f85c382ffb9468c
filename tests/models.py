"""Small models of every kind that mlopt has to handle, converted by coremltools.

Each builder returns a ``coremltools`` MLModel whose larger constants have more than 2048 elements,
the default weight threshold, so that they are palettized. Weights are random with a fixed seed, and
every tensor is different. Conversions take about a second each, so builders are cached for the
session: what they return is shared, and a test must not change it.

``build(kind, target, precision)`` reaches them by name; ``KINDS`` lists the names.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.models import MLModel
from torch import nn
from torch.nn import functional as F

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18")

# Kept for the whole process: an MLModel of several functions refers to the package it came from.
FOLDER = tempfile.TemporaryDirectory(prefix="mlopt-tests-")


def build(kind: str, target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return the model called ``kind`` (see ``KINDS``) for a deployment target and precision.

    Kinds that need iOS18 (see ``NEWEST``) refuse an older target with a ValueError.
    """
    if kind in NEWEST and target != "iOS18":
        raise ValueError(f"{kind} models need iOS18, got {target}")
    return KINDS[kind](target=target, precision=precision)


def kinds(target: str = "iOS15") -> list[str]:
    """Return the names of the kinds that ``target`` can express."""
    return [kind for kind in KINDS if target == "iOS18" or kind not in NEWEST]


@functools.cache
def convolutional(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return convolutions: plain, grouped, depthwise, transposed (also grouped), 1-D, dilated.

    Input ``image`` [1, 3, 16, 16], output ``out`` [1, 10]. Batch norm after ``stem`` is folded into
    it, and the one after ``grouped`` stays apart, behind a ReLU.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 5, stride=2, padding=2, bias=False)
            self.stem_norm = nn.BatchNorm2d(32)
            self.plain = nn.Conv2d(32, 64, 3, padding="same")
            self.grouped = nn.Conv2d(64, 64, 3, padding=(1, 0), groups=4)
            self.grouped_norm = nn.BatchNorm2d(64)
            self.depthwise = nn.Conv2d(64, 64, 7, padding=3, groups=64)
            self.pointwise = nn.Conv2d(64, 48, 1, bias=False)
            self.transposed = nn.ConvTranspose2d(48, 32, 4, stride=2, padding=1)
            self.transposed_grouped = nn.ConvTranspose2d(
                32, 64, 3, stride=2, padding=1, output_padding=1, groups=2
            )
            self.dilated = nn.Conv2d(64, 24, 3, dilation=2, padding="valid")
            self.line = nn.Conv1d(24, 32, 5, padding=2, padding_mode="zeros")
            self.head = nn.Linear(32, 10)
            self.wide = nn.Linear(10, 256)
            self.narrow = nn.Linear(256, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem_norm(self.stem(image)))
            x = self.plain(x)
            x = self.grouped_norm(F.relu(self.grouped(x)))
            x = self.pointwise(F.relu(self.depthwise(x)))
            x = F.relu(self.transposed(x))
            x = F.relu(self.transposed_grouped(x))
            x = self.dilated(x).flatten(2)
            x = self.line(x).mean(dim=2)
            x = self.head(x)
            return self.narrow(F.relu(self.wide(x)))

    net = random_weights(Net(), seed=1)
    return convert(net, {"image": (1, 3, 16, 16)}, ["out"], target=target, precision=precision)


@functools.cache
def transformer(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return a causal two-layer transformer whose output head is its token embedding.

    Input ``tokens`` int32 [1, 48], output ``logits`` [1, 48, 96]. The embedding [96, 64] feeds a
    gather and the linear at the end. One layer's attention adds a mask with -inf, [48, 48], the
    other's a mask with -1e4, [1, 1, 48, 48]: both are larger than the weight threshold. The
    positions [48, 64] are a constant that an add consumes.
    """

    class Layer(nn.Module):
        def __init__(self, width: int, heads: int, mask: torch.Tensor) -> None:
            super().__init__()
            self.heads = heads
            self.norm1 = nn.LayerNorm(width)
            self.norm2 = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.key = nn.Linear(width, width, bias=False)
            self.value = nn.Linear(width, width)
            self.out = nn.Linear(width, width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)
            self.register_buffer("mask", mask)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, width = 1, 48, 64
            y = self.norm1(x)
            split = (batch, length, self.heads, width // self.heads)
            q = self.query(y).view(split).transpose(1, 2)
            k = self.key(y).view(split).transpose(1, 2)
            v = self.value(y).view(split).transpose(1, 2)
            scores = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5
            scores = scores + self.mask
            y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
            x = x + self.out(y)
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            infinite = torch.full((48, 48), float("-inf")).triu(1)
            large = torch.full((1, 1, 48, 48), -1e4).triu(1)
            self.embedding = nn.Embedding(96, 64)
            self.position = nn.Parameter(torch.zeros(48, 64))
            self.layers = nn.ModuleList([Layer(64, 4, infinite), Layer(64, 4, large)])
            self.norm = nn.LayerNorm(64)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens) + self.position
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.embedding.weight)

    net = random_weights(Net(), seed=2)
    return convert(
        net, {"tokens": (1, 48)}, ["logits"], target=target, precision=precision, integer=True
    )


@functools.cache
def recurrent(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return a bidirectional LSTM and a GRU after it, then a linear layer.

    Input ``frames`` [1, 8, 24], output ``out`` [1, 8, 16].
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(24, 32, batch_first=True, bidirectional=True)
            self.gru = nn.GRU(64, 40, batch_first=True)
            self.head = nn.Linear(40, 64)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            x, _ = self.lstm(frames)
            x, _ = self.gru(x)
            return self.head(x)

    net = random_weights(Net(), seed=3)
    return convert(net, {"frames": (1, 8, 24)}, ["out"], target=target, precision=precision)


@functools.cache
def stateful(target: str = "iOS18", precision: str = "float16") -> MLModel:
    """Return one attention step over a key cache and a value cache held in states.

    Input ``x`` [1, 1, 64], output ``out`` [1, 1, 64], states ``keys`` and ``values`` float16
    [1, 16, 64]. Each call shifts the caches by one row. iOS18 only.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.zeros(1, 16, 64))
            self.register_buffer("values", torch.zeros(1, 16, 64))
            self.query = nn.Linear(64, 64)
            self.key = nn.Linear(64, 64)
            self.value = nn.Linear(64, 64)
            self.out = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keys = torch.cat([self.keys[:, 1:], self.key(x)], dim=1)
            values = torch.cat([self.values[:, 1:], self.value(x)], dim=1)
            self.keys[:] = keys
            self.values[:] = values
            weights = (self.query(x) @ keys.transpose(1, 2)).softmax(dim=-1)
            return self.out(weights @ values)

    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=(1, 16, 64), dtype=np.float16), name=name)
        for name in ("keys", "values")
    ]
    net = random_weights(Net(), seed=4)
    return convert(
        net, {"x": (1, 1, 64)}, ["out"], target=target, precision=precision, states=states
    )


@functools.cache
def multifunction(target: str = "iOS18", precision: str = "float16") -> MLModel:
    """Return a model of two functions, ``base`` (the default) and ``adapted``.

    Both map ``x`` [1, 64] to ``out`` [1, 10]. They share the weights of their layers ``first``
    [96, 64] and ``second`` [48, 96]; ``head`` [64, 48] then [10, 64] is each function's own.
    iOS18 only.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 96)
            self.second = nn.Linear(96, 48)
            self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.second(F.relu(self.first(x)))))

    folder = Path(tempfile.mkdtemp(dir=FOLDER.name))
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, seed in (("base", 6), ("adapted", 7)):
        net = random_weights(Net(), seed=5)
        random_weights(net.head, seed=seed)
        model = convert(net, {"x": (1, 64)}, ["out"], target=target, precision=precision)
        path = folder / f"{name}.mlpackage"
        model.save(str(path))
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "base"
    joined = folder / "joined.mlpackage"
    quietly(ct.utils.save_multifunction, descriptor, str(joined))
    return MLModel(str(joined), skip_model_load=True)


@functools.cache
def control_flow(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return a cond and a while_loop with large constants inside and outside their blocks.

    Input ``x`` [1, 64], output ``out`` [1, 64]. ``outer`` [64, 64] is used inside both branches of
    the cond and in the loop; ``then_weight``, ``else_weight`` and ``loop_weight``, [64, 64] each,
    stand in the nested blocks; ``inner_weight`` stands in a cond inside the loop. Two constants
    that are outputs of branches, ``branch_value`` and ``other_branch_value`` [1, 2112], must stay
    constants.
    """
    weight = Weights(seed=8, precision=precision)
    values = {
        name: weight(64, 64)
        for name in ("outer", "then_weight", "else_weight", "loop_weight", "inner_weight")
    }
    tables = {name: weight(1, 2112) for name in ("branch_value", "other_branch_value")}

    def const(name: str) -> Any:
        return mb.const(val=values[name], name=name)

    def program(x: Any) -> Any:
        outer = const("outer")

        def positive() -> Any:
            return mb.matmul(x=mb.matmul(x=x, y=const("then_weight")), y=outer, name="then_out")

        def negative() -> Any:
            inside = const("else_weight")
            return mb.linear(x=mb.matmul(x=x, y=outer), weight=inside, name="else_out")

        def step(count: Any, y: Any) -> tuple[Any, Any]:
            y = mb.tanh(x=mb.matmul(x=mb.matmul(x=y, y=const("loop_weight")), y=outer))
            first = mb.squeeze(x=mb.slice_by_size(x=y, begin=[0, 0], size=[1, 1]))
            y = mb.cond(
                pred=mb.greater(x=first, y=weight.dtype(0)),
                _true_fn=lambda: mb.matmul(x=y, y=const("inner_weight"), transpose_y=True),
                _false_fn=lambda: mb.identity(x=y),
            )
            return mb.add(x=count, y=1), y

        def table(name: str) -> Callable[[], Any]:
            return lambda: mb.const(val=tables[name], name=name)

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        sign = mb.greater(x=total, y=weight.dtype(0), name="sign")
        y = mb.cond(pred=sign, _true_fn=positive, _false_fn=negative, name="branch")
        chosen = mb.cond(
            pred=sign,
            _true_fn=table("branch_value"),
            _false_fn=table("other_branch_value"),
            name="table",
        )
        _, y = mb.while_loop(
            _cond=lambda count, y: mb.less(x=count, y=3),
            _body=step,
            loop_vars=(np.int32(0), y),
            name="loop",
        )
        return mb.add(x=y, y=mb.slice_by_size(x=chosen, begin=[0, 0], size=[1, 64]))

    return build_program(program, (1, 64), target=target, precision=precision)


@functools.cache
def matmuls(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return constants on either side of matmul, transposed and not.

    Input ``x`` [1, 64], output ``out`` [2, 1, 64]. Constants: ``y`` [64, 96] and ``y_transposed``
    [48, 96] as the second operand, ``x_plain`` [64, 48] and ``x_transposed`` [64, 36] as the first,
    ``batched`` [2, 36, 64] with two batches, ``both`` [64, 64] as the second operand of two matmuls
    of which one transposes it: they disagree about its channel axis.
    """
    weight = Weights(seed=10, precision=precision)

    def program(x: Any) -> Any:
        x = mb.matmul(x=x, y=mb.const(val=weight(64, 96), name="y"))
        x = mb.matmul(x=x, y=mb.const(val=weight(48, 96), name="y_transposed"), transpose_y=True)
        x = mb.transpose(x=x, perm=[1, 0])
        x = mb.matmul(x=mb.const(val=weight(64, 48), name="x_plain"), y=x)
        x = mb.matmul(x=mb.const(val=weight(64, 36), name="x_transposed"), y=x, transpose_x=True)
        x = mb.expand_dims(x=mb.transpose(x=x, perm=[1, 0]), axes=[0])
        x = mb.matmul(x=x, y=mb.const(val=weight(2, 36, 64), name="batched"))
        both = mb.const(val=weight(64, 64), name="both")
        return mb.matmul(x=mb.matmul(x=x, y=both), y=both, transpose_y=True)

    return build_program(program, (1, 64), target=target, precision=precision)


@functools.cache
def redefined(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return the ops whose parameters change between iOS15 and iOS18.

    Input ``x`` [1, 4, 8, 8], output ``out``. gather twice (``picked``, by constant indices
    of which one is negative before iOS17; ``looked_up``, by computed indices in the constant
    ``rows`` [256, 48]), gather_nd, gather_along_axis, scatter, scatter_along_axis, scatter_nd,
    topk, reduce_argmax, reduce_argmin, upsample_bilinear and gru (``gru_input`` [96, 64] and
    ``gru_hidden`` [96, 32]).
    """
    weight = Weights(seed=11, precision=precision)
    older = target in ("iOS15", "iOS16")

    def program(x: Any) -> Any:
        up = mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False, name="up"
        )
        flat = mb.reshape(x=up, shape=[4, 256], name="flat")
        last = -1 if older else 255
        parts = [mb.gather(x=flat, indices=np.int32([0, last, 5]), axis=1, name="picked")]
        parts.append(mb.gather_nd(x=flat, indices=np.int32([[0, 1], [3, 255]])))
        indices = np.int32(np.arange(12).reshape(4, 3))
        parts.append(mb.gather_along_axis(x=flat, indices=indices, axis=1))
        updates = mb.slice_by_size(x=flat, begin=[0, 0], size=[2, 256])
        scattered = mb.scatter(
            data=flat, indices=np.int32([1, 2]), updates=updates, axis=0, mode="add"
        )
        few = mb.slice_by_size(x=flat, begin=[0, 8], size=[4, 3])
        scattered = mb.scatter_along_axis(
            data=scattered, indices=indices, updates=few, axis=1, mode="add"
        )
        pair = mb.reshape(x=mb.slice_by_size(x=flat, begin=[0, 0], size=[1, 2]), shape=[2])
        scattered = mb.scatter_nd(
            data=scattered, indices=np.int32([[0, 1], [3, 255]]), updates=pair, mode="add"
        )
        best, where = mb.topk(x=scattered, k=5, axis=1, name="best")
        rows = mb.const(val=weight(256, 48), name="rows")
        parts.append(mb.gather(x=rows, indices=where, axis=0, name="looked_up"))
        parts += [best, mb.cast(x=where, dtype=weight.name)]
        for name in ("reduce_argmax", "reduce_argmin"):
            index = getattr(mb, name)(x=scattered, axis=1, keep_dims=False)
            parts.append(mb.cast(x=index, dtype=weight.name))
        # Before iOS18 a gru computes in float32 only.
        inside = weight if target == "iOS18" else Weights(seed=12, precision="float32")
        steps = mb.cast(x=mb.reshape(x=flat, shape=[16, 1, 64]), dtype=inside.name)
        hidden, _ = mb.gru(
            x=steps,
            initial_h=np.zeros((1, 32), inside.dtype),
            weight_ih=mb.const(val=inside(96, 64), name="gru_input"),
            weight_hh=mb.const(val=inside(96, 32), name="gru_hidden"),
            name="hidden",
        )
        parts.append(mb.cast(x=hidden, dtype=weight.name))
        return mb.concat(values=[mb.reshape(x=p, shape=[-1]) for p in parts], axis=0)

    return build_program(program, (1, 4, 8, 8), target=target, precision=precision)


@functools.cache
def classifier(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return a classifier with everything that a description can carry.

    Input ``image`` [1, 1, 8, 8]; ten class labels; author, license, version and description;
    descriptions of input and outputs; two user-defined keys.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 32, 3)
            self.first = nn.Linear(32 * 36, 16)
            self.head = nn.Linear(16, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.conv(image)).flatten(1)
            return self.head(F.relu(self.first(x))).softmax(dim=1)

    labels = ct.ClassifierConfig([f"digit {i}" for i in range(10)])
    net = random_weights(Net(), seed=9)
    model = convert(
        net, {"image": (1, 1, 8, 8)}, None, target=target, precision=precision, labels=labels
    )
    model.author = "A. Author"
    model.license = "BSD-3-Clause"
    model.version = "1.2.3"
    model.short_description = "Tells digits apart."
    model.input_description["image"] = "A grey image, 8 by 8, of one digit."
    model.user_defined_metadata["trained on"] = "nothing at all"
    model.user_defined_metadata["empty"] = ""
    return model


@functools.cache
def pipeline(target: str = "iOS15", precision: str = "float16") -> MLModel:
    """Return a pipeline of two models: ``x`` [1, 64] -> ``between`` [1, 96] -> ``out`` [1, 48].

    Each model has a weight file of its own, and the two have weights of the same names.
    """

    class Net(nn.Module):
        def __init__(self, columns: int, rows: int) -> None:
            super().__init__()
            self.linear = nn.Linear(columns, rows)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    options = {"target": target, "precision": precision}
    first = convert(random_weights(Net(64, 96), seed=13), {"x": (1, 64)}, ["between"], **options)
    second = convert(random_weights(Net(96, 48), seed=14), {"between": (1, 96)}, ["out"], **options)
    return quietly(ct.utils.make_pipeline, first, second)


KINDS: dict[str, Callable[..., MLModel]] = {
    "convolutional": convolutional,
    "transformer": transformer,
    "recurrent": recurrent,
    "control_flow": control_flow,
    "matmuls": matmuls,
    "redefined": redefined,
    "classifier": classifier,
    "pipeline": pipeline,
    "stateful": stateful,
    "multifunction": multifunction,
}
NEWEST = frozenset({"stateful", "multifunction"})


def random_weights(net: nn.Module, *, seed: int) -> nn.Module:
    """Fill every parameter and batch-norm statistic of ``net`` with different numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim else 1
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return net.eval()


def convert(
    net: nn.Module,
    inputs: dict[str, tuple[int, ...]],
    outputs: list[Any] | None,
    *,
    target: str,
    precision: str = "float16",
    integer: bool = False,
    types: list[Any] | None = None,
    states: list[Any] | None = None,
    labels: Any = None,
) -> MLModel:
    """Trace ``net`` and convert it.

    ``inputs``: name -> shape to trace with; ``integer``: they are int32. ``types``: coremltools'
    types of the inputs, where fixed shapes are not what is wanted. ``outputs``: names or types.
    """
    dtype = torch.int32 if integer else torch.float32
    example = tuple(torch.zeros(shape, dtype=dtype) for shape in inputs.values())
    traced = quietly(torch.jit.trace, net, example, check_trace=False)
    fixed = [
        ct.TensorType(name=name, shape=shape, dtype=np.int32 if integer else np.float32)
        for name, shape in inputs.items()
    ]
    return quietly(
        ct.convert,
        traced,
        convert_to="mlprogram",
        inputs=types or fixed,
        outputs=outputs
        and [ct.TensorType(name=name) if isinstance(name, str) else name for name in outputs],
        states=states,
        classifier_config=labels,
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=_precision(precision),
        skip_model_load=True,
    )


class Weights:
    """A source of random weights of one precision: call it with a shape."""

    def __init__(self, *, seed: int, precision: str) -> None:
        self.generator = np.random.default_rng(seed)
        self.dtype = {"float16": np.float16, "float32": np.float32}[precision]
        self.name = {"float16": "fp16", "float32": "fp32"}[precision]

    def __call__(self, *shape: int) -> np.ndarray:
        return (self.generator.standard_normal(shape) / 8).astype(self.dtype)


def build_program(
    body: Callable[[Any], Any], shape: tuple[int, ...], *, target: str, precision: str
) -> MLModel:
    """Convert a MIL program ``out = body(x)``, ``x`` float32 of ``shape``.

    ``body`` computes in ``precision`` from the start, so that no pass moves its constants about.
    """
    version = getattr(ct.target, target)
    name = {"float16": "fp16", "float32": "fp32"}[precision]

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=version)
    def program(x: Any) -> Any:
        inside = x if name == "fp32" else mb.cast(x=x, dtype=name, name="x_inside")
        out = body(inside)
        return (
            mb.identity(x=out, name="out")
            if name == "fp32"
            else mb.cast(x=out, dtype="fp32", name="out")
        )

    return quietly(
        ct.convert,
        program,
        convert_to="mlprogram",
        minimum_deployment_target=version,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )


def _precision(name: str) -> Any:
    return {"float16": ct.precision.FLOAT16, "float32": ct.precision.FLOAT32}[name]


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` without the warnings of tracing, converting and coremltools' own files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)
