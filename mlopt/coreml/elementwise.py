"""Constants that only elementwise operations read: rotary and position tables, windows, offsets.

A matrix product sums over many weights, and the errors of a palette average out in the sum. In an
elementwise operation each error of an element becomes an error of an activation. Such constants are
palettized like others, as in coremltools, but the report and the lint point them out.

There are three kinds of operations that read a weight. *Elementwise* ones compute one element from
each element. *Moves* return the same elements at other positions or in another shape; readers of
their result count as readers of the constant. All others count as readers of weights: convolutions,
linear layers, matrix products, attention, recurrent layers, embeddings (``gather``),
normalizations, and all unknown operations, blocks of loops and branches included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlopt.mil.program import Consumer, Node

ELEMENTWISE = frozenset(
    (
        # of two tensors
        *("add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum"),
        *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
        *("logical_and", "logical_or", "logical_xor", "logical_not", "select"),
        # of one
        *("abs", "ceil", "clip", "erf", "exp", "exp2", "floor", "inverse", "log", "round", "rsqrt"),
        *("sign", "sqrt", "square", "threshold", "sin", "cos", "tan", "asin", "acos", "atan"),
        *("sinh", "cosh", "tanh", "atanh"),
        # activations
        *("clamped_relu", "elu", "gelu", "leaky_relu", "linear_activation", "prelu", "relu"),
        *("relu6", "scaled_tanh", "sigmoid", "sigmoid_hard", "silu", "softplus"),
        *("softplus_parametric", "softsign", "thresholded_relu"),
    )
)
"""Operations that compute one element from each element."""

MOVES = frozenset(
    (
        *("identity", "cast", "concat", "stack", "split", "tile", "pad", "reverse", "crop"),
        *("reshape", "reshape_like", "flatten2d", "expand_dims", "squeeze", "transpose"),
        *("slice_by_index", "slice_by_size", "depth_to_space", "space_to_depth"),
        *("pixel_shuffle", "pixel_unshuffle", "batch_to_space", "space_to_batch"),
    )
)
"""Operations whose result has the elements of what they read."""


class ElementwiseReaders:
    """Lookup of the weights of a program that only elementwise operations read.

    Parameters
    ----------
    nodes
        All operations of the program, in program order.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        # For each move: whether only elementwise operations read its results. Readers come later
        # in program order, so that in reverse order they are known when they are looked up.
        self._moves: dict[int, bool] = {}
        for node in reversed(nodes):
            if node.op_type in MOVES:
                returned = any(output.is_block_output for output in node.outputs)
                users = [user for output in node.outputs for user in output.consumers]
                self._moves[id(node)] = not returned and self.are_all(users)

    def are_all(self, consumers: Iterable[Consumer]) -> bool:
        """Whether there are readers and all are elementwise; moves count as their readers do."""
        nodes = [consumer.node for consumer in consumers]
        return bool(nodes) and all(
            node.op_type in ELEMENTWISE or self._moves.get(id(node), False) for node in nodes
        )
