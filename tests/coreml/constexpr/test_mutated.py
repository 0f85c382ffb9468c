"""Constexpr operations with random damage: a value, or a ModelFormatError, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from mlopt.coreml.weights import weights_of
from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import BY_PROTO
from mlopt.mil.messages import Model
from mlopt.mil.package import Package
from tests.coreml.constexpr.test_evaluation import EXAMPLES, package_of_example

ROUNDS = 100
"""Damaged models for each example."""

MODEL = PurePosixPath("Data/com.apple.CoreML/model.mlmodel")
SIZES = [0, 1, 2, 3, 4, 6, 16, 255, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
NAMES = ["w", "mask", "values", "x", "table", "nothing"]


def values_in(ops: list[Any]) -> Iterator[Any]:
    for op in ops:
        yield from op.attributes.values()
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":
                    yield binding.value


def types_in(ops: list[Any]) -> list[Any]:
    outputs = [output.type for op in ops for output in op.outputs]
    return [value.type for value in values_in(ops)] + outputs


def another_size(ops: list[Any], rng: random.Random) -> None:
    tensor = rng.choice(types_in(ops)).tensorType
    if tensor.dimensions:
        rng.choice(tensor.dimensions).constant.size = rng.choice(SIZES)


def another_type(ops: list[Any], rng: random.Random) -> None:
    rng.choice(types_in(ops)).tensorType.dataType = rng.choice([*BY_PROTO, 99])


def another_rank(ops: list[Any], rng: random.Random) -> None:
    dimensions = rng.choice(types_in(ops)).tensorType.dimensions
    if dimensions and rng.random() < 0.5:
        del dimensions[-1]
    else:
        dimensions.add().constant.size = rng.choice(SIZES[:6])


def other_bytes(ops: list[Any], rng: random.Random) -> None:
    tensor = rng.choice(list(values_in(ops))).immediateValue.tensor
    if tensor.WhichOneof("value") == "bytes" and tensor.bytes.values:
        data = bytearray(tensor.bytes.values)
        data[rng.randrange(len(data))] = rng.randrange(256)
        tensor.bytes.values = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    elif tensor.WhichOneof("value") == "ints" and tensor.ints.values:
        tensor.ints.values[0] = rng.choice([-(1 << 31), -1, 1, 5, (1 << 31) - 1])


def another_value(ops: list[Any], rng: random.Random) -> None:
    one, other = (rng.choice(list(values_in(ops))) for _ in range(2))
    copy = type(other)()
    copy.CopyFrom(other)
    one.CopyFrom(copy)


def another_operation(ops: list[Any], rng: random.Random) -> None:
    kinds = {op.type for _, example, _ in EXAMPLES.values() for op in example}
    rng.choice(ops).type = rng.choice([*sorted(kinds), "constexpr_of_tomorrow"])


def another_name(ops: list[Any], rng: random.Random) -> None:
    op = rng.choice(ops)
    if op.inputs:
        argument = op.inputs[rng.choice(sorted(op.inputs))]
        argument.arguments.add().name = rng.choice(NAMES)
        del argument.arguments[: rng.randrange(2)]


def fewer_parameters(ops: list[Any], rng: random.Random) -> None:
    op = rng.choice(ops)
    held = op.inputs or op.attributes
    if held:
        del held[rng.choice(sorted(held))]


def other_outputs(ops: list[Any], rng: random.Random) -> None:
    op = rng.choice(ops)
    if op.outputs and rng.random() < 0.5:
        del op.outputs[-1]
    else:
        op.outputs.add(name=rng.choice(NAMES)).type.CopyFrom(rng.choice(types_in(ops)))


MUTATIONS: list[Callable[[list[Any], random.Random], None]] = [
    *(another_size, another_size, another_type, another_rank, other_bytes, another_value),
    *(another_operation, another_name, fewer_parameters, other_outputs),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_damage_is_refused_or_harmless(name, tmp_path):
    path = package_of_example(name, tmp_path)
    content = (path / MODEL).read_bytes()
    rng = random.Random(name)
    refused = 0
    for _ in range(ROUNDS):
        spec = Model.FromString(content)
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        ops = [op for op in block.operations if op.type.startswith("constexpr_")]
        for mutation in rng.choices(MUTATIONS, k=rng.choice([1, 1, 2, 4])):
            mutation(ops, rng)
        try:
            weights, _ = weights_of(Package(path, MODEL, spec), smallest=0)
            for weight in weights:
                if weight.compression is not None:
                    assert weight.compression.as_dict()
                    assert weight.value().shape == weight.shape
        except ModelFormatError:
            refused += 1
    assert 0 < refused < ROUNDS
