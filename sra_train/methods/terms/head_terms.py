"""What one pass over the student's head gives: cross entropy of the labels, and one teacher's divergences beside it.

Where a distribution is taught at a token of the student's, that token's row serves its label too: one product for both.
The centre of mass of a span of one token is that token, so only longer spans have rows of their own. A second teacher
brings its rows alone, and reads the head's rows of its own shared vocabulary alone.

Shapes: B examples, N student tokens, S taught rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sra_train.contract import AlignedRows, Batch, LabelRows, SpanRows
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm, LabelledRows, rows_of
from sra_train.methods.terms.head_loss import HeadTerm, RowGroup, head_losses, product_dtype

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead


@dataclass(frozen=True)
class TaughtRows:
    """A teacher's distributions at spans or at rows that stand beside each other."""

    term: HeadTerm
    rows: SpanRows | AlignedRows
    other_labels: LabelRows  # the batch's label rows without those at these positions
    pooled: Tensor | None  # [S', D], the states taught in the last S' rows; in the others, those of spans' last tokens
    ids: Tensor | None  # the student's ids that the head is cut to; None for the whole head, as labels need it


@dataclass(frozen=True)
class HeadTerms:
    """What was found: the differentiable sum of coefficient x value, and the values."""

    total: Tensor  # scalar
    ce_sum: Tensor | None  # [B] nats; None where no cross entropy was asked for
    taught: Tensor | None  # [S]; None where nothing is taught


def head_terms(
    head: OutputHead, hidden: Tensor, batch: Batch, *, ce_factor: float | None, taught: TaughtRows | None
) -> HeadTerms:
    """One pass over the head.

    Args:
        head: the student's.
        hidden: [B, N, D], its last states.
        batch: whose labels count.
        ce_factor: coefficient of each label's cross entropy; None to leave it out.
        taught: what a teacher teaches, if anything.
    """
    groups: list[RowGroup] = []
    labelled: list[tuple[LabelledRows, CrossEntropyTerm]] = []

    def label(rows: LabelRows | SpanRows | AlignedRows) -> list[HeadTerm]:
        """The cross entropy of `rows`, if it is asked for."""
        if ce_factor is None:
            return []
        own = LabelledRows(rows, batch)
        labelled.append((own, own.term(ce_factor)))
        return [labelled[-1][1]]

    if taught is not None:
        assert ce_factor is None or taught.ids is None
        head = head if taught.ids is None else head.restrict(taught.ids)
        labels = label(taught.rows)
        states = rows_of(hidden, taught.rows.student_positions)
        longer = states[len(states) :] if taught.pooled is None else taught.pooled
        num_at_tokens = len(states) - len(longer)
        groups.append(RowGroup(states[:num_at_tokens], [taught.term, *labels]))
        groups.append(RowGroup(longer, [taught.term], first_row=num_at_tokens))
        if labels:
            groups.append(RowGroup(states[num_at_tokens:], labels, first_row=num_at_tokens))
    if ce_factor is not None:
        rows = batch.label_rows if taught is None else taught.other_labels
        groups.append(RowGroup(rows_of(hidden, rows.positions), label(rows)))
    total, values = head_losses(head, groups, dtype=product_dtype(hidden))

    def of(term: HeadTerm) -> Tensor:
        """The values of all rows of a term."""
        every = [
            value
            for group, found in zip(groups, values, strict=True)
            for one, value in zip(group.terms, found, strict=True)
            if one is term
        ]
        return torch.cat(every)

    sums = [rows.sums(of(term)) for rows, term in labelled]
    return HeadTerms(
        total=total,
        ce_sum=sum(sums[1:], start=sums[0]) if sums else None,
        taught=None if taught is None else of(taught.term),
    )
