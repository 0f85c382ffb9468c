"""Models made by coremltools, and its loader as the judge of what is written."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def ct() -> Any:
    """Return coremltools, imported without what it says about its surroundings."""
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
        import coremltools.converters.mil.frontend.milproto.load
    return coremltools


@pytest.fixture(scope="session")
def mb(ct: Any) -> Any:
    from coremltools.converters.mil import Builder

    return Builder


@pytest.fixture(scope="session")
def convert(ct: Any) -> Any:
    """Return a function that converts a MIL program for a target, in the precision it was built in."""

    def run(program: Any, target: str = "iOS15", **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, target),
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
                **options,
            )

    return run


@pytest.fixture(scope="session")
def load(ct: Any) -> Any:
    """Return a function that has coremltools load and type-check a package or message."""
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    def run(spec: Any, weights: Path | str | None = None) -> Any:
        if isinstance(spec, str | Path):
            weights = Path(spec, "Data/com.apple.CoreML/weights")
            spec = ct.utils.load_spec(str(spec))
        return load_program(spec, spec.specificationVersion, file_weights_dir=str(weights or ""))

    return run


@pytest.fixture(scope="session")
def models(ct: Any, mb: Any, convert: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return paths of small packages: linear, shared, nested, stateful, multifunction, pipeline, nn."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 32)).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32)

    def save(model: Any, name: str) -> Path:
        path = folder / f"{name}.mlpackage"
        model.save(str(path))
        return path

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 32))])
    def linear(x: Any) -> Any:
        y = mb.linear(x=x, weight=weight, bias=bias, name="fc")
        return mb.relu(x=y, name="out")

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 32))], opset_version=ct.target.iOS16)
    def shared(x: Any) -> Any:
        w = mb.const(val=weight, name="tied")
        y = mb.linear(x=x, weight=w, bias=bias, name="up")
        z = mb.matmul(x=y, y=w, transpose_y=False, name="down")
        return z, mb.const(val=weight * 2, name="returned")

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 32))])
    def nested(x: Any) -> Any:
        w = mb.const(val=weight, name="outer")

        def double(y: Any) -> Any:
            inner = mb.const(val=weight * 3, name="inner")
            return mb.matmul(x=mb.matmul(x=y, y=w, transpose_y=True), y=inner, name="in_cond")

        def same(y: Any) -> Any:
            return mb.mul(x=y, y=np.float32(2))

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        y = mb.cond(
            pred=mb.greater(x=total, y=np.float32(0)),
            _true_fn=lambda: double(x),
            _false_fn=lambda: same(x),
        )

        def body(i: Any, a: Any) -> Any:
            return mb.add(x=i, y=np.float32(1)), mb.add(x=a, y=same(a))

        _, a = mb.while_loop(
            _cond=lambda i, a: mb.less(x=i, y=np.float32(3)),
            _body=body,
            loop_vars=(np.float32(0), y),
        )
        return a

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(2, 16)), mb.StateTensorSpec((16,), dtype=_fp16(ct))],
        opset_version=ct.target.iOS18,
    )
    def stateful(x: Any, state: Any) -> Any:
        held = mb.read_state(input=state)
        y = mb.add(x=mb.cast(x=x, dtype="fp16"), y=held)
        y = mb.matmul(x=y, y=weight[:, :16].astype(np.float16))
        new = mb.coreml_update_state(
            state=state, value=mb.slice_by_size(x=held, begin=[0], size=[16])
        )
        return mb.cast(x=mb.add(x=y, y=new), dtype="fp32")

    paths = {
        "linear": save(convert(linear), "linear"),
        "shared": save(convert(shared, "iOS16"), "shared"),
        "nested": save(convert(nested), "nested"),
        "stateful": save(convert(stateful, "iOS18"), "stateful"),
    }

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 32))], opset_version=ct.target.iOS18)
    def other(x: Any) -> Any:
        return mb.linear(x=mb.tanh(x=x), weight=weight, bias=bias * 2, name="fc2")

    save(convert(other, "iOS18"), "other")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functions = ct.utils.MultiFunctionDescriptor()
        functions.add_function(str(paths["linear"]), "main", "first")
        functions.add_function(str(folder / "other.mlpackage"), "main", "second")
        functions.default_function_name = "first"
        paths["multifunction"] = folder / "multifunction.mlpackage"
        ct.utils.save_multifunction(functions, str(paths["multifunction"]))

        @mb.program(input_specs=[mb.TensorSpec(shape=(2, 16))])
        def tail(out: Any) -> Any:
            return mb.matmul(x=out, y=weight, name="end")

        pipeline = ct.utils.make_pipeline(convert(linear), convert(tail))
        paths["pipeline"] = save(pipeline, "pipeline")
    return SimpleNamespace(**paths, weight=weight, bias=bias)


def _fp16(ct: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return types.fp16


@pytest.fixture(params=["linear", "shared", "nested", "stateful", "multifunction", "pipeline"])
def any_model(request: pytest.FixtureRequest, models: Any) -> Path:
    """Give each of the small packages in turn."""
    return getattr(models, request.param)
