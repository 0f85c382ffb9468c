"""What ``test_ranks`` has torchrun start: each case on every rank, its result in a file."""

from __future__ import annotations

import datetime
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mlopt.errors import MlOptError
from mlopt.torch.palettization import SKMPalettizer, SKMPalettizerConfig
from mlopt.torch.sensitivity import compute_sensitivities
from tests.torch.sensitivity.references import Small, loss_fn, make_model, make_samples

COUNT = 5


def plain() -> nn.Module:
    return make_model()


def frozen() -> nn.Module:
    return make_model().requires_grad_(False)


def ddp() -> nn.Module:
    return DistributedDataParallel(make_model(), find_unused_parameters=True)


def fsdp1(keeps_parameters: bool, model: Callable[[], nn.Module] = plain) -> nn.Module:
    wrap = functools.partial(
        FullyShardedDataParallel,
        use_orig_params=keeps_parameters,
        device_id=torch.device("cpu"),
    )
    inner: Any = model()
    inner.block = wrap(inner.block)
    return wrap(inner)


def fsdp2(model: Callable[[], nn.Module] = plain) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    inner: Any = model()
    fully_shard(inner.block, mesh=mesh)
    return fully_shard(inner, mesh=mesh)


def dropping(model: Callable[[], nn.Module] = plain) -> nn.Module:
    inner: Any = model()
    inner.block.append(nn.Dropout(0.5))
    return inner


def state(model: nn.Module) -> dict[str, Any]:
    """Return what has to be the same after as before."""
    return {
        "flags": [m.training for m in model.modules()],
        "required": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad is None for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "random": torch.get_rng_state(),
    }


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return all(map(is_same, a, b))
    if isinstance(a, dict):
        return all(is_same(a[key], b[key]) for key in a)
    return bool(a == b)


def run(make: Callable[[], nn.Module], **options: Any) -> dict[str, Any]:
    model = make()
    samples = options.pop("samples", None) or make_samples(COUNT)
    torch.manual_seed(100 + dist.get_rank())  # ranks have random states of their own
    before = state(model)
    found = compute_sensitivities(model, samples, loss_fn, **options)
    return {
        "values": found.values,
        "samples": found.samples,
        "without_gradient": found.without_gradient,
        "aliases": found.aliases,
        "is_as_before": is_same(before, state(model)),
    }


def own_samples() -> list[Any]:
    """Return this rank's part of the samples, as a distributed sampler divides them."""
    return make_samples(COUNT)[dist.get_rank() :: dist.get_world_size()]


def failing(make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Fail on rank 1 alone, before any communication of the model."""

    def samples() -> Any:
        yield from make_samples(2)
        raise RuntimeError("the disk is gone")

    # of a sharded model only rank 0 draws
    source = 0 if "Fully" in type(make()).__name__ or make is fsdp2 else 1
    given = samples() if dist.get_rank() == source else make_samples(COUNT)
    model = make()
    before = state(model)
    try:
        compute_sensitivities(model, given, loss_fn)
    except (MlOptError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    else:
        message = "nothing was raised"
    return {"message": message, "is_as_before": is_same(before, state(model))}


def bad_gradient(make: Callable[[], nn.Module]) -> dict[str, Any]:
    class Bad(Small):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * float("inf")

    try:
        compute_sensitivities(make(Bad), make_samples(COUNT), loss_fn)
    except MlOptError as error:
        return {"message": f"{type(error).__name__}: {error}"}
    return {"message": "nothing was raised"}


def with_gradients(make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Compute sensitivities of a model that has been trained a step."""
    model = make()
    loss_fn(model, make_samples(1)[0]).backward()
    gradients = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in gradients]
    try:
        compute_sensitivities(model, make_samples(COUNT), loss_fn)
    except MlOptError as error:
        message = str(error)
    else:
        message = ""
    now = [p.grad for p in model.parameters()]
    return {
        "message": message,
        "is_as_before": all(a is b for a, b in zip(gradients, now, strict=True))
        and all(
            a is None or bool((a == b).all())  # type: ignore[attr-defined]  # sharded ones
            for a, b in zip(values, now, strict=True)
        ),
    }


def kept_training() -> dict[str, Any]:
    """Train a ``DistributedDataParallel`` model after its sensitivities were computed."""
    model = ddp()
    compute_sensitivities(model, make_samples(3), loss_fn)
    loss_fn(model, make_samples(2)[dist.get_rank()]).backward()
    return {"gradient": model.module.embedding.weight.grad}


def palettized(make: Callable[[], nn.Module], name: str) -> dict[str, Any]:
    """Compute sensitivities with a palettizer, to a file, and palettize a plain model with it."""
    rules = {"global_config": {"n_bits": 2}, "calibration_nsamples": COUNT}
    config = SKMPalettizerConfig.from_dict(rules)
    path = Path(sys.argv[1]) / f"sensitivity-{name}.pt"
    SKMPalettizer(make(), config).compute_sensitivity(make_samples(COUNT), loss_fn, path)
    compressed = SKMPalettizer(plain(), config).compress(sensitivity_path=path)
    try:
        SKMPalettizer(make(), config).compress(sensitivity_path=path)
    except MlOptError as error:
        message = str(error)
    else:
        message = "compressed"
    missing = path.parent / "nowhere" / "file.pt"
    try:
        SKMPalettizer(make(), config).compute_sensitivity(make_samples(1), loss_fn, missing)
    except OSError as error:
        message += f"; {type(error).__name__}"
    return {"weights": dict(compressed.named_parameters()), "message": message}


FSDP1_FLAT = functools.partial(fsdp1, False)
FSDP1 = functools.partial(fsdp1, True)

CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": functools.partial(run, plain),
    "plain-frozen": functools.partial(run, frozen),
    "ddp": functools.partial(run, ddp),
    "ddp-training": kept_training,
    "fsdp2": functools.partial(run, fsdp2),
    "fsdp2-frozen": functools.partial(run, functools.partial(fsdp2, frozen)),
    "fsdp1": functools.partial(run, FSDP1),
    "fsdp1-frozen": functools.partial(run, functools.partial(fsdp1, True, frozen)),
    "fsdp1-flat": functools.partial(run, FSDP1_FLAT),
    "fsdp1-flat-frozen": functools.partial(run, functools.partial(fsdp1, False, frozen)),
}
for kind, make in (
    ("plain", plain),
    ("fsdp2", fsdp2),
    ("fsdp1", FSDP1),
    ("fsdp1-flat", FSDP1_FLAT),
):
    CASES[f"{kind}-names"] = functools.partial(
        run, make, names=["head.weight", "block.2.bias", "unused.bias"]
    )
    CASES[f"{kind}-own"] = lambda make=make: run(
        make, samples=own_samples(), samples_are_sharded=True
    )
    CASES[f"{kind}-rank0"] = functools.partial(run, make, rank0_only=True)
    CASES[f"{kind}-one"] = functools.partial(run, make, nsamples=1)
    CASES[f"{kind}-failing"] = functools.partial(failing, make)
for kind, make in (("ddp", ddp), ("fsdp2", fsdp2), ("fsdp1-flat", FSDP1_FLAT)):
    CASES[f"{kind}-palettized"] = functools.partial(palettized, make, kind)
CASES["ddp-names"] = functools.partial(run, ddp, names=["module.head.weight", "block.2.bias"])
CASES["fsdp2-gradients"] = functools.partial(with_gradients, fsdp2)
CASES["fsdp1-gradients"] = functools.partial(with_gradients, FSDP1)
CASES["fsdp2-bad"] = functools.partial(bad_gradient, lambda kind: fsdp2(kind))
CASES["fsdp2-dropout"] = functools.partial(run, functools.partial(fsdp2, dropping))


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    for name, case in CASES.items():
        torch.save(case(), folder / f"{name}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
