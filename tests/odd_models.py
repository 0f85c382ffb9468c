"""Kinds of models that are rarer than those of ``tests.models``, as packages on disk.

``build(kind, folder)`` writes one and returns its path; ``KINDS`` lists them, with what coremltools
can do with each. The models here are converted; those of which the message or the weight files are
edited by hand are in ``tests.edited_models``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn
from torch.nn import functional as F

from tests.models import Weights, build_program, convert, quietly, random_weights


@attrs.frozen
class Kind:
    """One kind: ``build`` writes the package to a path.

    ``loads``: coremltools' loader accepts it, so that it can judge what becomes of it.
    """

    build: Callable[[Path], None]
    loads: bool = True


KINDS: dict[str, Kind] = {}


def kind(*, loads: bool = True) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a builder into ``KINDS`` under its own name."""

    def enter(build: Callable[[Path], None]) -> Callable[[Path], None]:
        KINDS[build.__name__] = Kind(build, loads)
        return build

    return enter


def build(name: str, folder: Path) -> Path:
    """Write the package of a kind into ``folder`` and return its path."""
    path = folder / f"{name}.mlpackage"
    KINDS[name].build(path)
    return path


def save(model: Any, path: Path) -> None:
    """Save an MLModel without coremltools' warnings."""
    quietly(model.save, str(path))


class Linear(nn.Module):
    """One linear layer, ``linear``."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.linear = nn.Linear(columns, rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., columns] to [..., rows]."""
        return self.linear(x)


@functools.cache
def linear(
    columns: int, rows: int, *, names: tuple[str, str] = ("x", "out"), target: str, seed: int
) -> Any:
    """An MLModel of one linear layer with the weight ``linear_weight_to_fp16`` [rows, columns]."""
    net = random_weights(Linear(columns, rows), seed=seed)
    return convert(net, {names[0]: (1, columns)}, [names[1]], target=target)


# --- what a description can say of inputs and outputs ---------------------------------------------


@kind()
def flexible_ranges(path: Path) -> None:
    """Two inputs whose lengths are ranges with defaults; one length is computed with."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(64, 48)
            self.right = nn.Linear(64, 48)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(x.shape[1])  # the length is found by a gather
            return self.left(x).mean(1) + self.right(y).mean(1) + steps.float().sum()

    ranges = {"x": ct.RangeDim(1, 32, default=8), "y": ct.RangeDim(2, 4000, default=5)}
    types = [ct.TensorType(name=name, shape=(1, dim, 64)) for name, dim in ranges.items()]
    net = random_weights(Net(), seed=21)
    shapes = {"x": (1, 8, 64), "y": (1, 5, 64)}
    save(convert(net, shapes, ["out"], target="iOS15", types=types), path)


@kind()
def flexible_shapes(path: Path) -> None:
    """An image and an array with enumerated shapes each, of which the second is the default."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 48, 5, padding=2)
            self.point = nn.Conv2d(48, 48, 1)

        def forward(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.point(F.relu(self.conv(image))).mean((2, 3)) + x.mean(1)

    sizes = ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 24, 24)], default=(1, 3, 24, 24))
    lengths = ct.EnumeratedShapes([(1, 2, 48), (1, 4, 48)], default=(1, 4, 48))
    types = [
        ct.ImageType(name="image", shape=sizes, scale=1 / 255),
        ct.TensorType(name="x", shape=lengths),
    ]
    net = random_weights(Net(), seed=22)
    shapes = {"image": (1, 3, 24, 24), "x": (1, 4, 48)}
    save(convert(net, shapes, ["out"], target="iOS18", types=types), path)


@kind()
def images(path: Path) -> None:
    """Images of every colour layout as inputs, with scale and bias; two images as outputs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(8, 32, 3, padding=1)
            self.body = nn.Conv2d(32, 32, 3, padding=1)
            self.colour = nn.Conv2d(32, 3, 1)
            self.grey = nn.Conv2d(32, 1, 1)

        def forward(self, *images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = F.relu(self.body(F.relu(self.mix(torch.cat(images, dim=1)))))
            return self.colour(x).clamp(0, 255), self.grey(x)

    layouts = {"rgb": "RGB", "bgr": "BGR", "grey": "GRAYSCALE", "half": "GRAYSCALE_FLOAT16"}
    shapes = {name: (1, 3 if len(name) == 3 else 1, 12, 12) for name in layouts}
    types = [
        ct.ImageType(
            name=name,
            shape=shapes[name],
            color_layout=getattr(ct.colorlayout, layout),
            scale=1 / 127.5 if name == "rgb" else 1.0,
            bias=[-1.0, -0.5, 0.25] if name == "rgb" else None,
        )
        for name, layout in layouts.items()
    ]
    outputs = [
        ct.ImageType(name="picture", color_layout=ct.colorlayout.RGB),
        ct.ImageType(name="depth", color_layout=ct.colorlayout.GRAYSCALE_FLOAT16),
    ]
    net = random_weights(Net(), seed=23)
    save(convert(net, shapes, outputs, target="iOS16", types=types), path)


@kind()
def integer_classifier(path: Path) -> None:
    """A classifier of a grey image whose labels are 64-bit integers, with named outputs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 48)
            self.last = nn.Linear(48, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.first(image.flatten(1)))).softmax(-1)

    labels = ct.ClassifierConfig([7, -1, 2**40, 0], predicted_feature_name="kind of thing")
    types = [ct.ImageType(name="image", shape=(1, 1, 8, 8), color_layout=ct.colorlayout.GRAYSCALE)]
    net = random_weights(Net(), seed=24)
    model = convert(net, {"image": (1, 1, 8, 8)}, None, target="iOS15", types=types, labels=labels)
    model.author, model.license, model.version = "Zoë Ünal", "MIT\nwith a second line", "0.1-β"
    model.user_defined_metadata.update({"com.example/key": "a\nb", "empty": "", "日本": "語"})
    save(model, path)


@kind()
def optional_inputs(path: Path) -> None:
    """Optional inputs with default values, one in a range of shapes; float16 in and out."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 48)

        def forward(self, x: torch.Tensor, add: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            return self.linear(x + add) * times

    types = [
        ct.TensorType(name="x", shape=(1, 64), dtype=np.float16),
        ct.TensorType(name="add", shape=(1, 64), default_value=np.full((1, 64), 0.5, np.float32)),
        ct.TensorType(name="times", shape=(1, 48), default_value=np.ones((1, 48), np.float32)),
    ]
    shapes = {"x": (1, 64), "add": (1, 64), "times": (1, 48)}
    outputs = [ct.TensorType(name="out", dtype=np.float16)]
    net = random_weights(Net(), seed=25)
    save(convert(net, shapes, outputs, target="iOS16", types=types), path)


@kind()
def newest_target(path: Path) -> None:
    """A model for iOS26, whose input and output are 8-bit integers."""
    types = [ct.TensorType(name="x", shape=(1, 64), dtype=np.int8)]
    outputs = [ct.TensorType(name="out", dtype=np.int8)]
    net = random_weights(Linear(64, 48), seed=30)
    save(convert(net, {"x": (1, 64)}, outputs, target="iOS26", types=types), path)


@kind()
def key_value_cache(path: Path) -> None:
    """Two decoder layers with a key and a value cache each, four states; the embedding is tied."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joint = nn.Linear(48, 144)
            self.out = nn.Linear(48, 48)

        def forward(
            self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
        ) -> torch.Tensor:
            q, k, v = self.joint(x).split(48, dim=-1)
            keys[:, 5:6] = k
            values[:, 5:6] = v
            return x + self.out((q @ keys.transpose(1, 2)).softmax(-1) @ values)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(64, 48)
            self.layers = nn.ModuleList([Layer(), Layer()])
            for index in range(2):
                self.register_buffer(f"keys{index}", torch.zeros(1, 8, 48))
                self.register_buffer(f"values{index}", torch.zeros(1, 8, 48))

        def forward(self, token: torch.Tensor) -> torch.Tensor:
            x = self.embedding(token)
            x = self.layers[0](x, self.keys0, self.values0)
            x = self.layers[1](x, self.keys1, self.values1)
            return F.linear(x, self.embedding.weight)

    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=(1, 8, 48), dtype=np.float16), name=name)
        for name in ("keys0", "values0", "keys1", "values1")
    ]
    net = random_weights(Net(), seed=26)
    model = convert(net, {"token": (1, 1)}, ["logits"], target="iOS18", integer=True, states=states)
    save(model, path)


# --- what a program can hold ----------------------------------------------------------------------


@kind()
def nested_blocks(path: Path) -> None:
    """A cond in a while_loop in a cond, with weights at each depth and captured from each outside.

    ``top`` is read at all depths, ``middle`` stands in the branch and is read in the loop and in
    the cond inside, ``deep`` stands in that cond. ``carried`` enters the loop as a variable, and
    ``returned`` stands outside of a branch that returns it.
    """
    weight = Weights(seed=27, precision="float16")
    names = ("top", "middle", "deep", "loop", "carried", "returned")
    values = {name: weight(64, 64) for name in names}

    def const(name: str) -> Any:
        return mb.const(val=values[name], name=name)

    def program(x: Any) -> Any:
        top, returned, carried = const("top"), const("returned"), const("carried")

        def branch() -> Any:
            middle = const("middle")

            def step(count: Any, y: Any, w: Any) -> tuple[Any, Any, Any]:
                y = mb.matmul(x=mb.matmul(x=y, y=const("loop")), y=middle)
                first = mb.squeeze(x=mb.slice_by_size(x=y, begin=[0, 0], size=[1, 1]))

                def positive() -> Any:
                    z = mb.matmul(x=mb.matmul(x=y, y=const("deep")), y=middle)
                    return mb.matmul(x=z, y=top, name="positive")

                y = mb.cond(
                    pred=mb.greater(x=first, y=np.float16(0)),
                    _true_fn=positive,
                    _false_fn=lambda: mb.matmul(x=y, y=w, name="negative"),
                )
                return mb.add(x=count, y=1), y, w

            _, y, _ = mb.while_loop(
                _cond=lambda count, y, w: mb.less(x=count, y=3),
                _body=step,
                loop_vars=(np.int32(0), x, carried),
            )
            return mb.matmul(x=y, y=top)

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        sign = mb.greater(x=total, y=np.float16(0), name="sign")
        y = mb.cond(pred=sign, _true_fn=branch, _false_fn=lambda: mb.matmul(x=x, y=top))
        chosen = mb.cond(
            pred=sign,
            _true_fn=lambda: mb.identity(x=mb.matmul(x=returned, y=top)),
            _false_fn=lambda: returned,
        )
        return mb.matmul(x=y, y=chosen)

    save(build_program(program, (1, 64), target="iOS15", precision="float16"), path)


@kind()
def several_functions(path: Path) -> None:
    """Functions that share all, some or none of their weights with ``base``; not the first leads.

    ``base``, ``same`` (all), ``adapted`` (``first``; its ``second`` has the same name and other
    numbers) and ``other`` (none); ``adapted`` is the default.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.second = nn.Linear(64, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.relu(self.first(x)))

    seeds = {"base": (31, 32), "same": (31, 32), "adapted": (31, 33), "other": (34, 35)}
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, (first, second) in seeds.items():
        net = Net()
        random_weights(net.first, seed=first)
        random_weights(net.second, seed=second)
        source = path.with_name(f"{name}-{path.name}")
        save(convert(net.eval(), {"x": (1, 64)}, ["out"], target="iOS18"), source)
        descriptor.add_function(str(source), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "adapted"
    quietly(ct.utils.save_multifunction, descriptor, str(path))


@kind()
def small_constants(path: Path) -> None:
    """A program without a weight file: no constant has ten elements."""

    def program(x: Any) -> Any:
        weight = mb.const(val=np.float16([[1, 2], [3, 4]]), name="weight")
        return mb.linear(x=x, weight=weight)

    save(build_program(program, (1, 2), target="iOS15", precision="float16"), path)


@kind()
def integer_constants(path: Path) -> None:
    """Constants of 8-, 16- and 32-bit integers and booleans beside a float and a -inf mask."""
    generator = np.random.default_rng(28)
    weight = Weights(seed=29, precision="float16")
    mask = np.where(np.tri(64, dtype=bool), 0, -np.inf).astype(np.float16)

    def program(x: Any) -> Any:
        where = mb.reduce_argmax(x=x, axis=1, keep_dims=False)  # computed, so nothing is folded
        x = mb.linear(x=x, weight=mb.const(val=weight(64, 64), name="w"), name="projected")
        x = mb.add(x=x, y=mb.const(val=mask, name="mask"))
        for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32):
            name = np.dtype(dtype).name
            table = mb.const(val=generator.integers(0, 99, (64, 64)).astype(dtype), name=name)
            rows = mb.gather(x=table, indices=where, axis=0)
            if name != "int32":
                rows = mb.cast(x=rows, dtype="int32")
            rows = mb.reduce_sum(x=mb.cast(x=rows, dtype="fp16"), axes=[0], keep_dims=True)
            x = mb.add(x=x, y=rows)
        kept = mb.const(val=generator.integers(0, 2, (64, 64)).astype(bool), name="booleans")
        return mb.select(cond=kept, a=x, b=np.float16(0))

    save(build_program(program, (1, 64), target="iOS18", precision="float16"), path)
