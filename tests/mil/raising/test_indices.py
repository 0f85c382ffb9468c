"""Negative indices, legal until CoreML6: what they pick is judged with numpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.errors import TargetError
from mlopt.mil.opening import open_package
from mlopt.mil.program import Constant, Node, Variable
from mlopt.mil.raising.upgrade import plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter
from tests.judges import load_program
from tests.mil.raising.test_upgrade import raised

RANDOM = np.random.default_rng(5)


def evaluate(package: Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Run a program of the few operations used here with numpy; gathers refuse negative indices."""
    values: dict[str, Any] = dict(inputs)

    def argument(node: Node, parameter: str) -> Any:
        (bound,) = node.inputs[parameter]
        if isinstance(bound, Constant):
            return bound.value()
        assert isinstance(bound, Variable)
        return bound.constant.value() if bound.constant else values[bound.name]

    for node in open_package(package).programs[0].nodes():
        if node.op_type == "const":
            continue
        given = {p: argument(node, p) for p in node.inputs}
        values[node.outputs[0].name] = OPERATIONS[node.op_type](**given)
    return values


def _checked(indices: np.ndarray, sizes: Any) -> np.ndarray:
    assert (indices >= 0).all()
    assert (indices < sizes).all()
    return indices


def _gather_nd(x: Any, indices: Any, batch_dims: Any, **_: Any) -> Any:
    if batch_dims:
        rows = [_gather_nd(a, b, batch_dims - 1) for a, b in zip(x, indices, strict=True)]
        return np.stack(rows)
    depth = indices.shape[-1]
    indices = _checked(indices, np.array(x.shape[:depth]))
    return x[tuple(np.moveaxis(indices, -1, 0))]


def _gather(x: Any, indices: Any, axis: Any, batch_dims: Any = 0, **_: Any) -> Any:
    if batch_dims:
        inner = axis - 1 if axis > 0 else axis
        pairs = zip(x, indices, strict=True)
        return np.stack([_gather(a, b, inner, batch_dims - 1) for a, b in pairs])
    return np.take(x, _checked(indices, x.shape[axis]), axis)


def _scatter(data: Any, indices: Any, updates: Any, axis: Any, mode: Any, **_: Any) -> Any:
    assert mode == "update"
    result = np.moveaxis(data.copy(), int(axis), 0)
    result[_checked(indices, result.shape[0])] = np.moveaxis(updates, int(axis), 0)
    return np.moveaxis(result, 0, int(axis))


def _scatter_along_axis(
    data: Any, indices: Any, updates: Any, axis: Any, mode: Any, **_: Any
) -> Any:
    assert mode == "update"
    result = data.copy()
    indices = _checked(indices, data.shape[axis]).astype(np.int64)
    np.put_along_axis(result, indices, updates, int(axis))
    return result


def _scatter_nd(data: Any, indices: Any, updates: Any, mode: Any, **_: Any) -> Any:
    assert mode == "update"
    result = data.copy()
    indices = _checked(indices, np.array(data.shape[: indices.shape[-1]]))
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


OPERATIONS: dict[str, Callable[..., Any]] = {
    "cast": lambda x, dtype: x.astype({"int32": np.int32, "fp32": np.float32}[str(dtype)]),
    "identity": lambda x: x,
    "greater_equal": lambda x, y: x >= y,
    "add": lambda x, y: x + y,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "shape": lambda x: np.array(x.shape, np.int32),
    "slice_by_size": lambda x, begin, size: x[
        tuple(slice(b, b + s if s != -1 else None) for b, s in zip(begin, size, strict=True))
    ],
    "reshape": lambda x, shape: x.reshape(shape),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "gather": _gather,
    "gather_along_axis": lambda x, indices, axis, **_: np.take_along_axis(
        x, _checked(indices, x.shape[axis]), int(axis)
    ),
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}


def model_of(ct: Any, mb: Any, body: Callable[..., Any], *inputs: Any) -> Any:
    """Return an iOS16 model of ``body`` with the inputs, (shape, dtype) each, float32 inside."""
    from coremltools.converters.mil.mil import types

    specs = [
        mb.TensorSpec(shape=shape, dtype=types.int32 if dtype == "int32" else types.fp32)
        for shape, dtype in inputs
    ]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS16)(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )


X = RANDOM.standard_normal((4, 6, 5)).astype(np.float32)


def indices_below(*limits: int, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return int32 indices [*shape] or [*shape, axes], each within its limit, both signs."""
    rows = [RANDOM.integers(-limit, limit, shape) for limit in limits]
    return (rows[0] if len(rows) == 1 else np.stack(rows, axis=-1)).astype(np.int32)


def _written(write: Callable[[np.ndarray], None]) -> np.ndarray:
    result = X.copy()
    write(result)
    return result


CASES: dict[str, tuple[Callable[..., Any], np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "gather": (
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=1),
        indices_below(6, shape=(3, 7)),
        lambda i: np.take(X, i, 1),
    ),
    "gather, last axis": (
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=-1),
        indices_below(5, shape=(9,)),
        lambda i: np.take(X, i, -1),
    ),
    "gather, batches": (
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        indices_below(5, shape=(4, 3)),
        lambda i: np.stack([np.take(X[b], i[b], 1) for b in range(4)]),
    ),
    "gather, batches, last axis": (
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=-1, batch_dims=2),
        indices_below(5, shape=(4, 6, 2)),
        lambda i: np.take_along_axis(X, i, 2),
    ),
    "gather_along_axis": (
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=-2),
        indices_below(6, shape=(4, 3, 5)),
        lambda i: np.take_along_axis(X, i, -2),
    ),
    "gather_nd": (
        lambda mb, x, i: mb.gather_nd(x=x, indices=i),
        indices_below(4, 6, shape=(8,)),
        lambda i: X[i[:, 0], i[:, 1]],
    ),
    "gather_nd, batches": (
        lambda mb, x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        indices_below(6, 5, shape=(4, 3)),
        lambda i: np.stack([X[b, i[b, :, 0], i[b, :, 1]] for b in range(4)]),
    ),
    "scatter": (
        lambda mb, x, i: mb.scatter(data=x, indices=i, updates=-X[:, :2], axis=1, mode="update"),
        np.int32([-1, 2]),
        lambda i: np.concatenate([X[:, :2], -X[:, 1:2], X[:, 3:5], -X[:, :1]], axis=1),
    ),
    "scatter_along_axis": (
        lambda mb, x, i: mb.scatter_along_axis(
            data=x, indices=i, updates=-X[:, :1], axis=1, mode="update"
        ),
        indices_below(6, shape=(4, 1, 5)),
        lambda i: _written(lambda y: np.put_along_axis(y, i.astype(np.int64), -X[:, :1], 1)),
    ),
    "scatter_nd": (
        lambda mb, x, i: mb.scatter_nd(data=x, indices=i, updates=-X[0, :2], mode="update"),
        np.int32([[-1, 0], [2, -6]]),
        lambda i: _written(lambda y: y.__setitem__((i[:, 0], i[:, 1]), -X[0, :2])),
    ),
}


@pytest.fixture(scope="module")
def results(
    ct: Any, mb: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what each case gives when raised: with computed indices, and with constant ones.

    All cases stand in one program, because a conversion takes longer than everything else here.
    """
    folder = tmp_path_factory.mktemp("indices")
    everything = [indices for _, indices, _ in CASES.values()]
    together = np.concatenate([indices.reshape(-1) for indices in everything])

    def outputs(x: Any, given: list[Any]) -> tuple[Any, ...]:
        return tuple(
            mb.identity(x=body(mb, x, i), name=f"y{number}")
            for number, ((body, _, _), i) in enumerate(zip(CASES.values(), given, strict=True))
        )

    def computed(x: Any, i: Any) -> tuple[Any, ...]:
        ends = np.cumsum([indices.size for indices in everything])
        parts = [
            mb.slice_by_size(x=i, begin=[end - indices.size], size=[indices.size])
            for end, indices in zip(ends, everything, strict=True)
        ]
        pairs = zip(parts, everything, strict=True)
        return outputs(x, [mb.reshape(x=part, shape=indices.shape) for part, indices in pairs])

    models = {
        "iOS17": model_of(ct, mb, computed, (X.shape, "fp32"), (together.shape, "int32")),
        "iOS18": model_of(ct, mb, lambda x: outputs(x, everything), (X.shape, "fp32")),
    }
    found = []
    for target, model in models.items():
        _, output = raised(model, target, folder / target)
        load_program(output)
        found.append(evaluate(output, {"x": X, "i": together}))
    return {
        name: (found[0][f"y{number}"], found[1][f"y{number}"]) for number, name in enumerate(CASES)
    }


@pytest.mark.parametrize("name", CASES)
def test_computed_and_constant_indices(results: Any, name: str) -> None:
    _, indices, wanted = CASES[name]
    computed, constant = results[name]
    np.testing.assert_array_equal(computed, wanted(indices))
    np.testing.assert_array_equal(constant, wanted(indices))


@pytest.mark.parametrize("fixed", ["indices", "nothing"])
def test_sizes_that_only_the_run_knows(ct: Any, mb: Any, tmp_path: Path, fixed: str) -> None:
    """As in coremltools, the shape is asked for where an axis is not fixed."""
    from coremltools.converters.mil.mil import get_new_symbol

    rows, constant = get_new_symbol(), np.int32([-1, 0, -3])
    pairs = np.int32([[-1, 2], [0, -6], [-3, -1]])

    def body(x: Any, i: Any, p: Any) -> Any:
        given = (constant, pairs) if fixed == "indices" else (i, p)
        return (
            mb.gather(x=x, indices=given[0], axis=0, name="picked"),
            mb.gather(x=x, indices=given[0], axis=1, name="inner"),
            mb.gather_nd(x=x, indices=given[1], name="pairs"),
            mb.identity(x=i, name="i_out"),
            mb.identity(x=p, name="p_out"),
        )

    inputs = [((rows, 6, 5), "fp32"), ((3,), "int32"), ((3, 2), "int32")]
    program = mb.program(
        input_specs=[
            mb.TensorSpec(shape=shape, dtype=ct.converters.mil.mil.types.int32)
            if dtype == "int32"
            else mb.TensorSpec(shape=shape)
            for shape, dtype in inputs
        ],
        opset_version=ct.target.iOS16,
    )(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(name="x", shape=(ct.RangeDim(3, 9), 6, 5)),
                ct.TensorType(name="i", shape=(3,), dtype=np.int32),
                ct.TensorType(name="p", shape=(3, 2), dtype=np.int32),
            ],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    _, output = raised(model, "iOS17", tmp_path / "out")
    load_program(output)
    for count in (3, 4, 9):
        x = RANDOM.standard_normal((count, 6, 5)).astype(np.float32)
        found = evaluate(output, {"x": x, "i": constant, "p": pairs})
        np.testing.assert_array_equal(found["picked"], x[constant])
        np.testing.assert_array_equal(found["inner"], x[:, constant])
        np.testing.assert_array_equal(found["pairs"], x[pairs[:, 0], pairs[:, 1]])
    shapes = [n for n in open_package(output).programs[0].nodes() if n.op_type == "shape"]
    assert len(shapes) == 2  # none for the axis that is fixed


def test_a_scalar_index_into_an_axis_that_is_not_fixed(ct: Any, mb: Any, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import get_new_symbol

    def body(x: Any) -> Any:
        where = mb.cast(x=mb.reduce_min(x=x, keep_dims=False), dtype="int32")
        return mb.gather(x=x, indices=where, axis=0, name="y")

    program = mb.program(
        input_specs=[mb.TensorSpec(shape=(get_new_symbol(), 2))], opset_version=ct.target.iOS16
    )(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="x", shape=(ct.RangeDim(2, 9), 2))],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    _, output = raised(model, "iOS17", tmp_path / "out")
    load_program(output)
    (squeeze,) = (n for n in open_package(output).programs[0].nodes() if n.op_type == "squeeze")
    assert [use.op_type for use in squeeze.outputs[0].consumers] == ["add"]


def test_indices_in_both_branches_of_a_condition(ct: Any, mb: Any, tmp_path: Path) -> None:
    """What makes them non-negative stands in the block that uses it, under names of its own."""

    def body(x: Any, i: Any) -> Any:
        def last() -> Any:
            return mb.gather(x=x, indices=mb.identity(x=i), axis=1, name="deep")

        pred = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0))
        return mb.cond(pred=pred, _true_fn=last, _false_fn=last, name="y")

    model = model_of(ct, mb, body, (X.shape, "fp32"), ((2,), "int32"))
    _, output = raised(model, "iOS17", tmp_path / "out")
    load_program(output)
    nodes = open_package(output).programs[0].nodes()
    selects = [node for node in nodes if node.op_type == "select"]
    assert [node.depth for node in selects] == [1, 1]
    assert selects[0].block is not selects[1].block
    assert len({name for node in selects for name in (node.name, node.outputs[0].name)}) == 2


@pytest.mark.parametrize(("size", "dtype"), [(30000, "int16"), (40000, "int32")])
def test_short_indices_that_reach_a_long_axis_from_its_end(
    ct: Any, mb: Any, tmp_path: Path, size: int, dtype: str
) -> None:
    """-1 is an int16, and the last of 40,000 places is none."""

    def body(x: Any) -> Any:
        return mb.gather(x=x, indices=np.int16([-1, 5]), axis=1, name="y")

    model = model_of(ct, mb, body, ((1, size), "fp32"))
    _, output = raised(model, "iOS17", tmp_path / "out")
    load_program(output)
    nodes = open_package(output).programs[0].nodes()
    (indices,) = (n.constant_input("indices") for n in nodes if n.op_type == "gather")
    assert indices is not None
    assert indices.value().tolist() == [size - 1, 5]
    assert indices.dtype == dtype


def test_an_axis_that_does_not_exist(build: Callable[..., Any], mb: Any) -> None:
    model = build(
        lambda x: mb.gather(x=x, indices=np.int32([-1]), axis=1, name="g"), (4, 6), "iOS16"
    )
    (program,) = open_package(model).programs
    for node in program.nodes():
        if node.op_type == "gather":
            axis = node.constant_input("axis")
            assert axis is not None
            axis.message.immediateValue.tensor.ints.values[:] = [2]
    with pytest.raises(TargetError, match=r"gather 'g' .*: from CoreML7 on its axis is 2, but x"):
        plan_opset_raise(program, Target.iOS17)


def test_only_the_functions_that_are_named(package_of: Any, tmp_path: Path) -> None:
    package = open_package(package_of("multifunction", "iOS18"))
    (program,) = package.programs
    with PackageWriter(package, tmp_path / "out") as writer:
        plan_opset_raise(program, Target.iOS26, ["adapted"]).apply(writer)
        output = writer.finish()
    (program,) = open_package(output).programs
    assert {f.name: f.opset for f in program.functions} == {"base": "CoreML8", "adapted": "CoreML9"}
    assert program.specification_version == 10


def test_topk_without_indices(build: Callable[..., Any], mb: Any, tmp_path: Path) -> None:
    """The type of indices may only be named where there are any."""
    model = build(
        lambda x: mb.topk(x=x, k=2, axis=1, return_indices=False, name="best"), (4, 6), "iOS16"
    )
    _, output = raised(model, "iOS18", tmp_path / "out")
    load_program(output)
    (topk,) = (n for n in open_package(output).programs[0].nodes() if n.op_type == "topk")
    assert "output_indices_dtype" not in topk.inputs
    assert topk.scalar("return_indices") is False
