"""Post-training palettization of a PyTorch model, by k-means on its weights."""

from __future__ import annotations

from torch import nn

from mlopt.choices import Method
from mlopt.statistics.guidance import CalibrationSource
from mlopt.torch.palettization.base import Palettizer
from mlopt.torch.palettization.compression import compress
from mlopt.torch.palettization.config import PostTrainingPalettizerConfig


class PostTrainingPalettizer(Palettizer[PostTrainingPalettizerConfig]):
    """Palettizes the weights of a model, by clusters of least squared error.

    No data are needed. With a calibration the error is that of the outputs of the modules.

    The weights of convolutions, transposed convolutions, linear and bilinear layers (``Conv1D`` of
    transformers among them), embeddings, attention (``MultiheadAttention``), layer norms, recurrent
    layers and their cells are palettized, subclasses included, and those of modules registered
    with ``mlopt.torch.register_module``. A weight that several modules share is palettized once and
    stays shared.

    Parameters
    ----------
    model
        Any module; its floating point weights may be float16, bfloat16, float32 or float64, on any
        device.
    config
        Which modules, and how. None: every module at 4 bits, one table per weight.

    Examples
    --------
    >>> from torch import nn
    >>> from mlopt.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig
    >>> model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Conv2d(20, 20, 3))
    >>> config = PostTrainingPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    >>> palettized = PostTrainingPalettizer(model, config).compress()
    >>> palettized[2].weight.unique().numel()
    4
    """

    config_class = PostTrainingPalettizerConfig

    def compress(
        self,
        num_kmeans_workers: int = 1,
        inplace: bool = False,
        *,
        calibration: CalibrationSource | None = None,
        method: Method = "auto",
        correct_biases: bool = True,
    ) -> nn.Module:
        """Palettize the model.

        Parameters
        ----------
        num_kmeans_workers
            Threads that cluster at the same time; PyTorch's own number of threads where that is
            more (``torch.set_num_threads``). The result does not depend on it.
        inplace
            Change the model itself; an error leaves it as it was. False: it stays as it is, and a
            copy is palettized and returned.
        calibration
            Statistics of the inputs that weights multiply, or the path of their file: see
            :func:`mlopt.calibration.calibrate`. Tables are then fitted to the outputs of the
            modules. Weights without statistics are clustered by their values, and the report's
            notes name them.
        method
            ``"auto"``: the best that the calibration has for a weight. ``"hessian"``: the same
            (all second moments of the inputs, where they are known). ``"diagonal"``: their mean
            squares alone. ``"plain"``: no calibration.
        correct_biases
            Add the mean error of the outputs to the bias, with ``hessian``, of a linear layer or a
            convolution that has one, if no other module shares weight or bias.

        Returns
        -------
        The palettized model: its weights are dense and hold what their palettes stand for; the
        palettes are in buffers of their modules, for ``coremltools.convert`` and
        ``mlopt.torch.convert``. :meth:`report` says what happened to every parameter.

        Raises
        ------
        ConfigError
            The model has parameters without values, or that are distributed over processes; the
            calibration is damaged, or that of another model; or ``method`` needs one.
        """
        model, self._report = compress(
            self._model,
            self._config,
            importance=None,
            workers=num_kmeans_workers,
            inplace=inplace,
            calibration=calibration,
            method=method,
            correct_biases=correct_biases,
        )
        return model
