"""Runs of PyTorch modules, observed by hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlopt.calibration.modules.called import UnfitError, call_of
from mlopt.calibration.modules.feeds import feeds_of_module
from mlopt.calibration.modules.same_inputs import SameInputs
from mlopt.calibration.runs import Observer
from mlopt.choices import Statistics
from mlopt.errors import ConfigError, InputError, MlOptError
from mlopt.text.names import shortlist
from mlopt.torch.modules import unwrapped
from mlopt.torch.sensitivity.sharded import is_sharded

_WANTED = (
    "samples must be a module's arguments: tensors, tuples of positional arguments, or "
    "dictionaries of keyword arguments"
)


class ModuleRun:
    """A module, as a calibration runs it; see ``Run``.

    It runs in eval mode without gradients, on the device of its first parameter, and is left as it
    was after each sample.
    """

    def __init__(self, model: nn.Module, statistics: Statistics) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ConfigError(
                f"a module that is calibrated must be a plain torch.nn.Module, got "
                f"{type(model).__name__}; calibrate it before it is traced"
            )
        self.model = unwrapped(model)
        if is_sharded(self.model):
            raise ConfigError(
                "parameters that are sharded over processes cannot be calibrated; calibrate the "
                "model as it is before it is sharded, with part=(i, n) in each process"
            )
        if statistics == "guided":
            raise ConfigError(
                "guided statistics are of programs, got a module; convert it and calibrate the "
                "package, or use statistics='hessian'"
            )
        prepared = feeds_of_module(self.model, statistics)
        self.feeds, self.modules = prepared.feeds, prepared.modules
        self.identity = type(self.model).__qualname__
        self.unfit: dict[str, None] = {}

    def inputs(self, sample: Any, number: int) -> Mapping[Any, Any]:
        """Return a sample's keyword arguments by name, or its positional ones by position."""
        if isinstance(sample, Mapping):
            if all(isinstance(name, str) for name in sample):
                return sample
            raise InputError(
                f"{_WANTED}; sample {number} has the keys {shortlist(list(map(repr, sample)))}, "
                "which are not names"
            )
        if isinstance(sample, Tensor):
            return {0: sample}
        if isinstance(sample, tuple | list):
            return dict(enumerate(sample))
        raise InputError(f"{_WANTED}; sample {number} is {type(sample).__name__}")

    def run(self, inputs: Mapping[Any, Any], number: int, observer: Observer) -> None:
        """Call the module."""
        device = next((parameter.device for parameter in self.model.parameters()), None)
        positional = [_moved(v, device) for k, v in inputs.items() if not isinstance(k, str)]
        named = {k: _moved(v, device) for k, v in inputs.items() if isinstance(k, str)}
        contexts = _in_eval_mode(self.model), torch.no_grad(), _without_fast_path()
        with contexts[0], contexts[1], contexts[2], self._observed(observer):
            try:
                self.model(*positional, **named)
            except MlOptError:
                raise
            except Exception as error:
                raise InputError(
                    f"{type(self.model).__name__} cannot be run on it: {type(error).__name__}: "
                    f"{error}; a sample is a tensor, a tuple of the module's positional arguments, "
                    "or a dictionary of its keyword arguments"
                ) from error

    def remarks(self) -> tuple[str, ...]:
        """Return which modules were called with something else than they multiply."""
        if not self.unfit:
            return ()
        return (
            f"inputs that do not fit the weight were left out, of {shortlist(list(self.unfit))}",
        )

    @contextlib.contextmanager
    def _observed(self, observer: Observer) -> Iterator[None]:
        same = SameInputs()

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            title = self.modules[id(module)][0]
            call = call_of(args, kwargs)
            number = same.number(call["x"])
            try:
                for feed in self.feeds.by_operation[id(module)]:
                    observer(feed, title, call, (output,), None, inputs=number)
            except UnfitError:
                self.unfit[title] = None

        with contextlib.ExitStack() as hooks:
            for _, module in self.modules.values():
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            yield


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Have attention computed by operations: its fast path takes nested tensors, and calls none."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _moved(value: Any, device: torch.device | None) -> Any:
    """Return an argument with its tensors on a device."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(each, device) for each in value)
    if type(value) is dict:
        return {key: _moved(each, device) for key, each in value.items()}
    return value
