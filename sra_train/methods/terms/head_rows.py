"""What an output head says at some rows, differentiable row by row: chosen logits and log-sums, in chunks.

`head_losses` gives one scalar whose coefficients are fixed before the forward; it forms gradients at once and is the
cheaper one where that is enough. Where a loss is no sum over rows (a chunk's log-probability, a distance between sorted
logits, a binary cross entropy of sums) the values themselves have to carry the gradient: that is this file.

    z = chosen logits [R, k]        log_sums_T = logsumexp(z' / T) over the whole vocabulary
    log_rests_T = logsumexp(z' / T) over the ids that are NOT chosen: a masked sum, never 1 minus a sum

A chunk of rows is multiplied with the head, what is asked for is kept, the logits are forgotten; the backward
multiplies again and goes through the softmax of the chunk. No [rows, vocabulary] tensor of the whole batch ever exists.

Shapes: R rows, k chosen ids, T temperatures, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sra_train.methods.terms.head_loss import CHUNK_BYTES, product_dtype

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead


@dataclass(frozen=True)
class HeadRows:
    """What a head says at some rows, in at least float32, with gradient.

    Attributes:
        chosen: [R, k] logits of the ids that were asked for.
        log_sums: [R, T] logsumexp of logits / T over the vocabulary.
        log_rests: [R, T] the same over the ids that were not asked for; -inf where there is none.
    """

    chosen: Tensor
    log_sums: Tensor
    log_rests: Tensor


def head_rows(
    head: OutputHead,
    states: Tensor,
    ids: Tensor,
    *,
    temperatures: Sequence[float] = (1.0,),
    chunk_bytes: int | None = None,
) -> HeadRows:
    """Chosen logits and log-sums of some rows.

    Args:
        head: Weight and bias may require a gradient (tied or not).
        states: [R, D].
        ids: [R, k] int64, different from each other within a row.
        temperatures: Of the log-sums.
        chunk_bytes: Size of the largest [rows, vocabulary] tensor; a default by device where None.
    """
    limit = chunk_bytes or CHUNK_BYTES.get(states.device.type, CHUNK_BYTES["cpu"])
    spec = _Spec(ids, tuple(temperatures), head.scale, head.softcap, product_dtype(states), limit)
    return HeadRows(*_HeadRows.apply(spec, head.weight, head.bias, states))


def token_log_probs(head: OutputHead, states: Tensor, ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log P(id) at each row, at a temperature: [R] for ids [R], [R, k] for ids [R, k]; with gradient."""
    rows = head_rows(head, states, ids if ids.dim() == 2 else ids[:, None], temperatures=(temperature,))
    found = rows.chosen / temperature - rows.log_sums
    return found if ids.dim() == 2 else found[:, 0]


def top_k_ids(head: OutputHead, states: Tensor, k: int, *, chunk_bytes: int | None = None) -> Tensor:
    """The k ids with the largest logits of each row, largest first: [R, min(k, V)] int64; no gradient."""
    limit = chunk_bytes or CHUNK_BYTES.get(states.device.type, CHUNK_BYTES["cpu"])
    spec = _Spec(states.new_zeros(0), (), head.scale, head.softcap, product_dtype(states), limit)
    weight, bias = spec.product_head(head.weight.detach(), None if head.bias is None else head.bias.detach())
    k = min(k, len(weight))
    found = [
        spec.logits(block, weight, bias).topk(k, dim=1).indices for block in states.detach().split(spec.rows(weight))
    ]
    return torch.cat(found) if found else torch.zeros((0, k), dtype=torch.int64, device=states.device)


def sum_rows(values: Tensor, row_of: Tensor, count: int) -> Tensor:
    """Add up rows [R, ...] by the group (an example, a span) they belong to: [count, ...], with gradient."""
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, row_of, values)


@dataclass(frozen=True)
class _Spec:
    """What does not carry a gradient."""

    ids: Tensor
    temperatures: tuple[float, ...]
    scale: float
    softcap: float | None
    dtype: torch.dtype
    chunk_bytes: int

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def rows(self, weight: Tensor) -> int:
        """Rows of a chunk."""
        return max(1, self.chunk_bytes // (len(weight) * self.sum_dtype.itemsize))

    def product_head(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The head in the dtype of the products."""
        return weight.to(self.dtype), None if bias is None else bias.to(self.dtype)

    def logits(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """softcap x tanh(scale x (states W^T + b) / softcap) [r, V], in at least float32."""
        states = states.to(weight.dtype)
        product = states @ weight.T if bias is None else torch.addmm(bias, states, weight.T)
        product = product.to(self.sum_dtype)
        if self.softcap is None:
            return product if self.scale == 1.0 else product.mul_(self.scale)
        return product.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)


class _HeadRows(torch.autograd.Function):
    """Forward: values, chunk by chunk. Backward: the chunks again, through their softmaxes."""

    @staticmethod
    def forward(ctx: Any, spec: _Spec, weight: Tensor, bias: Tensor | None, states: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(weight.device.type, enabled=False):
            product_weight, product_bias = spec.product_head(weight, bias)
            size = spec.rows(weight)
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            for start in range(0, len(states), size):
                logits = spec.logits(states[start : start + size], product_weight, product_bias)
                found.append(_read(logits, spec.ids[start : start + size], spec.temperatures))
        ctx.spec = spec
        values = tuple(map(torch.cat, zip(*found, strict=True))) if found else _nothing(spec, states)
        ctx.save_for_backward(weight, bias, states, values[1], values[2])
        return values

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, states, log_sums, log_rests = ctx.saved_tensors
        spec, wanted = ctx.spec, ctx.needs_input_grad[1:]
        with torch.autocast(weight.device.type, enabled=False):
            product_weight, product_bias = spec.product_head(weight, bias)
            weight_gradient = torch.zeros_like(weight, dtype=spec.sum_dtype) if wanted[0] else None
            bias_gradient = torch.zeros_like(bias, dtype=spec.sum_dtype) if bias is not None and wanted[1] else None
            states_gradient = torch.zeros_like(states, dtype=spec.sum_dtype) if wanted[2] else None
            size = spec.rows(weight)
            for start in range(0, len(states), size):
                rows = slice(start, start + size)
                logits = spec.logits(states[rows], product_weight, product_bias)
                slope = _slope(logits, spec, rows, log_sums, log_rests, outer).to(spec.dtype)
                if states_gradient is not None:
                    states_gradient[rows] = slope @ product_weight
                if weight_gradient is not None:
                    weight_gradient += slope.T @ states[rows].to(spec.dtype)
                if bias_gradient is not None:
                    bias_gradient += slope.sum(0)
        return (
            None,
            None if weight_gradient is None else weight_gradient.to(weight.dtype),
            None if bias_gradient is None else bias_gradient.to(bias.dtype),
            None if states_gradient is None else states_gradient.to(states.dtype),
        )


def _read(logits: Tensor, ids: Tensor, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen logits [r, k], log-sums and log-rests [r, T] of a chunk; `logits` is overwritten."""
    chosen = logits.gather(1, ids)
    log_sums = [torch.logsumexp(logits / temperature, 1) for temperature in temperatures]
    rest = logits.scatter_(1, ids, -torch.inf)
    log_rests = [torch.logsumexp(rest / temperature, 1) for temperature in temperatures]
    return chosen, torch.stack(log_sums, 1), torch.stack(log_rests, 1)


def _slope(
    logits: Tensor, spec: _Spec, rows: slice, log_sums: Tensor, log_rests: Tensor, outer: tuple[Tensor, ...]
) -> Tensor:
    """The gradient with respect to the product states W^T + b of a chunk [r, V]."""
    of_chosen, of_sums, of_rests = (one[rows] for one in outer)
    ids = spec.ids[rows]
    gradient = torch.zeros_like(logits)
    for place, temperature in enumerate(spec.temperatures):
        scaled = logits / temperature
        share = of_sums[:, place, None] / temperature
        gradient += share * (scaled - log_sums[rows, place, None]).exp()
        rest = log_rests[rows, place, None]
        inside = torch.where(torch.isfinite(rest), (scaled - rest).exp(), 0.0).scatter_(1, ids, 0.0)
        gradient += of_rests[:, place, None].nan_to_num(0.0) / temperature * inside
    gradient.scatter_add_(1, ids, of_chosen)
    if spec.softcap is not None:
        gradient.mul_(1 - (logits / spec.softcap).square())
    return gradient.mul_(spec.scale)


def _nothing(spec: _Spec, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """No rows at all."""
    empty = states.new_zeros((0, spec.ids.shape[1]), dtype=spec.sum_dtype)
    sums = states.new_zeros((0, len(spec.temperatures)), dtype=spec.sum_dtype)
    return empty, sums, sums.clone()
