"""Attention (MIL, ``defs/iOS18/transformers.py``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.ops.linear import in_one_dtype
from mlopt.runtime.registry import operation

_FAST_RANK = 4
"""The rank for which torch has fused kernels."""


@operation("scaled_dot_product_attention", since="CoreML8")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """``softmax(query @ key.T / sqrt(E) + attn_mask) @ value``.

    query: [*B, L, E]; key: [*B, S, E]; value: [*B, S, EV]; attn_mask: broadcast to [*B, L, S],
    floats that are added, or True where the query may attend. A query that may attend to nothing
    gets zeros, as in PyTorch, which the definition refers to; its formula would give NaN.
    """
    rank = query.dim()
    if rank < 3 or key.dim() != rank or value.dim() != rank:
        raise ValueError(
            "query, key and value need the same rank, at least 3, got the shapes "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    if attn_mask is None or attn_mask.dtype == torch.bool:
        query, key, value = in_one_dtype(query, key, value)
    else:
        query, key, value, attn_mask = in_one_dtype(query, key, value, attn_mask)
    wanted = max(rank, _FAST_RANK)
    attended = functional.scaled_dot_product_attention(
        _of_rank(query, wanted),
        _of_rank(key, wanted),
        _of_rank(value, wanted),
        None if attn_mask is None else _of_rank(attn_mask, wanted),
    )
    return attended.reshape(attended.shape[wanted - rank :])


def _of_rank(x: Tensor, rank: int) -> Tensor:
    return x[(None,) * (rank - x.dim())]
