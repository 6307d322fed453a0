"""Chosen logits over the standard deviation of their row, and which ids to choose; in chunks (MultiLevelOT).

    z_i / s,    s = sqrt( sum over the vocabulary of (z_i - mean z)^2 / V )          one s per row, with gradient
    log softmax(z / s)_i = z_i / s - L,    L = log sum over the vocabulary of exp(z_i / s)

The deviation is worked out in two passes over a chunk (E[z^2] - mean^2 of logits around -100 would keep three digits),
so it cannot be had from sums that `head_rows` could give. As there, a chunk of rows is multiplied with the head, what
is asked for is kept, the logits are forgotten, and the backward multiplies again.

Shapes: R rows, r rows of a chunk, k chosen ids, B examples, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sra_train.methods.terms.head_loss import CHUNK_BYTES, ChunkedHead, product_dtype

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead


def scaled_logits(head: OutputHead, states: Tensor, ids: Tensor, *, chunk_bytes: int | None = None) -> Tensor:
    """Chosen logits over the deviation of their row, with gradient through both.

    Args:
        head: Weight and bias may require a gradient (tied or not).
        states: [R, D].
        ids: [R, k] int64, different from each other within a row.
        chunk_bytes: Size of the largest [rows, vocabulary] tensor; a default by device where None.

    Returns:
        [R, k] in at least float32.
    """
    spec = _Spec(ids, head.scale, head.softcap, product_dtype(states), _limit(states, chunk_bytes))
    chosen, deviation, _ = _ChosenAndSums.apply(spec, head.weight, head.bias, states)
    return chosen / deviation[:, None]


def scaled_log_probabilities(
    head: OutputHead, states: Tensor, ids: Tensor, *, chunk_bytes: int | None = None
) -> Tensor:
    """The same less the log-sum over the whole vocabulary: log softmax(z / s) at the chosen ids [R, k]."""
    limit = _limit(states, chunk_bytes)
    spec = _Spec(ids, head.scale, head.softcap, product_dtype(states), limit, with_log_sum=True)
    chosen, deviation, log_sum = _ChosenAndSums.apply(spec, head.weight, head.bias, states)
    return chosen / deviation[:, None] - log_sum[:, None]


@torch.no_grad()
def sequence_top_k(
    head: OutputHead, states: Tensor, example: Tensor, *, count: int, k: int, chunk_bytes: int | None = None
) -> Tensor:
    """The k ids that are largest over a whole sequence: by the sum over an example's rows of z / s; no gradient.

    Args:
        head: Of one side.
        states: [R, D].
        example: [R] of each row.
        count: B.
        k: How many, at most V.
        chunk_bytes: As above.

    Returns:
        [B, k] int64, largest first; of an example without rows any.
    """
    spec = _Spec(example, head.scale, head.softcap, product_dtype(states), _limit(states, chunk_bytes))
    product = spec.head(head.weight, head.bias)
    sums = torch.zeros((count, len(head.weight)), dtype=product.logits_dtype, device=states.device)
    for rows in spec.chunks(len(states), len(head.weight)):
        logits = product.logits(states[rows])
        sums.index_add_(0, example[rows], logits / _deviation(logits)[1])
    return sums.topk(k, dim=1).indices


def _limit(states: Tensor, chunk_bytes: int | None) -> int:
    return chunk_bytes or CHUNK_BYTES.get(states.device.type, CHUNK_BYTES["cpu"])


def _deviation(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row [r, 1]; 1 where all logits are equal, which leaves them as they are."""
    mean = logits.mean(1, keepdim=True)
    deviation = (logits - mean).square_().mean(1, keepdim=True).sqrt_()
    return mean, torch.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True)
class _Spec:
    """What does not carry a gradient."""

    ids: Tensor
    scale: float
    softcap: float | None
    dtype: torch.dtype
    chunk_bytes: int
    with_log_sum: bool = False

    def head(self, weight: Tensor, bias: Tensor | None) -> ChunkedHead:
        """The product with the head, chunk by chunk."""
        small = None if bias is None else bias.detach().to(self.dtype)
        return ChunkedHead(weight.detach().to(self.dtype), small, scale=self.scale, softcap=self.softcap)

    def chunks(self, num_rows: int, vocabulary: int) -> list[slice]:
        """The rows, cut."""
        size = max(1, self.chunk_bytes // (vocabulary * torch.promote_types(self.dtype, torch.float32).itemsize))
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _ChosenAndSums(torch.autograd.Function):
    """Forward: chosen logits, s and (if asked for) L, chunk by chunk. Backward: the chunks again."""

    @staticmethod
    def forward(
        ctx: Any, spec: _Spec, weight: Tensor, bias: Tensor | None, states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.spec = spec
        ctx.save_for_backward(weight, bias, states)
        with torch.autocast(weight.device.type, enabled=False):
            product = spec.head(weight, bias)
            chosen = torch.empty(spec.ids.shape, dtype=product.logits_dtype, device=states.device)
            deviation, log_sum = chosen.new_empty(len(states)), chosen.new_zeros(len(states))
            for rows in spec.chunks(len(states), len(weight)):
                logits = product.logits(states[rows])
                chosen[rows] = logits.gather(1, spec.ids[rows])
                scale = _deviation(logits)[1]
                deviation[rows] = scale[:, 0]
                if spec.with_log_sum:
                    log_sum[rows] = torch.logsumexp(logits.div_(scale), 1)
        return chosen, deviation, log_sum

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, states = ctx.saved_tensors
        spec, wanted = ctx.spec, ctx.needs_input_grad[1:]
        with torch.autocast(weight.device.type, enabled=False):
            product = spec.head(weight, bias)
            of_weight, of_bias, of_states = (
                torch.zeros_like(one, dtype=product.logits_dtype) if one is not None and need else None
                for one, need in zip((weight, bias, states), wanted, strict=True)
            )
            for rows in spec.chunks(len(states), len(weight)):
                slope = _slope(product.logits(states[rows]), spec, rows, outer).to(spec.dtype)
                if of_states is not None:
                    of_states[rows] = (slope @ product.weight).to(of_states.dtype)
                if of_weight is not None:
                    of_weight += slope.T @ states[rows].to(spec.dtype)
                if of_bias is not None:
                    of_bias += slope.sum(0)
        found = zip((of_weight, of_bias, of_states), (weight, bias, states), strict=True)
        return None, *(None if gradient is None else gradient.to(one.dtype) for gradient, one in found)


def _slope(logits: Tensor, spec: _Spec, rows: slice, outer: tuple[Tensor, ...]) -> Tensor:
    """The gradient with respect to the product states W^T + b of a chunk [r, V]."""
    of_chosen, of_deviation, of_log_sum = outer[0][rows], outer[1][rows, None], outer[2][rows, None]
    mean, deviation = _deviation(logits)
    through_sum = None
    if spec.with_log_sum:
        # L hangs on z twice: d L = p . dz / s - (p . z) / s^2 ds, with p = softmax(z / s).
        through_sum = torch.softmax(logits / deviation, 1)
        of_deviation = of_deviation - of_log_sum * (through_sum * logits).sum(1, keepdim=True) / deviation.square()
        through_sum.mul_(of_log_sum / deviation)
    # d s / d z_i = (z_i - mean) / (V s); 0 where all logits are equal.
    gradient = (logits - mean).mul_(of_deviation / (deviation * logits.shape[1]))
    if through_sum is not None:
        gradient.add_(through_sum)
    gradient.scatter_add_(1, spec.ids[rows], of_chosen)
    if spec.softcap is not None:
        gradient.mul_(1 - (logits / spec.softcap).square())
    return gradient.mul_(spec.scale)
