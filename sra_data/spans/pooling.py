"""From tokens to spans: the state of a span and how much it matters (docs/method.md, sections 3 and 4).

One mechanism for a whole padded batch: a token's coefficient inside its span is computed first (float32, no gradient),
then one scatter-add sums coefficient times state. The map of attention is never needed, only its last row; no loop runs
over examples or spans. Attention weights carry no gradient, by construction.

Shapes: B examples, N tokens (or cached positions), D hidden size, K spans (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CentersOfMass(NamedTuple):
    """Pooled spans and what was found while pooling them."""

    states: Tensor  # [B, K, D], at least float32; zeros where a span has no token
    mass: Tensor  # [B, K], sum of the raw token weights of each span, no gradient
    num_fallbacks: Tensor  # scalar int64: spans whose mass vanished and whose plain mean was taken instead


def center_of_mass(hidden_states: Tensor, span_ids: Tensor, token_weights: Tensor, num_spans: int) -> CentersOfMass:
    """Average each span's hidden states, weighted by its tokens' attention mass.

    Source: SRA (arXiv 2605.01205), section 3. Accumulates in float32 (float64 for float64 states). A span whose mass
    is zero or underflows (sliding windows give exact zeros) gets its plain mean and is counted. A one-token span gives
    that token's state exactly, because its coefficient is x / x.

    Args:
        hidden_states: [B, N, D], any float dtype; the only argument that receives a gradient.
        span_ids: [B, N], index of the span a token belongs to, -1 for none.
        token_weights: [B, N], non-negative; need not be normalised, and a constant factor changes nothing.
        num_spans: K, the padded number of spans.

    Returns:
        States [B, K, D], masses [B, K] and the number of spans that fell back to the plain mean.

    Raises:
        ValueError: If a weight is negative or a span id is not below num_spans. Checked on CPU only: on an accelerator
            the check would stall its queue, and the weights come from a softmax.
    """
    token_weights = token_weights.detach()
    _check(span_ids, token_weights, num_spans)
    batch, _, width = hidden_states.shape
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    # Tokens of no span go to one more span at the end, which is cut off again.
    slots = torch.where(span_ids >= 0, span_ids, num_spans)  # [B, N]
    coefficients, mass, num_fallbacks = _coefficients(slots, token_weights, num_spans, dtype)
    flat_slots = slots + torch.arange(batch, device=slots.device)[:, None] * (num_spans + 1)
    weighted = hidden_states.to(dtype) * coefficients[:, :, None]  # [B, N, D]
    sums = weighted.new_zeros(batch * (num_spans + 1), width)
    sums = sums.index_add(0, flat_slots.reshape(-1), weighted.reshape(-1, width))
    return CentersOfMass(sums.view(batch, num_spans + 1, width)[:, :num_spans], mass, num_fallbacks)


def span_mean(hidden_states: Tensor, span_ids: Tensor, num_spans: int) -> Tensor:
    """Average each span's hidden states, every token alike.

    Args and returns as for `center_of_mass`: [B, K, D].
    """
    ones = torch.ones(span_ids.shape, dtype=torch.float32, device=span_ids.device)
    return center_of_mass(hidden_states, span_ids, ones, num_spans).states


def span_last(hidden_states: Tensor, last_index: Tensor, span_mask: Tensor) -> Tensor:
    """The state of each span's last token.

    Args:
        hidden_states: [B, N, D].
        last_index: [B, K], where in N the span's last token is; any valid index where padded.
        span_mask: [B, K] bool.

    Returns:
        [B, K, D], at least float32; zeros where padded.
    """
    index = last_index[:, :, None].expand(-1, -1, hidden_states.shape[2])
    states = hidden_states.gather(1, index)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    return states.masked_fill(~span_mask[:, :, None], 0.0)


def span_mass(span_ids: Tensor, token_weights: Tensor, num_spans: int) -> Tensor:
    """Sum of the token weights of each span.

    Args:
        span_ids: [B, N], -1 for none.
        token_weights: [B, N], non-negative.
        num_spans: K.

    Returns:
        [B, K], at least float32, no gradient.
    """
    weights = token_weights.detach()
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    slots = torch.where(span_ids >= 0, span_ids, num_spans)
    return weights.new_zeros(len(weights), num_spans + 1).scatter_add_(1, slots, weights)[:, :num_spans]


def salience(mass: Tensor, span_mask: Tensor, power: float) -> Tensor:
    """How much each span matters: w_k = mass_k^p / sum_j mass_j^p (docs/method.md, section 4).

    Args:
        mass: [B, K], non-negative mass of the teacher's attention.
        span_mask: [B, K] bool, False where padded.
        power: p; 0 is uniform.

    Returns:
        [B, K], summing to 1 over the real spans of every example that has one; uniform where the total mass is 0.

    Raises:
        ValueError: If power is negative.
    """
    if power < 0:
        raise ValueError(f"salience power must not be negative: {power}")
    mass = mass.masked_fill(~span_mask, 0.0)
    # Relative to the largest, so that a power underflows only where it may, and a constant factor changes nothing.
    largest = mass.amax(1, keepdim=True) if mass.shape[1] else mass.sum(1, keepdim=True)
    relative = torch.where(largest > 0, mass / largest.clamp_min(torch.finfo(mass.dtype).tiny), 1.0)
    powered = relative.pow(power).masked_fill(~span_mask, 0.0)
    return powered / powered.sum(1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)


def _coefficients(slots: Tensor, weights: Tensor, num_spans: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's share of its span [B, N] (0 outside spans), the raw masses [B, K] and the number of fallbacks."""
    weights = weights.to(dtype)
    shape = (len(slots), num_spans + 1)
    inside = slots < num_spans
    mass = weights.new_zeros(shape).scatter_add_(1, slots, weights)
    # Relative to the span's largest weight, so that the sum neither underflows nor depends on the row's scale:
    # weights (3e-39, 1e-39) are relative (1, 1/3), and only a largest weight below the normal range is "no mass".
    largest = weights.new_zeros(shape).scatter_reduce_(1, slots, weights, "amax", include_self=True)
    vanished = largest < torch.finfo(torch.float32).tiny  # [B, K + 1]
    token_vanished = vanished.gather(1, slots)
    relative = torch.where(token_vanished, 1.0, weights / largest.gather(1, slots).masked_fill(token_vanished, 1.0))
    total = weights.new_zeros(shape).scatter_add_(1, slots, relative)
    coefficients = torch.where(inside, relative / total.gather(1, slots), 0.0)
    num_tokens = weights.new_zeros(shape).scatter_add_(1, slots, torch.ones_like(weights))
    num_fallbacks = (vanished & (num_tokens > 0))[:, :num_spans].sum()
    return coefficients, mass[:, :num_spans], num_fallbacks


def _check(span_ids: Tensor, token_weights: Tensor, num_spans: int) -> None:
    """Refuse ids and weights that would be summed into the wrong place (CPU only)."""
    if span_ids.device.type != "cpu" or not span_ids.numel():
        return
    if int(span_ids.max()) >= num_spans:
        raise ValueError(f"span id {int(span_ids.max())} is not below num_spans {num_spans}")
    if float(token_weights.min()) < 0:
        raise ValueError(f"token weight {float(token_weights.min())} is negative")
