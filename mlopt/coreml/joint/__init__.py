"""Palettizing what is sparse or quantized already."""

from mlopt.coreml.joint.palettes import check_joint, palettize_joint
from mlopt.coreml.joint.weights import JointWeight, with_joint_weights

__all__ = ["JointWeight", "check_joint", "palettize_joint", "with_joint_weights"]
