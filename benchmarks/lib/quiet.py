"""Import coremltools without its start-up warnings, which would bury the progress lines."""

from __future__ import annotations

import logging
import warnings
from types import ModuleType


def import_coremltools() -> ModuleType:
    """The ``coremltools`` module (with ``coremltools.optimize`` loaded), its loggers quiet.

    The warnings concern what the benchmarks never use: running models on macOS and the
    scikit-learn converter. Errors still show.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import coremltools
    import coremltools.optimize.coreml

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return coremltools


def import_torch_palettization() -> ModuleType:
    """The module ``coremltools.optimize.torch.palettization``, its logger quiet.

    Importing it sets that logger to tell of every layer.
    """
    import_coremltools()
    import coremltools.optimize.torch.palettization

    logging.getLogger("coremltools.optimize.torch").setLevel(logging.ERROR)
    return coremltools.optimize.torch.palettization
