"""One query's row of an attention map, from the query and key alone.

Legend: B batch, H heads, G query heads per key head, N query positions, S key positions, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Total = Callable[[Tensor], Tensor]  # adds up over the processes that share the heads of a layer


@torch.no_grad()
def last_query_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    query_index: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    total: Total | None = None,
    **_: Any,
) -> Tensor:
    """The attention of one query per example over all positions, summed over heads and normalised.

    Args:
        module: The attention module (its `is_causal` matters where no mask was handed in).
        query: [B, H, N, D]; after rotary embedding.
        key: [B, H / G, S, D]; heads are grouped, never repeated here.
        attention_mask: [B or 1, 1 or H, N, S] bool (True = attend) or additive float; [B, S] with FlashAttention; or
            None, which means causal.
        query_index: [B], position of the query among the N.
        scaling: Factor on the scores; 1/sqrt(D) where None.
        softcap: Scores become softcap * tanh(scores / softcap).
        sliding_window: Number of positions a query sees, itself included; only used where the mask does not say it.
        s_aux: [H] learned sinks: logits that take mass and belong to no position.
        position_bias: [1 or B, H, N, S], added to the scores.
        total: adds up over the processes that share the heads; None where all heads are here.

    Returns:
        [B, S] float32.
    """
    batch, num_heads, num_queries, width = query.shape
    num_key_heads, num_keys = key.shape[1], key.shape[2]
    examples = torch.arange(batch, device=query.device)
    index = query_index.to(query.device)
    with torch.autocast(device_type=query.device.type, enabled=False):
        last = query[examples, :, index].float()  # [B, H, D]
        grouped = last.view(batch, num_key_heads, num_heads // num_key_heads, width)
        scores = torch.matmul(grouped, key.float().transpose(-1, -2)).view(batch, num_heads, num_keys)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + _row_of(position_bias, examples, index).float()
    if attention_mask is not None and attention_mask.dim() == 4:
        row = _row_of(attention_mask, examples, index)[..., :num_keys]  # [B, 1 or H, S]
        scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row.float()
    else:
        visible = _visible_positions(module, index + num_keys - num_queries, num_keys, sliding_window, is_causal)
        if attention_mask is not None:
            visible = visible & attention_mask.bool()
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    if s_aux is not None:
        sinks = s_aux.float().view(1, num_heads, 1).expand(batch, -1, -1)
        scores = torch.cat([scores, sinks], dim=-1)
    return normalised(torch.softmax(scores, dim=-1)[..., :num_keys], total)


def normalised(probabilities: Tensor, total: Total | None = None) -> Tensor:
    """[B, H, S] attention of one query -> [B, S], summed over heads, summing to one over positions."""
    summed = probabilities.float().sum(dim=1)
    if total is not None:
        summed = total(summed)
    return summed / summed.sum(dim=-1, keepdim=True)


def _row_of(per_query: Tensor, examples: Tensor, index: Tensor) -> Tensor:
    """[B or 1, 1 or H, N or 1, S] -> [B, 1 or H, S], each example's query row."""
    expanded = per_query.expand(len(examples), -1, -1, -1)
    if expanded.shape[2] == 1:
        return expanded[:, :, 0]
    return expanded[examples, :, index]


def _visible_positions(
    module: nn.Module, query_position: Tensor, num_keys: int, sliding_window: int | None, is_causal: bool | None
) -> Tensor:
    """[B, S] bool: what a query sees where no 4-dimensional mask says it."""
    keys = torch.arange(num_keys, device=query_position.device)[None]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    visible = (
        keys <= query_position[:, None] if causal else torch.ones_like(keys).bool().expand(len(query_position), -1)
    )
    if sliding_window is not None:
        visible = visible & (keys > query_position[:, None] - sliding_window)
    return visible
