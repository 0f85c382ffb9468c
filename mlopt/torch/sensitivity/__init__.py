"""How much the loss of a model depends on each of its weights.

The diagonal Fisher information, in one process, on several threads or over the ranks of
``torch.distributed``; and the files that it is kept in.
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
