"""Do the job of a row on a torch module, with either tool: the same calls, another import line."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.lib import child
from benchmarks.lib.quiet import import_coremltools, import_torch_palettization
from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant
from benchmarks.lib.sizes import package_bytes
from benchmarks.tasks.job_tasks import task
from benchmarks.tasks.task import Loss, Task, matrices

TARGET = "iOS18"


def palettizers(tool: str) -> Any:
    """The module ``optimize.torch.palettization`` of coremltools, or ours of the same names."""
    if tool == REFERENCE:
        return import_torch_palettization()
    import mlopt.torch.palettization

    return mlopt.torch.palettization


def import_tool(variant: Variant) -> Any:
    """The palettizers of the variant's tool; ``convert`` needs coremltools whoever does it."""
    import_coremltools()
    if variant.tool == PROJECT:
        import mlopt.torch  # noqa: F401
    return palettizers(variant.tool)


def open_source(row: Row, variant: Variant, source: str) -> Task:
    """The task ``source``; to convert, with the module as the variant's tool palettized it.

    That is done in a process of its own, so that its memory does not count.
    """
    if row.action != "convert":
        return task(source)
    with tempfile.TemporaryDirectory(prefix="mlopt-bench-") as folder:
        path = Path(folder) / "task.pt"
        child.call(
            "benchmarks.lib.torch_perform:store_palettized",
            tool=variant.tool,
            source=source,
            settings=row.settings,
            path=str(path),
        )
        stored: Task = torch.load(path, weights_only=False)
    return stored


def store_palettized(tool: str, source: str, settings: dict[str, Any], path: str) -> None:
    """Write a task at ``path``, its module palettized post training."""
    given = task(source)
    palettized = post_training(palettizers(tool), given.module, settings)
    torch.save(dataclasses.replace(given, module=palettized), path)


def perform(row: Row, variant: Variant, api: Any, source: Task, output: Path) -> Any:
    """Do the job: the palettized module, or None where a package was saved at ``output``."""
    match row.action:
        case "post-training":
            return post_training(api, source.module, row.settings)
        case "sensitive":
            assert source.loss is not None
            return sensitive(api, source.module, row.settings, source.samples, source.loss)
        case "convert":
            _convert(variant.tool, source).save(str(output))
            return None
        case _:
            raise ValueError(f"{row.name}: nothing does {row.action} on a torch module")


def keep(row: Row, done: nn.Module | None, output: Path) -> dict[str, Any]:
    """The path of what came out: a package and its bytes, or an archive of the dense weights."""
    if done is None:
        return {"output": str(output), "output_bytes": package_bytes(output)}
    archive = output.with_suffix(".npz")
    np.savez(archive, **{name: weight.numpy() for name, weight in matrices(done)})
    return {"output": str(archive)}


def post_training(api: Any, module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A copy of ``module``, palettized by the ``PostTrainingPalettizer`` of ``api``."""
    config = api.PostTrainingPalettizerConfig.from_dict({"global_config": dict(settings)})
    palettized: nn.Module = api.PostTrainingPalettizer(module, config).compress()
    return palettized


def sensitive(
    api: Any, module: nn.Module, settings: dict[str, Any], samples: tuple[Any, ...], loss: Loss
) -> nn.Module:
    """A copy of ``module``, palettized by the ``SKMPalettizer`` of ``api`` with all samples."""
    config = api.SKMPalettizerConfig.from_dict(
        {"global_config": dict(settings), "calibration_nsamples": len(samples)}
    )
    palettizer = api.SKMPalettizer(module, config)
    palettized: nn.Module = palettizer.compress(dataloader=samples, loss_fn=loss)
    return palettized


def _convert(tool: str, source: Task) -> Any:
    """The MLModel of a palettized module: traced, converted, its tables lowered."""
    ct = import_coremltools()
    inputs = [ct.TensorType(name=name, shape=tuple(x.shape)) for name, x in source.inputs.items()]
    target = getattr(ct.target, TARGET)
    examples = tuple(source.inputs.values())
    if tool == PROJECT:
        import mlopt.torch

        return mlopt.torch.convert(
            source.module, examples, inputs=inputs, minimum_deployment_target=target
        )
    traced = torch.jit.trace(source.module, examples)
    return ct.convert(traced, inputs=inputs, minimum_deployment_target=target, skip_model_load=True)
