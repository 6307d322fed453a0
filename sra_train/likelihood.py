"""How probable a model finds given tokens, without the logits of anything else.

Legend: B batch, N tokens, D hidden size, R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sra_data.models.output_head import OutputHead
from sra_train.contract import LabelRows

CHUNK_TOKENS = 1024  # rows of [tokens, V] logits alive at once


def token_nats(*, hidden: Tensor, head: OutputHead, rows: LabelRows) -> Tensor:
    """Per example, the sum of -log P over some of its tokens.

    Args:
        hidden: [B, N, D], last layer after the final norm.
        head: Of the same model.
        rows: The positions that predict them.

    Returns:
        [B] float64.
    """
    states = hidden.reshape(-1, hidden.shape[2])
    nats = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(rows.positions), CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits = head.logits(states.index_select(0, rows.positions[chunk])).float()
        found = nn.functional.cross_entropy(logits, rows.targets[chunk], reduction="none")
        nats.index_add_(0, rows.example[chunk], found.double())
    return nats
