"""Tables that keep a weight's outputs: second moments of its inputs, and the solver for them."""

from mlopt.palette.moments.arrangement import Arrangement
from mlopt.palette.moments.moments import InputMoments
from mlopt.palette.moments.solve import can_refine, refine

__all__ = ["Arrangement", "InputMoments", "can_refine", "refine"]
