"""Soft-capped attention without the tokens x tokens map, for models whose soft-cap SDPA refuses (Gemma 2).

`use_softcapped_sdpa` swaps the eager path transformers falls back to for one that takes one block of queries at a time:
scores, soft-cap, mask, softmax, product. While training, each block is recomputed in the backward pass instead of kept,
so that memory stays linear in the number of tokens.

Legend: B batch, H heads, G query heads per key head, N queries, S keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sra_data.models.decoder import text_config

QUERIES_PER_BLOCK = 128
IMPLEMENTATION = "softcapped_sdpa"


def use_softcapped_sdpa(model: nn.Module) -> bool:
    """Take a soft-capping model off the eager path, before anything is attached to it.

    Returns:
        Whether the model was changed: it soft-caps its attention and was on the eager path or on SDPA.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    config = text_config(model)
    # Some releases refuse SDPA for such a model and fall back to eager; others run it and drop the cap in silence.
    is_replaced = config._attn_implementation in ("eager", "sdpa")
    if getattr(config, "attn_logit_softcapping", None) is None or not is_replaced:
        return False

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        capped = options.get("softcap") is not None
        attend = softcapped_attention if capped else sdpa_attention_forward
        return attend(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    config._attn_implementation_internal = IMPLEMENTATION
    return True


def softcapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    softcap: float,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with scores softcap * tanh(scores / softcap), in the form transformers' interface expects.

    Args:
        query: [B, H, N, D].
        key: [B, H / G, S, D].
        value: [B, H / G, S, D].
        attention_mask: [B or 1, 1, N, S], bool or additive; None means causal (with the sliding window, if any).

    Returns:
        [B, N, H, D] and None (no attention map).
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    blocks = []
    for start in range(0, num_queries, QUERIES_PER_BLOCK):
        stop = min(start + QUERIES_PER_BLOCK, num_queries)
        if attention_mask is None:
            positions = torch.arange(start, stop, device=query.device)[:, None] + num_keys - num_queries
            keys = torch.arange(num_keys, device=query.device)[None]
            mask = keys <= positions
            if sliding_window is not None:
                mask = mask & (keys > positions - sliding_window)
        else:
            mask = attention_mask[:, :, start:stop]
        arguments = (query[:, :, start:stop], key, value, mask, softcap, scale, dropout)
        if torch.is_grad_enabled() and query.requires_grad:
            blocks.append(checkpoint(_attend, *arguments, use_reentrant=False))
        else:
            blocks.append(_attend(*arguments))
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float, scale: float, dropout: float
) -> Tensor:
    """One block: [B, H, n, D] queries over all keys -> [B, H, n, D]."""
    batch, num_heads, num_queries, width = query.shape
    num_key_heads = key.shape[1]
    group = num_heads // num_key_heads
    grouped = query.reshape(batch, num_key_heads, group * num_queries, width)
    scores = torch.matmul(grouped, key.transpose(-1, -2)) * scale
    scores = (softcap * torch.tanh(scores / softcap)).view(batch, num_heads, num_queries, -1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # A query that sees nothing (left padding) gets zeros, not NaN, so that no NaN travels through padding.
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).nan_to_num(0.0).to(query.dtype)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=dropout > 0)
    per_key_head = probabilities.view(batch, num_key_heads, group * num_queries, -1)
    return torch.matmul(per_key_head, value).view(batch, num_heads, num_queries, -1)
