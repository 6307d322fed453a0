"""How probable a model finds given tokens, without the logits of anything else.

Legend: B batch, N tokens, D hidden size, R rows, V vocabulary, T temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sra_data.models.output_head import OutputHead
from sra_train.contract import LabelRows

CHUNK_TOKENS = 1024  # rows of [tokens, V] logits alive at once


def bits_of_unpredicted(count: int, head: OutputHead) -> float:
    """What tokens cost that nothing stands before, log2 V each: before it has read anything a model knows nothing."""
    return count * math.log2(head.weight.shape[0])


def token_nats(*, hidden: Tensor, head: OutputHead, rows: LabelRows) -> Tensor:
    """Per example, the sum of -log P over some of its tokens.

    Args:
        hidden: [B, N, D], last layer after the final norm.
        head: Of the same model.
        rows: The positions that predict them.

    Returns:
        [B] float64.
    """
    return token_nats_at((1.0,), hidden=hidden, head=head, rows=rows)[0]


def token_nats_at(temperatures: Sequence[float], *, hidden: Tensor, head: OutputHead, rows: LabelRows) -> Tensor:
    """The same with the logits divided by each of several temperatures, from one pass over the head.

    Returns:
        [T, B] float64.
    """
    states = hidden.reshape(-1, hidden.shape[2])
    nats = torch.zeros(len(temperatures), len(hidden), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(rows.positions), CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits = head.logits(states.index_select(0, rows.positions[chunk])).float()
        for place, temperature in enumerate(temperatures):
            scaled = logits if temperature == 1 else logits / temperature
            found = nn.functional.cross_entropy(scaled, rows.targets[chunk], reduction="none")
            nats[place].index_add_(0, rows.example[chunk], found.double())
    return nats
