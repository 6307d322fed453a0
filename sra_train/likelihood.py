"""How probable a model finds given tokens, without the logits of anything else.

Legend: B batch, N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sra_data.models.output_head import OutputHead

CHUNK_TOKENS = 1024  # rows of [tokens, V] logits alive at once


def token_nats(*, hidden: Tensor, head: OutputHead, input_ids: Tensor, wanted: Tensor) -> Tensor:
    """Per example, the sum of -log P over some of its tokens.

    Args:
        hidden: [B, N, D], last layer after the final norm.
        head: Of the same model.
        input_ids: [B, N].
        wanted: [B, N] bool. Token 0 has nothing before it and is left out.

    Returns:
        [B] float64.
    """
    example, token = wanted[:, 1:].nonzero(as_tuple=True)  # token n + 1 is predicted from n
    nats = torch.zeros(len(wanted), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(example), CHUNK_TOKENS):
        rows, before = example[start : start + CHUNK_TOKENS], token[start : start + CHUNK_TOKENS]
        logits = head.logits(hidden[rows, before]).float()
        found = nn.functional.cross_entropy(logits, input_ids[rows, before + 1], reduction="none")
        nats.index_add_(0, rows, found.double())
    return nats
