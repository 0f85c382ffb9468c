"""Programs as a whole: functions, pipelines, taps, gradients, and what cannot be run."""

from __future__ import annotations

import pickle
import warnings
import weakref

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from mlopt.errors import ConfigError, InputError, ModelFormatError, RunError
from mlopt.mil.messages import MIL_pb2
from mlopt.runtime import load
from tests import models
from tests.runtime.networks import converted, network
from tests.runtime.programs import convert


def test_functions_of_a_model():
    model = models.build("multifunction", "iOS18")
    names = [f.name for f in model.get_spec().description.functions]
    assert len(names) > 1
    programs = {name: load(model, name) for name in names}
    assert {name: program.function for name, program in programs.items()} == {n: n for n in names}
    assert load(model).function == model.get_spec().description.defaultFunctionName
    with pytest.raises(ConfigError, match="no function 'other'"):
        load(model, "other")


def two_layers():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(module, torch.ones(2, 4)),
            inputs=[ct.TensorType("x", (2, 4))],
            outputs=[ct.TensorType("y")],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return module, model


X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def test_taps_and_the_observer():
    module, model = two_layers()
    program = load(model)
    linears = {}

    def watch(execution, step, arguments, results):
        if step.node.op_type == "linear":
            linears[step.node.outputs[0].name] = (arguments["x"], arguments["weight"])

    names = [name for name in program.value_names if "weight" not in name and "bias" not in name]
    run = program.run({"x": X}, taps=names, observer=watch)
    inner = torch.relu(module[0](torch.from_numpy(X))).detach()
    assert any(t.shape == inner.shape and torch.allclose(t, inner) for t in run.taps.values())
    (first, first_weight), (second, second_weight) = linears.values()
    assert torch.equal(first, torch.from_numpy(X))
    assert torch.allclose(second, inner)
    assert torch.equal(first_weight, module[0].weight.detach())
    assert torch.equal(second_weight, module[2].weight.detach())
    np.testing.assert_array_equal(run.outputs["y"], program.predict({"x": X})["y"])
    with pytest.raises(ConfigError, match="no value 'nothing'"):
        program.run({"x": X}, taps=["nothing"])


def test_gradients_of_weights_inputs_and_values_between():
    module, model = two_layers()
    program = load(model)
    weights = [n for n in program.value_names if "weight" in n]
    (relu,) = [
        step.node.outputs[0].name for step in program.plan.body.steps if step.node.op_type == "relu"
    ]
    found = program.gradients(
        {"x": X}, lambda outputs: outputs["y"].square().sum(), ["x", relu, *weights]
    )
    x = torch.from_numpy(X).requires_grad_()
    inner = torch.relu(module[0](x))
    inner.retain_grad()
    module.zero_grad()
    module[2](inner).square().sum().backward()
    torch.testing.assert_close(found["x"], x.grad)
    torch.testing.assert_close(found[relu], inner.grad)
    by_shape = {found[name].shape: found[name] for name in weights}
    for layer in (module[0], module[2]):
        torch.testing.assert_close(by_shape[layer.weight.shape], layer.weight.grad)


def test_the_gradient_of_what_the_loss_does_not_need_is_zero():
    _, model = two_layers()
    found = load(model).gradients({"x": X}, lambda outputs: outputs["y"].sum() * 0, ["x"])
    assert torch.equal(found["x"], torch.zeros(2, 4))


def test_kept_weights_give_the_same():
    plain, kept = (load(converted("encoder", "iOS16", "float16"), keep_weights=k) for k in (0, 1))
    _, inputs = network("encoder")
    inputs = {name: x.numpy() for name, x in inputs.items()}
    for _ in range(2):
        for a, b in zip(plain.predict(inputs).values(), kept.predict(inputs).values(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_with_weights_that_are_kept():
    module, model = two_layers()
    program = load(model, keep_weights=True)
    program.predict({"x": X})
    found = program.gradients({"x": X}, lambda outputs: outputs["y"].sum(), ["x"])
    x = torch.from_numpy(X).requires_grad_()
    module(x).sum().backward()
    torch.testing.assert_close(found["x"], x.grad)


def test_values_are_dropped_when_nobody_reads_them():
    def build(x):
        for _ in range(30):
            x = mb.sin(x=x)
        return x

    program = load(convert(build, {"x": np.zeros((1000, 100), np.float32)}))
    alive = []

    def watch(execution, step, arguments, results):
        alive.append(sum(value is not None for value in execution._frame))

    program.run({"x": np.zeros((1000, 100))}, observer=watch)
    assert len(alive) == 30
    assert max(alive) <= 2


def test_pipelines():
    _, model = two_layers()
    second = convert(lambda y: mb.exp(x=y, name="z"), {"y": np.ones((2, 3), np.float32)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = ct.utils.make_pipeline(model, second)
    module, _ = two_layers()
    (found,) = load(pipeline).predict({"x": X}).values()
    wanted = module(torch.from_numpy(X)).exp().detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(InputError, match="missing"):
        load(pipeline).predict({})


def edited(change):
    """A model of one addition, its message edited."""
    model = convert(lambda x, y: mb.add(x=x, y=y, name="z"), {"x": X, "y": X})
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    change(block, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def operations(block, op_type="add"):
    return [op for op in block.operations if op.type == op_type]


def test_operations_that_cannot_be_run_are_named():
    def change(block, spec):
        operations(block)[0].type = "fancy"

    with pytest.raises(ModelFormatError, match=r"fancy, 1 time: 'z'"):
        load(edited(change))


def test_an_input_that_is_lacking():
    def change(block, spec):
        del operations(block)[0].inputs["y"]

    with pytest.raises(ModelFormatError, match=r"add 'z' lacks its inputs y"):
        load(edited(change))


def test_an_input_that_is_unknown():
    def change(block, spec):
        operations(block)[0].inputs["w"].CopyFrom(operations(block)[0].inputs["y"])

    with pytest.raises(ModelFormatError, match=r"has an input 'w', which it does not take"):
        load(edited(change))


@pytest.mark.parametrize("name", ["nowhere", "z"])  # z: its own output
def test_names_that_are_not_defined_before_they_are_used(name):
    def change(block, spec):
        operations(block)[0].inputs["y"].arguments[0].name = name

    message = rf"its input 'y' is '{name}'.*not defined before it"
    with pytest.raises(ModelFormatError, match=message):
        load(edited(change))


def test_a_block_output_that_is_not_defined():
    def change(block, spec):
        block.outputs[0] = "other"

    with pytest.raises(ModelFormatError, match=r"output 'other' is not defined"):
        load(edited(change))


def test_shapes_that_contradict_each_other():
    def change(block, spec):
        operations(block)[0].outputs[0].type.tensorType.dimensions[0].constant.size = 5

    program = load(edited(change))
    with pytest.raises(RunError, match=r"add 'z' gave shape \[2, 4\] .* declares \[5, 4\]"):
        program.predict({"x": X, "y": X})


def test_sizes_beyond_all_memory():
    def change(block, spec):
        operations(block)[0].outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 50

    with pytest.raises(ModelFormatError, match="more than this machine"):
        load(edited(change))


def test_an_operation_that_fails_is_named_with_what_it_got():
    def change(block, spec):
        for name in ("y",):
            (described,) = [item for item in spec.description.input if item.name == name]
            described.type.multiArrayType.shape[:] = [3, 3]
            (declared,) = [
                item for item in spec.mlProgram.functions["main"].inputs if item.name == name
            ]
            for dimension in declared.type.tensorType.dimensions:
                dimension.constant.size = 3

    with pytest.raises(RunError, match=r"add 'z' failed.*\nIt was given x: float32\[2, 4\]"):
        load(edited(change)).predict({"x": X, "y": np.ones((3, 3))})


def test_precision_and_what_is_no_model():
    _, model = two_layers()
    with pytest.raises(ConfigError, match="precision must be one of"):
        load(model, precision="float64")
    with pytest.raises(ModelFormatError, match="does not exist"):
        load("nowhere.mlpackage")


KINDS = models.kinds("iOS18")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_runs(kind):
    from mlopt.runtime.comparison.random_samples import random_samples

    program = load(models.build(kind, "iOS18"))
    (sample,) = random_samples(program, 1)
    state = program.make_state()
    found = program.predict(sample, state if state.tensors else None, seed=0)
    again = load(models.build(kind, "iOS18"), precision="as_declared")
    other = again.predict(sample, again.make_state() if state.tensors else None, seed=0)
    assert found.keys() == other.keys() == program.outputs.keys()
    for name, value in found.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert np.isfinite(value).all()
            scale = max(float(np.abs(value).max()), 1e-3)
            assert np.abs(value - other[name]).max() <= 0.05 * scale


@pytest.mark.parametrize("kind", ["INT64", "INT32", "INT16", "UINT16", "UINT32", "UINT8", "INT8"])
def test_integers_of_inputs_that_nothing_describes_keep_their_digits(kind):
    def change(block, spec):
        number = MIL_pb2.DataType.Value(kind)
        (add,) = operations(block)
        for value in (*spec.mlProgram.functions["main"].inputs, add.outputs[0]):
            value.type.tensorType.dataType = number
        del spec.description.input[:], spec.description.output[:]

    greatest = int(np.iinfo(kind.lower()).max)
    x = np.full((2, 4), greatest if kind != "INT64" else (1 << 53) + 1, kind.lower())
    answer = load(edited(change)).predict({"x": x, "y": np.zeros((2, 4), x.dtype)})["z"]
    assert answer.astype(np.int64).tolist() == x.astype(np.int64).tolist()


@pytest.mark.parametrize("lengths", [(-1, 4), (1 << 30, 1 << 30)])
def test_a_description_of_shapes_that_cannot_be(lengths):
    def change(block, spec):
        spec.description.input[0].type.multiArrayType.shape[:] = lengths

    with pytest.raises(ModelFormatError, match=r"feature 'x' is described with shape \["):
        load(edited(change))


def test_outputs_that_are_not_what_is_described():
    def number(block, spec):
        spec.description.output[0].type.doubleType.SetInParent()

    with pytest.raises(RunError, match=r"'z' is described as a number; .* shape \[2, 4\]"):
        load(edited(number)).predict({"x": X, "y": X})

    def image(block, spec):
        described = spec.description.output[0].type.imageType
        described.width, described.height, described.colorSpace = 4, 2, 20

    with pytest.raises(RunError, match=r"'z' is described as an image .* shape \[2, 4\]"):
        load(edited(image)).predict({"x": X, "y": X})


def test_nan_in_an_output_of_integers_gives_no_warning():
    def change(block, spec):
        kinds = type(spec.description.output[0].type.multiArrayType)
        spec.description.output[0].type.multiArrayType.dataType = kinds.INT32

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(edited(change)).predict({"x": X * np.nan, "y": X})["z"]
    assert found.dtype == np.int32


def test_what_is_looked_at_can_be_changed():
    """Copies of weights, which are mapped read-only: writing to those ends the process."""
    module = nn.Linear(128, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(module, torch.ones(1, 128)),
            inputs=[ct.TensorType("x", (1, 128))],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    x = {"x": np.ones((1, 128), np.float32)}

    def spoil(execution, step, arguments, results):
        arguments["weight"].mul_(0)

    for keep_weights in (False, True):
        program = load(model, keep_weights=keep_weights)
        names = [name for name in program.value_names if "weight" in name or "bias" in name]
        (before,) = program.predict(x).values()
        for tap in program.run(x, taps=names, observer=spoil).taps.values():
            tap.add_(10).requires_grad_()
        np.testing.assert_array_equal(next(iter(program.predict(x).values())), before)


def test_the_function_that_a_model_was_made_for():
    model = models.build("multifunction", "iOS18")
    path = model.package_path
    for name in ("base", "adapted"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = ct.models.MLModel(path, function_name=name, skip_model_load=True)
        assert load(one).function == name
    assert load(one, "base").function == "base"


def branches():
    def build(x):
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
            _true_fn=lambda: mb.sin(x=x, name="taken"),
            _false_fn=lambda: mb.cos(x=x, name="other"),
        )

    return load(convert(build, {"x": X}))


def test_values_of_a_block_that_did_not_run():
    program = branches()
    data = {"x": np.abs(X)}
    taps = program.run(data, taps=["taken", "other"]).taps
    assert taps["other"] is None
    np.testing.assert_allclose(taps["taken"], np.sin(data["x"]), rtol=1e-6)
    found = program.gradients(data, lambda outputs: next(iter(outputs.values())).sum(), ["taken"])
    assert torch.equal(found["taken"], torch.ones(2, 4))
    with pytest.raises(ConfigError, match="'other': no gradient of a value that was not computed"):
        program.gradients(data, lambda outputs: next(iter(outputs.values())).sum(), ["other"])


@pytest.mark.parametrize("loss", [lambda outputs: 1.0, lambda outputs: None, lambda o: o["y"]])
def test_a_loss_that_is_no_scalar(loss):
    _, model = two_layers()
    with pytest.raises(ConfigError, match="loss must return a tensor of one element"):
        load(model).gradients({"x": X}, loss, ["x"])


@pytest.mark.parametrize("data", [None, [X], "x", X, 5])
def test_inputs_that_are_no_dictionary(data):
    _, model = two_layers()
    with pytest.raises(InputError, match="inputs are a dictionary of names and values"):
        load(model).predict(data)


def test_a_device_that_is_not_there():
    _, model = two_layers()
    with pytest.raises(ConfigError, match="device must be available to torch here"):
        load(model, device="nowhere")


def test_a_program_is_not_pickled():
    _, model = two_layers()
    with pytest.raises(TypeError, match="load the model again where it is needed"):
        pickle.dumps(load(model))


def test_inputs_are_dropped_too():
    program = load(convert(lambda x: mb.cos(x=mb.sin(x=x)), {"x": X}))
    seen = []

    def watch(execution, step, arguments, results):
        seen.append(weakref.ref(arguments["x"]))
        if step.node.op_type == "cos":
            seen.append(seen[0]())

    program.run({"x": X.copy()}, observer=watch)
    assert seen[-1] is None
