"""Cross entropy of the labelled tokens: only their logits are ever formed.

Shapes: B examples, N tokens, R labelled rows, C columns of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sra_train.contract import IGNORED_LABEL, Batch
from sra_train.methods.terms.head_loss import HeadTerm


class CrossEntropyTerm(HeadTerm):
    """-log softmax(logits)[target] in nats, one per row."""

    def __init__(self, targets: Tensor, coefficients: Tensor) -> None:
        """`targets` [R] are columns of the head as the group reads it."""
        self.targets = targets
        self.coefficients = coefficients

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        targets = self.targets[start:stop, None]
        log_probs = torch.log_softmax(logits, 1)
        losses = -log_probs.gather(1, targets)
        gradient = log_probs.exp_()
        gradient.scatter_add_(1, targets, -torch.ones_like(losses))
        return losses[:, 0], gradient


def next_labels(batch: Batch) -> Tensor:
    """The label each position predicts [B, N]: -100 at the last position and in rows that only fill the batch.

    A label at token 0 has no position before it; nothing predicts it.
    """
    shifted = torch.full_like(batch.labels, IGNORED_LABEL)
    shifted[:, :-1] = batch.labels[:, 1:]
    return torch.where(batch.weight[:, None] > 0, shifted, IGNORED_LABEL)


def count_labels(batch: Batch) -> Tensor:
    """Labelled tokens of each example [B], as the cross entropy counts them."""
    return (next_labels(batch) != IGNORED_LABEL).sum(1)


@dataclass(frozen=True)
class LabelledRows:
    """Positions that predict a label, as rows for the head."""

    positions: Tensor  # [R] index into the flattened [B x N] positions
    example: Tensor  # [R]
    targets: Tensor  # [R] student ids; 0 where nothing is predicted
    predicts: Tensor  # [R] bool

    @classmethod
    def at(cls, batch: Batch, positions: Tensor) -> LabelledRows:
        """The rows at `positions` [R], of which some may predict nothing."""
        labels = next_labels(batch).reshape(-1)[positions]
        predicts = labels != IGNORED_LABEL
        example = positions // batch.labels.shape[1]
        return cls(positions, example, torch.where(predicts, labels, 0), predicts)

    @classmethod
    def all_of(cls, batch: Batch, *, without: Tensor | None = None) -> LabelledRows:
        """Every position that predicts a label, except those in `without` [R']."""
        wanted = next_labels(batch).reshape(-1) != IGNORED_LABEL
        if without is not None:
            wanted[without] = False
        return cls.at(batch, wanted.nonzero()[:, 0])

    def coefficients(self, batch: Batch, factor: float) -> Tensor:
        """`factor` x the example's weight where a label is predicted, else 0. [R]."""
        return torch.where(self.predicts, batch.weight[self.example] * factor, 0.0)

    def states(self, hidden: Tensor) -> Tensor:
        """The rows [R, D] of hidden states [B, N, D]."""
        return hidden.reshape(-1, hidden.shape[2]).index_select(0, self.positions)

    def sums(self, losses: Tensor, batch: Batch) -> Tensor:
        """Summed losses of each example [B]; `losses` [R]."""
        return sum_per_example(torch.where(self.predicts, losses, 0.0), self.example, len(batch.weight))


def sum_per_example(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Add up rows [R] by the example they belong to; [B]."""
    return values.new_zeros(num_examples).index_add_(0, example, values)
