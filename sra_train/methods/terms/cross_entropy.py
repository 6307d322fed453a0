"""Cross entropy of the labelled tokens: only their logits are ever formed.

Shapes: B examples, N tokens, R labelled rows, C columns of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_train.contract import IGNORED_LABEL, AlignedRows, Batch, LabelRows, SpanRows
from sra_train.methods.terms.divergence import softmax_and_log_sum
from sra_train.methods.terms.head_loss import HeadTerm


class CrossEntropyTerm(HeadTerm):
    """-log softmax(logits)[target] in nats, one per row."""

    def __init__(self, targets: Tensor, coefficients: Tensor) -> None:
        """`targets` [R] are ids."""
        self.targets = targets
        self.coefficients = coefficients

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        targets = self.targets[start:stop, None]
        probs, log_sum = softmax_and_log_sum(logits)
        losses = log_sum - logits.gather(1, targets)[:, 0]
        return losses, probs.scatter_add_(1, targets, -torch.ones_like(losses)[:, None])


class LabelledRows:
    """Rows of the head whose cross entropy counts: labels of a batch, or rows where a teacher teaches too."""

    def __init__(self, rows: LabelRows | SpanRows | AlignedRows, batch: Batch) -> None:
        """Of rows where a teacher teaches, those that predict no label are computed and count nothing."""
        self.batch = batch
        self.example = rows.example
        if isinstance(rows, LabelRows):
            self.targets, self.predicts = rows.targets, None
        else:
            self.predicts = rows.targets != IGNORED_LABEL
            self.targets = torch.where(self.predicts, rows.targets, 0)

    def term(self, factor: float) -> CrossEntropyTerm:
        """The term: `factor` x the example's weight is each row's coefficient."""
        return CrossEntropyTerm(self.targets, self._counting(self.batch.weight[self.example] * factor))

    def sums(self, losses: Tensor) -> Tensor:
        """Summed losses of each example [B]; `losses` [R]."""
        return sum_per_example(self._counting(losses), self.example, len(self.batch.weight))

    def _counting(self, values: Tensor) -> Tensor:
        return values if self.predicts is None else torch.where(self.predicts, values, 0.0)


def count_labels(batch: Batch) -> Tensor:
    """Labelled tokens of each example [B], as the cross entropy counts them."""
    example = batch.label_rows.example
    return sum_per_example(torch.ones_like(example), example, len(batch.weight))


def rows_of(states: Tensor, positions: Tensor) -> Tensor:
    """Rows [R, D] of states [B, N, D] at flattened positions [R]."""
    return states.reshape(-1, states.shape[2]).index_select(0, positions)


def sum_per_example(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Add up rows [R] by the example they belong to; [B]."""
    return values.new_zeros(num_examples).index_add_(0, example, values)
