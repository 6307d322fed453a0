"""What is kept of a next-token distribution: truncated log-probabilities with exact tails, or unbiased samples.

Stored values are v = z - logsumexp(z), log-probabilities at temperature 1; per temperature T one float32 log tail, the
logsumexp of v/T over the ids left out. The distribution at T is softmax([v/T, log_tail_T]): its mass is whole by
construction, however the values were rounded. Raw 16-bit logits beside an exact logsumexp are not: their
probabilities add up to more than 1 on a fifth to a third of peaked rows.

Legend: P positions, V vocabulary, k ids kept, T temperatures, S samples.
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


def sample_ids(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse unbiased distributions by random sampling (arXiv 2503.16870).

    S draws from each position's own distribution, one in each of S equal strata of the cumulative probability, each
    worth 1/S. The expected weight of an id is its probability, so a cross-entropy against the samples has the full
    distribution's gradient in expectation, which no top-k has. Strata only lower the variance of independent draws.

    Args:
        logits: [P, V] float32.
        uniforms: [P, S] float64 in [0, 1), one per stratum.

    Returns:
        ids [P, S] int64, ascending, and weights [P, S] float32 that sum to 1. An id drawn several times stands once
        with its whole weight, then repeated with weight 0.
    """
    num_samples = uniforms.shape[-1]
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)  # [P, V]
    strata = torch.arange(num_samples, device=uniforms.device, dtype=torch.float64)
    points = (strata + uniforms) / num_samples * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, points.contiguous(), right=True).clamp_(max=logits.shape[-1] - 1)
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    group = is_first.cumsum(dim=-1) - 1  # [P, S]: which distinct id of its position a draw belongs to
    counts = torch.zeros_like(uniforms).scatter_add_(-1, group, torch.ones_like(uniforms))
    weights = torch.where(is_first, counts.gather(-1, group), 0.0) / num_samples
    return ids, weights.float()
