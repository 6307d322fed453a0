"""Terms of dual-space distillation: two states read by ONE head, so that their distributions have the same outcomes.

A projector takes one model's states into the other's space, and the head of that space reads both:

    in the student's space   KL( head_S(teacher's state, mapped) || head_S(student's state) )
    in the teacher's space   KL( head_T(teacher's state) || head_T(student's state, mapped) )

Whoever is only looked at is frozen: the student's head where it reads what was mapped, the teacher's always.

Shapes: R rows, r rows of a block, V the vocabulary of the space, D its hidden size, B examples, W columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sra_data.models.output_head import OutputHead
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm
from sra_train.methods.terms.distributions import SharedVocabularyTerm
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.head_loss import RowGroup, head_losses
from sra_train.methods.terms.teacher_head import chunked

TaughtWhere = Literal["right", "all"]


class MappedTeacherTerm(SharedVocabularyTerm):
    """In the student's space: the student's distribution drawn to that of the teacher's mapped states.

    With where=right only those rows count in which the mapped state's likeliest id is the row's target: before the
    projector has learnt anything, it says nothing worth learning. `is_right` [R] says which after the pass.
    """

    def __init__(
        self,
        mapped: Tensor,
        frozen: OutputHead,
        coefficients: Tensor,
        *,
        targets: Tensor,
        where: TaughtWhere,
        temperature: float,
        kind: Divergence,
    ) -> None:
        """Take the rows.

        Args:
            mapped: [R, D], the teacher's states in the student's space; no gradient goes there.
            frozen: The student's head in the dtype of the product, without gradient.
            coefficients: [R].
            targets: [R] ids of the student; -1 for a row that does not count.
            where: Which rows count.
            temperature: Of both distributions.
            kind: Which divergence.
        """
        super().__init__(
            mapped.detach(), chunked(frozen), coefficients, columns=None, temperature=temperature, kind=kind
        )
        self.targets, self.where = targets, where
        self.is_right = torch.zeros_like(targets, dtype=torch.bool)

    def begin(self, start: int, stop: int) -> None:
        super().begin(start, stop)
        self.is_right[start:stop] = self.teacher_logits.argmax(1) == self.targets[start:stop]

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        counts = self.is_right if self.where == "right" else self.targets >= 0
        return masked(super().evaluate(logits, start, stop), counts[start:stop])


def masked(found: tuple[Tensor, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
    """Values [r] and gradient [r, V], 0 in rows that do not count; where, for 0 x infinity is not 0."""
    values, gradient = found
    return torch.where(counts, values, 0.0), gradient.masked_fill_(~counts[:, None], 0.0)


def cross_entropy_of_mapped(
    mapped: Tensor, frozen: OutputHead, targets: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """-log p(target) of states in the student's space; what teaches the projector, for the head is frozen.

    Args:
        mapped: [R, D], with gradient.
        frozen: The student's head in the dtype of the product, without gradient.
        targets: [R] ids of the student; -1 for a row that does not count.
        coefficients: [R].

    Returns:
        The differentiable sum of coefficient x value, and the values [R].
    """
    counts = targets >= 0
    term = CrossEntropyTerm(targets.clamp_min(0), torch.where(counts, coefficients, 0.0))
    total, [[values]] = head_losses(frozen, [RowGroup(mapped, [term])], dtype=frozen.weight.dtype)
    return total, torch.where(counts, values, 0.0)


def over_deviation(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Rows [R, W] over the standard deviation of all numbers in their own example's rows.

    Of the example, not of the batch: what an example is worth must not depend on its neighbours.
    """
    width = values.shape[1]

    def summed(rows: Tensor) -> Tensor:
        return rows.new_zeros(num_examples).index_add_(0, example, rows)

    count = summed(torch.full_like(values[:, 0], width))  # [B]
    mean = summed(values.sum(1)) / count.clamp_min(1)
    squares = summed((values - mean[example, None]).square().sum(1))
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    return values / torch.where(deviation > 0, deviation, 1.0)[example, None]
