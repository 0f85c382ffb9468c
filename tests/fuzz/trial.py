"""One package through everything: each step ends in a documented error, or in a correct result."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    decompress,
    get_weights_metadata,
    lint,
    palettize,
    raise_target,
)
from mlopt.coreml.inspection import inspect_weights
from mlopt.coreml.weights import name_of, weights_of
from mlopt.errors import (
    ConfigError,
    InputError,
    MlOptError,
    ModelFormatError,
    RunError,
    TargetError,
)
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.writer import PackageWriter
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from tests.fuzz.seeds import Files

#: Seconds for one step of one package; they take a few milliseconds.
PATIENCE = 20.0
#: Elements of an input, for more than which no sample is drawn.
_LARGE = 1 << 20
RULES: tuple[dict[str, Any], ...] = (
    {"nbits": 1},
    {"nbits": 4},
    {"nbits": 2, "mode": "uniform"},
    {"mode": "unique"},
    {"nbits": 2, "granularity": "per_grouped_channel", "group_size": 8},
    {"nbits": 2, "granularity": "per_grouped_channel", "group_size": 4, "channel_axis": 1},
    {"nbits": 2, "cluster_dim": 2},
    {"nbits": 3, "enable_per_channel_scale": True},
)


class Wrong(Exception):
    """A step ended in neither a documented error nor a correct result."""


class _TooLong(BaseException):
    """A step took longer than ``PATIENCE``."""


def write(files: Files, package: Path) -> None:
    """Write the files of a package."""
    for name, content in files.items():
        path = package / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file and a folder of one name


def run(files: Files, folder: Path, rng: random.Random) -> dict[str, str]:
    """Put a package through every step; returns for each how it ended: "done", or the error's name.

    Raises
    ------
    Wrong
        With the step, from what went wrong in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source.mlpackage"
    source.mkdir(parents=True)
    write(files, source)
    ends: dict[str, str] = {}
    opened = _step(ends, "open", (ModelFormatError,), lambda: open_package(source))
    if opened is None:
        return ends
    before = _step(ends, "read", (ModelFormatError,), lambda: _constants(opened))
    only_format = (ModelFormatError,)
    _step(ends, "copy", only_format, lambda: _check_copy(source, folder / "copy.mlpackage", before))
    _step(ends, "metadata", only_format, lambda: _read_metadata(source))
    _step(
        ends,
        "inspect",
        only_format,
        lambda: inspect_weights(source, statistics=True).sorted_by("size"),
    )
    shown = rng.random() < 0.1  # drawing tables takes longer than what they show
    _step(ends, "lint", only_format, lambda: (str if shown else id)(lint(source)))
    requests: tuple[type[MlOptError], ...] = (ModelFormatError, TargetError, ConfigError)
    rule = OpPalettizerConfig(weight_threshold=100, on_indivisible="divisor", **rng.choice(RULES))
    _step(
        ends, "palettize", requests, lambda: _check_palettize(source, folder, rule, before, shown)
    )
    _step(ends, "decompress", only_format, lambda: _check_decompress(source, folder, before))
    target = rng.choice(("iOS16", "iOS17", "iOS18", "iOS26"))
    requests = (ModelFormatError, TargetError)
    _step(ends, "raise", requests, lambda: _check_raise(source, folder, target, before))
    requests = (ModelFormatError, TargetError, ConfigError)
    _step(ends, "joint", requests, lambda: _check_joint(source, folder, rule))
    requests = (ModelFormatError, InputError, RunError, ConfigError)
    _step(ends, "predict", requests, lambda: _predict(opened, source))
    names = set(os.listdir(folder)) - {"source.mlpackage"}
    if any(name.startswith(".") for name in names):
        raise Wrong(f"leftovers: {sorted(names)}")
    return ends


def warm_up(packages: dict[str, Files], folder: Path) -> None:
    """Let every kernel be compiled, which takes memory once, before memory is measured."""
    for name, files in packages.items():
        run(files, folder / "run", random.Random(name))
    for precision in ("iOS18", "float32"):
        source = folder / f"{precision}.mlpackage"
        write(packages[f"plain {precision}"], source)
        for options in RULES:
            rule = OpPalettizerConfig(weight_threshold=100, on_indivisible="divisor", **options)
            config = OptimizationConfig(global_config=rule)
            with suppress(TargetError):  # what the older one cannot have
                palettize(source, config, output=folder / "out.mlpackage", workers=1)


def _step(
    ends: dict[str, str],
    name: str,
    allowed: tuple[type[Exception], ...],
    action: Callable[[], Any],
) -> Any:
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("error")
            result = action()
    except allowed as error:
        text = str(error)
        if not text or len(text) > 20_000 or ".tmp" in text:
            raise Wrong(f"{name}: a poor message: {text[:2000]!r}") from error
        ends[name] = type(error).__name__
        return None
    except (Exception, _TooLong) as error:
        raise Wrong(f"{name}: {type(error).__name__}: {str(error)[:2000]}") from error
    ends[name] = "done"
    return result


@contextmanager
def step_guard(name: str) -> Iterator[None]:
    """Let what takes longer than ``PATIENCE`` be wrong."""
    try:
        with _limited():
            yield
    except _TooLong as error:
        raise Wrong(f"{name}: it takes longer than {PATIENCE} s") from error


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_Key = tuple[str, str, str, bool, str, tuple[int, ...], bytes]


def _constants(package: Package) -> Counter[_Key]:
    """Every constant that can be read, with its bytes: program, function, name, inline, type."""
    found: Counter[_Key] = Counter()
    for program in package.programs:
        nodes = program.nodes()
        for node in nodes:
            assert isinstance(node.name, str)
            repr(node)
            if node.op_type.startswith("const") and len(node.op.blocks):
                # No such operation has blocks, and what is in them goes with it.
                raise ModelFormatError("a constant with blocks")
        for constant in program.constants(nodes):
            value = constant.value()
            raw = (
                value.tobytes() if isinstance(value, np.ndarray) and value.dtype != object else b""
            )
            found[
                program.label,
                constant.function,
                constant.name,
                constant.inline,
                constant.dtype,
                constant.shape,
                raw,
            ] += 1
    return found


def _check_copy(source: Path, output: Path, constants: Counter[_Key] | None) -> None:
    before = open_package(source)
    with PackageWriter(before, output) as writer:
        writer.finish()
    after = open_package(output)
    if before.spec != after.spec:
        raise AssertionError("the copy is not what was written")
    before = open_package(source)
    if constants is not None and _constants(after) != constants:
        raise AssertionError("a constant of the copy is another one")
    for package in (before, after):
        for value in package.file_values():
            value.blobFileValue.offset = 0
    if before.spec != after.spec:
        raise AssertionError("the copy is another model")


def _read_metadata(source: Path) -> None:
    for weight in get_weights_metadata(source, weight_threshold=8).values():
        assert isinstance(weight.val, np.ndarray)
        assert 0 <= weight.sparsity <= 1
        assert 0 <= weight.unique_values <= weight.val.size
        str(weight)


def _check_palettize(
    source: Path, folder: Path, rule: OpPalettizerConfig, before: Counter[_Key] | None, shown: bool
) -> None:
    result = palettize(
        source,
        OptimizationConfig(global_config=rule),
        output=folder / "palettized.mlpackage",
        workers=1,
    )
    if shown:
        str(result.report)
        result.report.as_dict()
    output = open_package(result.path)
    after = _constants(output)
    gone = {row.name for row in result.report.palettized}
    # The opset of a damaged model need not be that of its version.
    raised = _opsets(open_package(source)) != _opsets(output)
    _check_kept(before, after, gone, floats_only=raised)


def _check_joint(source: Path, folder: Path, rule: OpPalettizerConfig) -> None:
    """Compressed weights are palettized too: what they become can be read and decompressed."""
    result = palettize(
        source,
        OptimizationConfig(global_config=rule),
        output=folder / "joint.mlpackage",
        minimum_deployment_target="iOS18",
        joint_compression=True,
        workers=1,
    )
    result.report.summary()
    made = {row.name for row in result.report.palettized}
    weights, _ = weights_of(open_package(result.path), smallest=0)
    compressed = [weight for weight in weights if weight.is_compressed]
    names = Counter(name_of(each) for weight in compressed for each in weight.instances)
    for weight in compressed:
        if weight.name in made and names[weight.name] == 1:
            assert np.isfinite(weight.value()).all(), weight.name


def _opsets(package: Package) -> list[str]:
    return [function.opset for program in package.programs for function in program.functions]


def _check_decompress(source: Path, folder: Path, before: Counter[_Key] | None) -> None:
    output = decompress(source, folder / "plain.mlpackage")
    opened = open_package(output)
    _check_kept(before, _constants(opened), set(), consts_only=True)


def _check_raise(source: Path, folder: Path, target: str, before: Counter[_Key] | None) -> None:
    output = raise_target(source, folder / "raised.mlpackage", target)
    after = _constants(open_package(output))
    _check_kept(before, after, set(), floats_only=True, consts_only=True)


def _predict(opened: Package, source: Path) -> None:
    program = load(source)
    if any(math.prod(getattr(f, "shape", ())) > _LARGE for f in program.inputs.values()):
        return  # an input of that size is memory that the description asks for
    state = program.make_state()
    (sample,) = random_samples(program, 1)
    try:
        with _one_thread():
            outputs = program.predict(sample, state if state.tensors else None, seed=0)
    except _TooLong:
        types = {node.op_type for each in opened.programs for node in each.nodes()}
        if "while_loop" not in types:
            raise
        return  # whose end is nobody's to foresee
    assert isinstance(outputs, dict)
    described = {output.name for output in opened.spec.description.output}
    if described and not opened.spec.description.functions:
        assert outputs.keys() == described, (outputs.keys(), described)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's other threads do not live on in a process that was forked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_kept(
    before: Counter[_Key] | None,
    after: Counter[_Key],
    gone: set[str],
    *,
    floats_only: bool = False,
    consts_only: bool = False,
) -> None:
    """Check that what was not to be changed is in the output, byte for byte.

    ``floats_only``: raising a target may rewrite indices; ``consts_only``: and compressed forms.
    """
    if before is None:
        return  # it has values that cannot be read, or no meaning
    # By content as well: constants that share a blob are one weight, which has one name.
    contents = {key[4:] for key in before if key[2] in gone}
    for key, count in before.items():
        _, _, _, inline, dtype, _, _ = key
        if key[4:] in contents or (floats_only and not dtype.startswith(("fp", "bf"))):
            continue
        if (consts_only or floats_only) and inline:
            continue
        if after[key] < count:
            raise AssertionError(f"the constant {key[:-1]} is not as it was")
