"""Sensitive k-means: palettization weighted by how much the loss depends on each weight."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mlopt.choices import Method
from mlopt.errors import ConfigError
from mlopt.statistics.guidance import CalibrationSource
from mlopt.torch.modules import ModelParameter, parameters_of, unwrapped
from mlopt.torch.palettization.base import Palettizer
from mlopt.torch.palettization.compression import compress
from mlopt.torch.palettization.config import SKMPalettizerConfig
from mlopt.torch.sensitivity import (
    Sensitivities,
    check_sensitivities,
    compute_sensitivities,
    load_sensitivities,
    save_on_first_rank,
)
from mlopt.torch.sensitivity.calibration import LossFunction
from mlopt.torch.sensitivity.sharded import is_sharded

_LEAST = 1e-12
"""The least importance relative to the largest of a weight: elements that no sample reached count
this much, so that they pull no centre away from others, but are stored as the nearest one."""


class SKMPalettizer(Palettizer[SKMPalettizerConfig]):
    """Palettizes the weights of a model by sensitive k-means (SqueezeLLM, arXiv 2306.07629).

    Each weight counts by its sensitivity: the mean, over calibration samples, of the squared
    gradient of the loss. The clusters are those of least weighted squared error. The modules that
    are palettized are those of :class:`PostTrainingPalettizer`.

    Parameters
    ----------
    model
        As for :class:`PostTrainingPalettizer`. It is run as it is: call ``eval()`` before if
        the loss is to be that of inference. Weights that are frozen get a sensitivity all the same.
    config
        Which modules, and how, and the number of calibration samples. None: every module at 4
        bits, one table per weight, 128 samples.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from mlopt.torch.palettization import SKMPalettizer, SKMPalettizerConfig
    >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    >>> config = SKMPalettizerConfig.from_dict(
    ...     {"global_config": {"n_bits": 3}, "calibration_nsamples": 16}
    ... )
    >>> data = [(torch.randn(8, 20), torch.randint(10, (8,))) for _ in range(16)]
    >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> palettized = SKMPalettizer(model, config).compress(dataloader=data, loss_fn=loss_fn)
    >>> palettized[0].weight.unique().numel()
    8
    """

    config_class = SKMPalettizerConfig

    def compute_sensitivity(
        self,
        dataloader: Iterable[Any],
        loss_fn: LossFunction,
        sensitivity_path: str | os.PathLike[str] | None = None,
        num_sensitivity_workers: int = 1,
        fsdp_auto_wrap_policy: Any = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the sensitivities of the weights that can be palettized.

        Afterwards the model is as it was: weights, gradients, flags and statistics; even if
        ``loss_fn`` raises.

        Under ``torch.distributed`` (a process group that torchrun's processes have joined), the
        samples are divided among the processes, each of which returns the same result. The
        model may be wrapped in ``DistributedDataParallel``, or sharded by FSDP, as a model that is
        too large for one process must be. See
        ``mlopt.torch.sensitivity.compute_sensitivities``.

        Parameters
        ----------
        dataloader
            Yields samples, each as ``loss_fn`` takes it. A batch counts as one: its gradient is
            squared as a whole. ``calibration_nsamples`` of them are taken.
        loss_fn
            ``(model, sample) -> loss``, a scalar with a gradient.
        sensitivity_path
            A file to save them to, for :meth:`compress` here or in another process.
        num_sensitivity_workers
            Copies of the model, spread over the GPUs, that work on samples at the same time. The
            result does not depend on it.
        fsdp_auto_wrap_policy
            None: a model is sharded before it is given here, and stays so.

        Returns
        -------
        float32 tensors on the CPU by the qualified name of the parameter. Those without a
        gradient, or with none but zeros, are missing: all their elements matter alike.

        Raises
        ------
        ConfigError
            There are no samples, or the loss is not a finite scalar with a gradient.
        """
        _refuse_policy(fsdp_auto_wrap_policy)
        return self._sensitivities(
            dataloader, loss_fn, sensitivity_path, num_sensitivity_workers
        ).values

    def compress(
        self,
        dataloader: Iterable[Any] | None = None,
        loss_fn: LossFunction | None = None,
        sensitivity_path: str | os.PathLike[str] | None = None,
        num_kmeans_workers: int = 1,
        num_sensitivity_workers: int = 1,
        inplace: bool = False,
        fsdp_auto_wrap_policy: Any = None,
        *,
        calibration: CalibrationSource | None = None,
        method: Method = "auto",
        correct_biases: bool = True,
    ) -> nn.Module:
        """Palettize the model.

        Parameters
        ----------
        dataloader, loss_fn
            As for :meth:`compute_sensitivity`. Needed without ``sensitivity_path`` and
            ``calibration``, and not used with the former.
        sensitivity_path
            A file of sensitivities, as :meth:`compute_sensitivity` or coremltools saved it.
        num_kmeans_workers
            Threads that cluster at the same time; PyTorch's own number of threads where that is
            more (``torch.set_num_threads``). The result does not depend on it.
        num_sensitivity_workers
            As for :meth:`compute_sensitivity`.
        inplace
            Change the model itself; an error leaves it as it was. False: it stays as it is, and a
            copy is palettized and returned.
        fsdp_auto_wrap_policy
            As for :meth:`compute_sensitivity`.
        calibration
            Statistics of the inputs that weights multiply, or the path of their file, as for
            :meth:`PostTrainingPalettizer.compress`. Tables are then fitted to the outputs of the
            modules, each output of a weight weighted by the mean squared gradient of the loss
            there: its sensitivities divided by the mean squares of its inputs. Weights without
            statistics are clustered by their sensitivities alone. Without samples and a file of
            sensitivities, all outputs count alike.
        method, correct_biases
            As for :meth:`PostTrainingPalettizer.compress`.

        Returns
        -------
        The palettized model, as :meth:`PostTrainingPalettizer.compress` returns it; the model
        inside, where ``DistributedDataParallel`` is around it. The rows of :meth:`report` say which
        weights had no sensitivity.

        Raises
        ------
        ConfigError
            Neither samples with a loss, nor a file, nor a calibration are given; see also
            :meth:`compute_sensitivity`. The calibration is damaged, or that of another model; or
            ``method`` needs one.
        """
        _refuse_policy(fsdp_auto_wrap_policy)
        reasons: Mapping[str, str] = {}
        notes: list[str] = []
        values: Mapping[str, torch.Tensor] | None = None
        if sensitivity_path is not None:
            values = load_sensitivities(sensitivity_path)
        elif calibration is not None and dataloader is None and loss_fn is None:
            notes.append("sensitivities were not given: all outputs of a weight count alike")
        elif dataloader is None or loss_fn is None:
            missing = "dataloader" if dataloader is None else "loss_fn"
            raise ConfigError(
                f"sensitive k-means needs samples and a loss, got no {missing}; give dataloader "
                "and loss_fn, or the sensitivity_path of a file, or a calibration alone"
            )
        else:
            computed = self._sensitivities(dataloader, loss_fn, None, num_sensitivity_workers)
            values, reasons, notes = computed.values, computed.without_gradient, _notes(computed)
        model = unwrapped(self._model)
        importance = None
        if values is not None:
            _check_names(values, model, sensitivity_path)
            importance = functools.partial(_importance, values=values, reasons=reasons)
        compressed, self._report = compress(
            model,
            self._config,
            importance=importance,
            workers=num_kmeans_workers,
            inplace=inplace,
            notes=notes,
            calibration=calibration,
            method=method,
            correct_biases=correct_biases,
        )
        return compressed

    def _sensitivities(
        self,
        dataloader: Iterable[Any],
        loss_fn: LossFunction,
        path: str | os.PathLike[str] | None,
        workers: int,
    ) -> Sensitivities:
        """Compute the sensitivities of palettizable weights; save them if a path is given."""
        names = None  # all of them: a sharded model does not show what its shards belong to
        if not is_sharded(self._model):
            names = [p.name for p in parameters_of(unwrapped(self._model)) if p.adapted]
        sensitivities = compute_sensitivities(
            self._model,
            dataloader,
            loss_fn,
            nsamples=self._config.calibration_nsamples,
            names=names,
            workers=workers,
        )
        if path is not None:
            save_on_first_rank(sensitivities, path)
        return sensitivities


def _importance(
    parameter: ModelParameter, values: Mapping[str, torch.Tensor], reasons: Mapping[str, str]
) -> tuple[torch.Tensor | None, str | None]:
    """Return the importance of a parameter's elements, or None and a note with the reason."""
    for name in parameter.names:
        if name in values:
            known = values[name].to("cpu", torch.float32)
            return known.clamp(min=_LEAST * float(known.max())), None
    reason = next(
        (reasons[name] for name in parameter.names if name in reasons), "it is in no file"
    )
    return None, f"all elements matter alike, without a sensitivity: {reason}"


def _notes(sensitivities: Sensitivities) -> list[str]:
    """Return the notes of a report on sensitivities: whether there were too few samples."""
    if sensitivities.samples >= sensitivities.requested:
        return []
    return [
        f"sensitivities of {sensitivities.samples} samples: there were fewer than the "
        f"{sensitivities.requested} of calibration_nsamples"
    ]


def _refuse_policy(policy: Any) -> None:
    """Refuse to shard a model here: that would change the one that was given."""
    if policy is not None:
        raise ConfigError(
            f"fsdp_auto_wrap_policy must be None, got a {type(policy).__name__}: shard the model "
            "first, FullyShardedDataParallel(model, auto_wrap_policy=policy.get_policy()), save "
            "its sensitivities with compute_sensitivity(sensitivity_path=...), and compress the "
            "model as it was with that file"
        )


def _check_names(
    values: Mapping[str, torch.Tensor], model: nn.Module, path: str | os.PathLike[str] | None
) -> None:
    """Check sensitivities against the weights of a model; some may be missing, but not all."""
    wanted = {name: p.tensor for p in parameters_of(model) if p.adapted for name in p.names}
    missing = check_sensitivities(values, wanted)
    if path is not None and wanted and len(missing) == len(wanted):
        raise ConfigError(
            f"{path} has sensitivities of other parameters than the model's, got "
            f"{', '.join(list(values)[:3]) or 'none'}, needed {', '.join(missing[:3])}, ...; "
            "compute them with this model"
        )
