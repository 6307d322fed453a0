"""Losses on an output head's logits, in chunks of rows, with the head's gradient formed in the forward.

A vocabulary is wide: logits of a whole batch cost more memory than the student, and recomputing them in the backward
costs a third more work. So a chunk of rows is multiplied with the head, its terms give values and the gradient with
respect to the logits, this gradient is multiplied back into hidden states and head at once, and the chunk is
forgotten. Several terms over the same rows share one product: cross entropy and a distribution taught at the same
token read the same logits.

The gradient has to be known in the forward, so what leaves here is ONE differentiable scalar, the sum of
coefficient x value over all rows and terms, and the values without gradient. The backward only scales. Softmaxes run in
float32 (float64 for float64 states), the products in the compute dtype, sums of gradients over chunks in float32.

Columns are the head's rows in their own order, for every term: permuting the head and its gradient costs more memory
traffic, micro-batch by micro-batch, than picking a term's columns out of a block of logits that is in the cache anyway.

Shapes: R rows, r rows of a block, D hidden size, V vocabulary, c columns that a term reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead

# Logits of one chunk. On a CPU some 150 rows of GPT-2's vocabulary already fill the matrix product, and memory of 32 MB
# or more is taken from the system, page by page, and given back at every micro-batch; a GPU wants more.
CHUNK_BYTES = {"cpu": 30 * 2**20, "cuda": 512 * 2**20}
# On a CPU the elementwise work goes over blocks of rows that stay in its cache; on a GPU a block is the chunk.
BLOCK_BYTES = {"cpu": 2 * 2**20}
# On a CPU a product is formed over so many columns at a time: rows of a vocabulary that is no multiple of 16, written
# whole, cost the matrix product half as much again.
PANEL_COLUMNS = {"cpu": 1536}


class HeadTerm(ABC):
    """One loss per row of logits.

    `coefficients` [R] say how much each row counts in the differentiable total. `columns` [c] are the ids, each once,
    that the gradient is for; None: all of them.
    """

    coefficients: Tensor
    columns: Tensor | None = None

    def begin(self, start: int, stop: int) -> None:
        """Prepare rows [start, stop) of the group: one chunk, a few megabytes at a time (a teacher's product, say)."""
        return

    @abstractmethod
    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Values [r] and their gradient [r, V], or [r, c] for the term's columns, for rows [start, stop).

        `logits` [r, V] is at least float32 and must not be changed. The gradient is fresh memory and unweighted.
        """


@dataclass
class RowGroup:
    """Rows that the same terms read.

    A term may stand in several groups, a different part of its rows in each: `first_row` is the number that the group's
    first row has in its terms.
    """

    hidden: Tensor  # [r, D], with or without gradient
    terms: Sequence[HeadTerm]
    first_row: int = 0


def head_losses(
    head: OutputHead,
    groups: Sequence[RowGroup],
    *,
    dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Evaluate all terms of all groups.

    Args:
        head: The student's head; weight and bias may require a gradient (tied or not).
        groups: What to evaluate.
        dtype: Of the products; `product_dtype` of the first group's states where None.
        chunk_bytes: Size of the largest [rows, columns] float32 tensor; a default by device where None.

    Returns:
        The scalar sum of coefficient x value, differentiable with respect to hidden states, weight and bias; and per
        group and term the values [R], without gradient, in float32.
    """
    plan = _Plan(
        groups=[*groups],
        scale=head.scale,
        softcap=head.softcap,
        dtype=dtype or product_dtype(groups[0].hidden),
        chunk_bytes=chunk_bytes or CHUNK_BYTES.get(head.weight.device.type, CHUNK_BYTES["cpu"]),
        with_gradient=torch.is_grad_enabled(),
    )
    hidden = [group.hidden for group in groups]
    total, *values = _HeadLosses.apply(plan, head.weight, head.bias, *hidden)
    remaining = iter(values)
    return total, [[next(remaining) for _ in group.terms] for group in groups]


class ChunkedHead:
    """The product of a head, a chunk of rows at a time, into memory that is used again for the next chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, scale: float, softcap: float | None) -> None:
        """`weight` [V, D] and `bias` [V] are in the dtype of the product."""
        self.weight, self.bias = weight, bias
        self.scale, self.softcap = scale, softcap
        self.logits_dtype = torch.promote_types(weight.dtype, torch.float32)
        self._buffer = weight.new_empty(0, 0)

    def logits(self, states: Tensor) -> Tensor:
        """softcap x tanh(scale x (states W^T + b) / softcap).

        Args:
            states: [r, D].

        Returns:
            [r, V] in at least float32; the next call overwrites it.
        """
        weight, bias = self.weight, self.bias
        states = states.to(weight.dtype)
        if weight.dtype != self.logits_dtype:
            small = states @ weight.T if bias is None else torch.addmm(bias, states, weight.T)
            return self._finish(small.to(self.logits_dtype))
        # Fresh memory of this size would be paged in anew for every chunk.
        if len(self._buffer) < len(states):
            self._buffer = weight.new_empty(len(states), len(weight))
        logits = self._buffer[: len(states)]
        width = PANEL_COLUMNS.get(weight.device.type, len(weight))
        for first in range(0, len(weight), width):
            panel = slice(first, first + width)
            if bias is None:
                torch.mm(states, weight[panel].T, out=logits[:, panel])
            else:
                torch.addmm(bias[panel], states, weight[panel].T, out=logits[:, panel])
        return self._finish(logits)

    def _finish(self, logits: Tensor) -> Tensor:
        if self.softcap is None:
            return logits if self.scale == 1.0 else logits.mul_(self.scale)
        return logits.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)


@dataclass
class _Plan:
    """What does not carry a gradient."""

    groups: list[RowGroup]
    scale: float
    softcap: float | None
    dtype: torch.dtype
    chunk_bytes: int
    with_gradient: bool


class _HeadLosses(torch.autograd.Function):
    """Forward: values and gradients, chunk by chunk. Backward: the gradients times the incoming scalar."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, weight: Tensor, bias: Tensor | None, *hidden: Tensor) -> tuple[Tensor, ...]:
        wanted = [plan.with_gradient and need for need in ctx.needs_input_grad[1:]]
        with torch.autocast(weight.device.type, enabled=False):
            work = _Work(plan, weight, bias, weight_wanted=wanted[0], bias_wanted=wanted[1])
            work.run(plan.groups, hidden, hidden_wanted=any(wanted[2:]))
            ctx.gradients = work.gradients()
        ctx.lengths = [len(states) for states in hidden]
        ctx.dtypes = [weight.dtype, None if bias is None else bias.dtype, *(states.dtype for states in hidden)]
        ctx.mark_non_differentiable(*work.values)
        ctx.set_materialize_grads(False)
        return work.total, *work.values

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("head_losses keeps its gradients for one backward; it cannot run a second time")
        gradients, ctx.gradients = ctx.gradients, None
        factor = outer[0]
        if factor is None:
            return (None,) * (1 + len(ctx.dtypes))
        *of_head, of_hidden = [one if one is None else one.mul_(factor) for one in gradients]
        of_groups = [None] * len(ctx.lengths) if of_hidden is None else of_hidden.split(ctx.lengths)
        found = [*of_head, *of_groups]
        return None, *(one if one is None else one.to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True))


class _Work:
    """The buffers of one forward. Gradients are collected relative to the largest coefficient of the step.

    The relative coefficients are at most 1, so that the products do not underflow in half precision, where 1 / labels
    would; the largest coefficient multiplies the float32 sums at the end. All groups go through the same products: a
    chunk may hold rows of several.
    """

    def __init__(
        self, plan: _Plan, weight: Tensor, bias: Tensor | None, *, weight_wanted: bool, bias_wanted: bool
    ) -> None:
        self.plan = plan
        self.sum_dtype = torch.promote_types(plan.dtype, torch.float32)
        product_bias = None if bias is None else bias.detach().to(plan.dtype)
        product_weight = weight.detach().to(plan.dtype)
        self.head = ChunkedHead(product_weight, product_bias, scale=plan.scale, softcap=plan.softcap)
        sums = weight.new_empty(0, dtype=self.sum_dtype)
        self.weight_gradient = sums.new_empty(weight.shape) if weight_wanted else None
        self.is_first = True  # nothing stands in the weight's gradient yet
        self.bias_gradient = sums.new_zeros(len(weight)) if bias_wanted and bias is not None else None
        self.hidden_gradient: Tensor | None = None
        self.values: list[Tensor] = []
        self.total = sums.new_zeros(())
        every_term = [term for group in plan.groups for term in group.terms if term.coefficients.numel()]
        all_coefficients = [term.coefficients.abs().max() for term in every_term]
        largest = torch.stack(all_coefficients).max() if all_coefficients else self.total
        self.unit = torch.where(largest > 0, largest, 1.0).to(self.sum_dtype)

    def run(self, groups: list[RowGroup], hidden: Sequence[Tensor], *, hidden_wanted: bool) -> None:
        """Values and gradients of all groups, whose states are `hidden`."""
        states = torch.cat([one.detach().to(self.plan.dtype) for one in hidden])  # [R, D]
        gradient = torch.empty(states.shape, dtype=self.sum_dtype, device=states.device) if hidden_wanted else None
        pieces, start = [], 0
        for group, one in zip(groups, hidden, strict=True):
            pieces.append(_Piece(group, start, start + len(one), self.sum_dtype, self.unit))
            start += len(one)
        rows_per_chunk = max(1, self.plan.chunk_bytes // (len(self.head.weight) * self.sum_dtype.itemsize))
        for start in range(0, len(states), rows_per_chunk):
            stop = min(start + rows_per_chunk, len(states))
            logits = self.head.logits(states[start:stop])
            slope = None if self.plan.softcap is None else 1 - (logits / self.plan.softcap).square()
            for piece in pieces:
                first, last = max(start, piece.start), min(stop, piece.stop)
                if first < last:
                    piece.evaluate(logits[first - start : last - start], first, last)
            if slope is not None:
                logits.mul_(slope)
            self._multiply_back(logits, states[start:stop], None if gradient is None else gradient[start:stop])
        self.hidden_gradient = gradient
        for piece in pieces:
            self.total += piece.total()
            self.values += piece.values

    def _multiply_back(self, logits_gradient: Tensor, states: Tensor, hidden_gradient: Tensor | None) -> None:
        """Through the product: into the rows' states and, summed over chunks, into the head."""
        small = logits_gradient.to(self.plan.dtype)
        same = self.plan.dtype == self.sum_dtype
        if hidden_gradient is not None:
            if same:
                torch.mm(small, self.head.weight, out=hidden_gradient)
            else:
                hidden_gradient.copy_(small @ self.head.weight)
        if self.weight_gradient is not None:
            if same and self.is_first:
                torch.mm(small.T, states, out=self.weight_gradient)
            elif same:
                self.weight_gradient.addmm_(small.T, states)
            elif self.is_first:
                self.weight_gradient.copy_(small.T @ states)
            else:
                self.weight_gradient += small.T @ states
            self.is_first = False
        if self.bias_gradient is not None:
            self.bias_gradient += logits_gradient.sum(0)

    def gradients(self) -> list[Tensor | None]:
        """Gradients of weight, bias and the states of all groups."""
        factor = self.unit * self.plan.scale
        if self.is_first and self.weight_gradient is not None:
            self.weight_gradient.zero_()
        found = [self.weight_gradient, self.bias_gradient, self.hidden_gradient]
        return [gradient if gradient is None else gradient.mul_(factor) for gradient in found]


class _Piece:
    """One group at its place [start, stop) among the rows of all, and what its terms gave."""

    def __init__(self, group: RowGroup, start: int, stop: int, dtype: torch.dtype, unit: Tensor) -> None:
        self.terms, self.start, self.stop = group.terms, start, stop
        self.offset = group.first_row - start
        own = slice(group.first_row, group.first_row + stop - start)
        self.coefficients = [term.coefficients[own].to(dtype) for term in group.terms]
        self.relative = [(one / unit)[:, None] for one in self.coefficients]
        self.values = [torch.zeros_like(one) for one in self.coefficients]

    def evaluate(self, logits: Tensor, start: int, stop: int) -> None:
        """Values of rows [start, stop); their weighted gradient replaces the logits."""
        for term in self.terms:
            term.begin(start + self.offset, stop + self.offset)
        for first, last in _blocks(start, stop, logits.shape[1] * logits.itemsize, logits.device.type):
            self._evaluate(logits[first - start : last - start], first, last)

    def _evaluate(self, block: Tensor, first: int, last: int) -> None:
        """The same for rows that stay in a cache."""
        here = slice(first - self.start, last - self.start)
        found = []
        for term, share, kept in zip(self.terms, self.relative, self.values, strict=True):
            kept[here], gradient = term.evaluate(block, first + self.offset, last + self.offset)
            found.append((term.columns, gradient, share[here]))
        found.sort(key=lambda one: one[0] is not None)  # those of all columns first
        for place, (columns, gradient, share) in enumerate(found):
            if columns is None and place == 0:
                torch.mul(gradient, share, out=block)
            elif columns is None:
                block.addcmul_(gradient, share)
            else:
                into = block if place else block.zero_()
                into.index_add_(1, columns, gradient.mul_(share))

    def total(self) -> Tensor:
        """Sum of coefficient x value."""
        sums = [(one * value).sum() for one, value in zip(self.coefficients, self.values, strict=True)]
        return sum(sums[1:], start=sums[0])


def _blocks(start: int, stop: int, row_bytes: int, device: str) -> list[tuple[int, int]]:
    """Rows [start, stop) cut into blocks that fit a cache; one block where the device has no use for that."""
    size = max(1, BLOCK_BYTES[device] // row_bytes) if device in BLOCK_BYTES else stop - start
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def product_dtype(states: Tensor) -> torch.dtype:
    """The dtype of a head's products: autocast's where it is on, else that of the model's own last states."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
