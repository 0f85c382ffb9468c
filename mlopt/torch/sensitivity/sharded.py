"""Sums for a model whose parameters are sharded over the ranks of torch.distributed.

FullyShardedDataParallel and fully_shard average gradients over the ranks inside the backward pass,
and a square must be taken of each sample's gradient before any sum. So all ranks work on the same
sample at the same time: the average of equal gradients is that gradient, whatever the sharding, the
dtypes and the hooks that lead to it. This gains memory for the model, not time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlopt.errors import ConfigError, MlOptError
from mlopt.torch.sensitivity.calibration import Calibration, LossFunction
from mlopt.torch.sensitivity.ranks import Ranks
from mlopt.torch.sensitivity.replicated import fair_share
from mlopt.torch.sensitivity.samples import from_bytes, to_bytes
from mlopt.torch.sensitivity.squares import (
    Total,
    add_square,
    checked_loss,
    note_largest,
)

_STATE = "sensitivity"
_FLAT = "_flat_param"
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of the model's parameters."""
    return _is_fsdp1(model) or any(_is_dtensor(p) for p in model.parameters())


def named_whole(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the names of all parameters, without wrappers, each with a tensor that stands for it.

    Names of one parameter have the same tensor. A wrapper's parameters are seen in parts, and
    their stand-ins say nothing but the dtype.
    """
    if not _is_fsdp1(model):
        return list(model.named_parameters(remove_duplicate=False))
    stand_ins: dict[object, Tensor] = {}
    named = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for whole, key in _names_within(_clean(name), parameter):
            stand_in = torch.empty(1, dtype=parameter.dtype)
            named.append((whole, stand_ins.setdefault(key, stand_in)))
    return named


class ShardedSums:
    """Sums of squared gradients; each rank has those of the part of the parameters that it holds.

    Attributes
    ----------
    parameters
        Name as ``named_parameters`` has it -> what this rank holds of it: a ``DTensor``, a flat
        parameter or a part of one, or all of it. Of a ``FullyShardedDataParallel`` model these are
        all parameters of floating point, since a flat one may hold wanted and others.
    sums
        The same name -> float32, of the same kind and shape.
    largest
        Name -> the largest magnitude of its gradient on any rank. What had no gradient is not
        there.
    """

    def __init__(self, model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
        self.model = model
        if _is_fsdp1(model):
            wanted = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
            _check_without_gradients(wanted)
        self.parameters = dict(wanted)
        self.sums = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
            for name, p in self.parameters.items()
        }
        self.largest: dict[str, float] = {}

    def add_samples(self, calibration: Calibration, ranks: Ranks) -> int:
        """Add the squared gradients of samples; returns how many there were, on all ranks alike.

        The samples are those of rank 0's loader or, ``samples_are_sharded``, of all ranks' in
        turn, and reach the other ranks as pickles. With each goes the state of the random
        generators, so that all ranks drop out the same.
        """
        sources = list(range(ranks.size if calibration.samples_are_sharded else 1))
        share = fair_share(calibration.nsamples, ranks.rank, len(sources))
        messages = _messages(calibration.dataloader, share)
        count = 0
        while sources:
            for source in tuple(sources):
                content, state = _next_message(messages, ranks, source)
                if content is None:
                    sources.remove(source)
                    continue
                _set_random_state(state)
                sample = from_bytes(content, _cuda_device())
                self._add(sample, calibration.loss_fn, ranks, count)
                count += 1
        return count

    def whole(self, *, is_kept: bool, rank0_only: bool) -> Iterator[Total]:
        """Yield name, sum of squares and largest magnitude of what had a gradient.

        Collective: every rank must go through to the end. The sums are whole, float32, on the
        CPU, and freed on the way; where they are not kept, nothing is yielded.
        """
        if _is_fsdp1(self.model):
            yield from self._whole_fsdp1(is_kept=is_kept, rank0_only=rank0_only)
            return
        for name in list(self.sums):
            total: Any = self.sums.pop(name)
            full = total.full_tensor() if _is_dtensor(total) else total
            if is_kept and name in self.largest:
                yield name, full.cpu(), self.largest[name]

    def _whole_fsdp1(self, *, is_kept: bool, rank0_only: bool) -> Iterator[Total]:
        """Make the sums whole, as the states of an optimizer are."""
        from torch.distributed.fsdp import (
            FullOptimStateDictConfig,
            FullStateDictConfig,
            FullyShardedDataParallel,
            StateDictType,
        )

        optimizer = torch.optim.SGD(self.parameters.values(), lr=1.0)
        for name, parameter in self.parameters.items():
            optimizer.state[parameter] = {_STATE: self.sums[name]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that torch replaces by others of its own
            with FullyShardedDataParallel.state_dict_type(
                self.model,
                StateDictType.FULL_STATE_DICT,
                FullStateDictConfig(),
                FullOptimStateDictConfig(offload_to_cpu=True, rank0_only=rank0_only),
            ):
                states = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        self.sums.clear()
        for name, parameter in self.parameters.items():
            for part, _ in _names_within(_clean(name), parameter):
                state = states["state"].get(part) if is_kept else None
                if state is None or name not in self.largest:
                    continue
                total = state[_STATE].float().cpu()
                # The magnitude is the whole flat parameter's, and says nothing about a part of it.
                is_told_apart = part == _clean(name) or bool(total.any())
                yield part, total, self.largest[name] if is_told_apart else 0.0

    def _add(self, sample: Any, loss_fn: LossFunction, ranks: Ranks, index: int) -> None:
        loss = checked_loss(loss_fn(self.model, sample), index)
        loss.backward()  # type: ignore[no-untyped-call]
        peaks: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and gradient.numel():
                into = _local(self.sums[name])
                peaks[_clean(name)] = add_square(into, _local(gradient.detach(), parameter))
        largest: dict[str, float] = {}
        refusal: ConfigError | None = None
        try:
            note_largest(largest, peaks, loss, index)
        except ConfigError as error:
            refusal = error
        # A rank may hold no part of a parameter, and a number that is not finite may be anywhere.
        numbers = [largest.get(_clean(name), -1.0) for name in self.parameters]
        *numbers, is_bad = ranks.largest(*numbers, float(refusal is not None))
        if refusal is not None:
            raise refusal
        if is_bad:
            raise ConfigError(
                f"a gradient of sample {index} cannot be squared, in a part that another rank "
                f"holds; that rank's error names the parameter"
            )
        for name, number in zip(self.parameters, numbers, strict=True):
            if number >= 0:
                self.largest[name] = max(self.largest.get(name, 0.0), number)


def _check_without_gradients(parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            raise ConfigError(
                f"{_clean(name)!r} has a gradient, which cannot be put aside, since "
                f"FullyShardedDataParallel owns it; call model.zero_grad(set_to_none=True) first"
            )


def _is_fsdp1(model: nn.Module) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _local(tensor: Tensor, like: Any = None) -> Tensor:
    """Return this rank's part of a tensor, which it shares memory with, divided as ``like`` is."""
    part: Any = tensor
    if not _is_dtensor(tensor):
        return tensor
    if like is not None and part.placements != like.placements:
        part = part.redistribute(placements=like.placements)  # such as a sum not yet added up
    local: Tensor = part.to_local()
    return local


def _clean(name: str) -> str:
    """Return a parameter's name as the model had it before it was wrapped."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _names_within(name: str, parameter: Any) -> Iterator[tuple[str, object]]:
    """Yield the names of the parameters that a parameter consists of, each with an identity."""
    if not hasattr(parameter, "_fqns"):
        yield name, id(parameter)
        return
    prefix = name.removesuffix(_FLAT)
    for part in parameter._fqns:
        yield prefix + _clean(part), (id(parameter), _clean(part))
    for info in parameter._shared_param_infos:
        tied = f"{info.module_name}.{info.param_name}".removeprefix(".")
        first = f"{info.prim_module_name}.{info.prim_param_name}".removeprefix(".")
        yield prefix + _clean(tied), (id(parameter), _clean(first))


def _messages(dataloader: Iterable[Any], share: int) -> Iterator[tuple[bytes | None, Any]]:
    """Yield what the other ranks need for each sample, and Nones at the end."""
    for sample in islice(dataloader, share):
        yield to_bytes(sample), _random_state()
    yield None, None


def _next_message(
    messages: Iterator[tuple[bytes | None, Any]], ranks: Ranks, source: int
) -> tuple[bytes | None, Any]:
    """Return the next message of rank ``source``, or have its error end all ranks."""
    message: Any = None
    if ranks.rank == source:
        try:
            message = next(messages)
        except Exception as error:
            ranks.shared(str(error) or type(error).__name__, source)
            raise
    message = ranks.shared(message, source)
    if isinstance(message, str):
        raise MlOptError(f"rank {source} failed to draw a sample: {message}")
    content, state = message
    return content, state


def _cuda_device() -> torch.device | None:
    if not torch.cuda.is_available():
        return None
    return torch.device("cuda", torch.cuda.current_device())


def _random_state() -> tuple[Tensor, Tensor | None]:
    device = _cuda_device()
    return torch.get_rng_state(), None if device is None else torch.cuda.get_rng_state(device)


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    device = _cuda_device()
    if cuda is not None and device is not None:
        torch.cuda.set_rng_state(cuda, device)
