"""Sensitivities: how much the loss of a model depends on each of its weights.

They are the diagonal Fisher information, computed in one process, on several threads or over the
ranks of ``torch.distributed``; with the files that hold them.
"""

from mlopt.torch.sensitivity.compute import compute_sensitivities
from mlopt.torch.sensitivity.files import (
    check_sensitivities,
    load_sensitivities,
    save_on_first_rank,
    save_sensitivities,
)
from mlopt.torch.sensitivity.sensitivities import Sensitivities

__all__ = [
    "Sensitivities",
    "check_sensitivities",
    "compute_sensitivities",
    "load_sensitivities",
    "save_on_first_rank",
    "save_sensitivities",
]
