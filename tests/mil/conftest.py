"""Programs built by hand with coremltools, for what the models of ``tests.models`` do not have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ct() -> Any:
    """Return coremltools, imported without what it says about its surroundings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools


@pytest.fixture(scope="session")
def mb(ct: Any) -> Any:
    """Return coremltools' builder of programs."""
    from coremltools.converters.mil import Builder

    return Builder


@pytest.fixture(scope="session")
def build(ct: Any, mb: Any) -> Callable[..., Any]:
    """Return a function that makes an MLModel of ``body(x)``, ``x`` float32 of ``shape``."""

    def make(body: Callable[[Any], Any], shape: tuple[int, ...], target: str = "iOS15") -> Any:
        version = getattr(ct.target, target)
        program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=version)(body)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=version,
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )

    return make
