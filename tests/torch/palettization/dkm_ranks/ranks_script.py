"""What ``test_ranks`` has torchrun start: each case on every rank, its result in a file."""

from __future__ import annotations

import datetime
import functools
import sys
import unittest.mock
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mlopt.errors import ConfigError
from mlopt.torch.palettization import DKMPalettizer, table_state
from mlopt.torch.palettization.initial import initial_centroids
from tests.torch.palettization.dkm_ranks import models
from tests.torch.palettization.dkm_ranks.models import SHARED


def plain(name: str, *, is_own_loss: bool) -> dict[str, Any]:
    """Replicas that nothing wraps."""
    palettizer, model = models.prepared(models.of_option(name), **models.OPTIONS[name], **SHARED)
    seed = dist.get_rank() if is_own_loss else 0
    found = models.forward_and_gradient(model, [seed])
    found["table"] = models.tables(palettizer.finalize())["0.weight"]
    return found


def ragged(inputs: int, outputs: int) -> dict[str, Any]:
    _, model = models.prepared(models.linear(inputs, outputs), n_bits=1, **SHARED)
    return models.forward_and_gradient(model, [dist.get_rank()])


def noisy() -> dict[str, Any]:
    torch.manual_seed(5)  # alike on all ranks
    _, model = models.prepared(
        models.linear(16, 24), n_bits=1, palett_mode="gsm", palett_tau=1e-3, **SHARED
    )
    with torch.no_grad():
        weight = model[0].parametrizations.weight.original
        weight[12:] = weight[:12]
    return models.forward_and_gradient(model, [0])


def dtypes(dtype: torch.dtype) -> dict[str, Any]:
    _, model = models.prepared(models.linear(16, 24).to(dtype), n_bits=2, **SHARED)
    return models.forward_and_gradient(model, [dist.get_rank()])


def kept_bytes() -> dict[str, Any]:
    """The bytes that are kept for the gradient of a weight."""
    found = {}
    for name in ("palett_batch_mode", "palett_shard", "palett_dist"):
        _, model = models.prepared(models.linear(512, 512), n_bits=2, **{name: True})
        model[0].weight  # noqa: B018  the first call clusters
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            weight = model[0].weight
        found[name] = sum(storages.values())
        weight.sum().backward()
    return found


def of_tables(palettizer: DKMPalettizer) -> dict[str, Any]:
    found = models.tables(palettizer.finalize())
    return {f"table of {name}": table for name, table in found.items()}


def ddp(**options: Any) -> dict[str, Any]:
    palettizer, model = models.prepared(models.network(), n_bits=2, **options)
    wrapped = DistributedDataParallel(model)
    models.train(wrapped, palettizer, [dist.get_rank()])
    return models.trained(wrapped) | of_tables(palettizer)


def ddp_twice() -> dict[str, Any]:
    """Two forward passes, whose losses are one."""
    _, model = models.prepared(models.network(), n_bits=2, enforce_zero=True, **SHARED)
    wrapped = DistributedDataParallel(model)
    inputs, wanted = models.batch(0, dist.get_rank())
    ((wrapped(inputs) - wanted).square().mean() + wrapped(inputs).square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def one_rank() -> dict[str, Any]:
    """Rank 0 evaluates and reports while the others wait for it in training."""
    palettizer, model = models.prepared(models.network(), n_bits=2, **SHARED)
    models.train(model, palettizer, [0])
    if dist.get_rank() == 0:
        palettizer.report()
        with torch.no_grad():
            model(models.batch(0, 0)[0])
        model.eval()(models.batch(0, 0)[0])
        model.train()
    models.train(model, palettizer, [0])
    return models.trained(model)


def fsdp(**options: Any) -> dict[str, Any]:
    palettizer, model = models.prepared(models.network(), n_bits=2, **options)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    models.train(model, palettizer, [dist.get_rank()])
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    again, copy = models.prepared(models.network(), n_bits=2, **options)
    copy.load_state_dict(full)
    return models.trained(copy) | of_tables(again)


def fsdp1(**options: Any) -> dict[str, Any]:
    palettizer, model = models.prepared(models.network(), n_bits=2, **options)
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    models.train(wrapped, palettizer, [dist.get_rank()])
    full = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True))
    again, copy = models.prepared(models.network(), n_bits=2, **options)
    copy.load_state_dict(full)
    return models.trained(copy) | of_tables(again)


def clustered_together(threshold: int) -> dict[str, Any]:
    """How many groups this rank has clustered itself, and the tables."""
    counts = []

    def counting(points: torch.Tensor, *arguments: Any) -> torch.Tensor:
        counts.append(len(points))
        return initial_centroids(points, *arguments)

    options = {**models.OPTIONS["whole-groups"], "kmeans_batch_threshold": threshold}
    _, model = models.prepared(models.linear(15, 24), **options, **SHARED)
    with unittest.mock.patch.object(table_state, "initial_centroids", counting):
        found = models.forward_and_gradient(model, [0])
    return {**found, "groups": torch.tensor(sum(counts))}


def exchanges(**options: Any) -> dict[str, Any]:
    """How often the ranks wait for each other in a pass, there and back."""
    shared = {**models.OPTIONS["whole-groups"], "palett_epsilon": 0.0, **SHARED, **options}
    _, model = models.prepared(models.linear(15, 24), **shared)
    models.forward_and_gradient(model, [0])
    count = 0

    def counting(*arguments: Any, **further: Any) -> Any:
        nonlocal count
        count += 1
        return all_reduce(*arguments, **further)

    all_reduce = dist.all_reduce
    with unittest.mock.patch.object(dist, "all_reduce", counting):
        models.forward_and_gradient(model, [0])
    return {"count": torch.tensor(count)}


def refused(make: Callable[[], Any]) -> dict[str, Any]:
    try:
        make()
    except ConfigError as error:
        return {"message": str(error)}
    return {"message": "nothing was raised"}


def fsdp_first() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    models.prepared(fully_shard(models.network(), mesh=mesh), n_bits=2)


def fsdp_finalize() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    palettizer, model = models.prepared(models.network(), n_bits=2)
    fully_shard(model, mesh=mesh)
    palettizer.finalize(inplace=True)


CASES: dict[str, Callable[[], dict[str, Any]]] = {}
for name in models.OPTIONS:
    CASES[f"{name}-same"] = functools.partial(plain, name, is_own_loss=False)
    CASES[f"{name}-own"] = functools.partial(plain, name, is_own_loss=True)
CASES |= {
    "ragged": functools.partial(ragged, 7, 5),
    "few": functools.partial(ragged, 5, 1),
    "one": functools.partial(ragged, 1, 1),
    "gsm": noisy,
    "float64": functools.partial(dtypes, torch.float64),
    "bfloat16": functools.partial(dtypes, torch.bfloat16),
    "float16": functools.partial(dtypes, torch.float16),
    "kept-bytes": kept_bytes,
    "ddp-replicas": ddp,
    "ddp-shares": functools.partial(ddp, **SHARED),
    "ddp-twice": ddp_twice,
    "one-rank": one_rank,
    "fsdp-replicas": fsdp,
    "fsdp-shares": functools.partial(fsdp, **SHARED),
    "fsdp1-replicas": fsdp1,
    "fsdp1-shares": functools.partial(fsdp1, **SHARED),
    "clustered-together": functools.partial(clustered_together, 3),
    "clustered-each": functools.partial(clustered_together, 4),
    "exchanges-in-batch-mode": exchanges,
    "exchanges": functools.partial(exchanges, palett_batch_mode=False),
    "fsdp-first": functools.partial(refused, fsdp_first),
    "fsdp-finalize": functools.partial(refused, fsdp_finalize),
}


def main(folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    for name in names or CASES:
        torch.save(CASES[name](), folder / f"{name}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
