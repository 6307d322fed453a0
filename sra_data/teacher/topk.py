"""What is kept of a next-token distribution: truncated log-probabilities with exact tails.

Stored values are v = z - logsumexp(z), log-probabilities at temperature 1; per temperature T one float32 log tail, the
logsumexp of v/T over the ids left out. The distribution at T is softmax([v/T, log_tail_T]): its mass is whole by
construction, however the values were rounded. Raw 16-bit logits beside an exact logsumexp are not: their
probabilities add up to more than 1 on a fifth to a third of peaked rows.

Legend: P positions, V vocabulary, k ids kept, T temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """The k most probable ids of each position.

    Attributes:
        ids: [P, k] int64, most probable first; the lower id first among equals.
        values: [P, k] float32 log-probabilities at temperature 1.
        log_tails: [T, P] float32, logsumexp of v/T over the ids left out; -inf where none is.
        log_normalizer: [P] float32, logsumexp of the logits.
    """

    ids: Tensor
    values: Tensor
    log_tails: Tensor
    log_normalizer: Tensor


def chosen_logits(logits: Tensor, next_ids: Tensor) -> Tensor:
    """[P] logit of the token that follows each position; NaN where `next_ids` is -1 (nothing follows)."""
    chosen = logits.gather(-1, next_ids.clamp(min=0)[:, None])[:, 0]
    return torch.where(next_ids >= 0, chosen, torch.nan)


def top_k_with_tails(logits: Tensor, *, top_k: int, temperatures: Sequence[float]) -> TopK:
    """Cut distributions to their top k ids; `logits` [P, V] float32 are used up (overwritten).

    One exponential serves all temperatures of 1 and 2, because exp(x / 2) is the square root of exp(x): what underflows
    at exp(x) is below 1e-19 of the largest id left out once rooted, far under float32's resolution of the sum.

    Raises:
        ValueError: If top_k is not in 1..V or a temperature is not positive.
    """
    vocabulary_size = logits.shape[-1]
    if not 1 <= top_k <= vocabulary_size:
        raise ValueError(f"top_k must be in 1..{vocabulary_size}, got {top_k}")
    if any(temperature <= 0 for temperature in temperatures):
        raise ValueError(f"temperatures must be positive, got {list(temperatures)}")
    # One more than asked for: the largest logit left out is the reference of the tails' exponentials.
    values, ids = torch.topk(logits, min(top_k + 1, vocabulary_size), dim=-1)
    reference = values[:, -1:]  # [P, 1]
    values, ids = values[:, :top_k], ids[:, :top_k]
    logits.scatter_(-1, ids, -torch.inf)
    rest = logits.sub_(reference)
    # Sums of exp(rest / T), other temperatures first: for 1 and 2 the exponential is taken in place.
    sums = {t: (rest / t).exp_().sum(dim=-1) for t in set(temperatures) - {1, 2}}
    exponentials = rest.exp_()
    sums[1] = exponentials.sum(dim=-1)
    if 2 in temperatures:
        sums[2] = exponentials.sqrt_().sum(dim=-1)
    left_out = reference[:, 0] + sums[1].log()  # logsumexp of z over the ids left out
    log_normalizer = torch.logaddexp(values.logsumexp(dim=-1), left_out)  # [P]
    tails = [(reference[:, 0] - log_normalizer) / t + sums[t].log() for t in temperatures]
    log_tails = torch.stack(tails) if tails else logits.new_empty(0, len(logits))
    return TopK(ids, values - log_normalizer[:, None], log_tails, log_normalizer)
