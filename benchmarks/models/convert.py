"""A torch module to an fp16 ML program package, by coremltools."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.lib.quiet import import_coremltools


def convert(module: nn.Module, examples: dict[str, torch.Tensor], path: Path, target: str) -> None:
    """Trace ``module`` on ``examples`` (input name -> tensor) and save it at ``path``.

    ``target`` names a member of ``coremltools.target``, such as "iOS18". Integer examples become
    int32 inputs.
    """
    ct = import_coremltools()
    import numpy as np

    module = module.eval()
    with torch.no_grad():
        traced = torch.jit.trace(module, tuple(examples.values()))
    inputs = [
        ct.TensorType(
            name=name,
            shape=tuple(example.shape),
            **({} if example.is_floating_point() else {"dtype": np.int32}),
        )
        for name, example in examples.items()
    ]
    model = ct.convert(
        traced,
        inputs=inputs,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(path))
