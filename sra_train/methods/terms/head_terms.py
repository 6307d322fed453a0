"""What one pass over the student's head gives: cross entropy of the labels, and one teacher's divergences beside it.

Where a distribution is taught at the student's own tokens, a row that predicts a label too is multiplied with the head
once for both; where it is taught at a centre of mass, the two are groups of their own. A second teacher brings its rows
alone, and reads the head's rows of its own shared vocabulary alone.

Shapes: B examples, N student tokens, S taught rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sra_train.contract import Batch, LabelRows, SpanRows
from sra_train.methods.terms.cross_entropy import LabelledRows, rows_of
from sra_train.methods.terms.head_loss import HeadTerm, RowGroup, head_losses, product_dtype

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead


@dataclass(frozen=True)
class TaughtRows:
    """A teacher's distributions at the spans of a batch."""

    term: HeadTerm
    rows: SpanRows
    other_labels: LabelRows  # the batch's label rows without those at the last tokens of spans
    pooled: Tensor | None  # [S, D], the states that are taught; None: those of the spans' last tokens
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
    labelled: list[LabelledRows] = []  # in the order of their cross entropy terms over all groups
    rows = batch.label_rows
    if taught is not None:
        assert ce_factor is None or taught.ids is None
        terms = [taught.term]
        if taught.pooled is None and ce_factor is not None:
            labelled.append(LabelledRows(taught.rows, batch))
            terms.append(labelled[-1].term(ce_factor))
            rows = taught.other_labels
        states = rows_of(hidden, taught.rows.student_positions) if taught.pooled is None else taught.pooled
        groups.append(RowGroup(states, terms))
        head = head if taught.ids is None else head.restrict(taught.ids)
    if ce_factor is not None:
        labelled.append(LabelledRows(rows, batch))
        groups.append(RowGroup(labelled[-1].states(hidden), [labelled[-1].term(ce_factor)]))
    assert groups, "neither labels nor a teacher"
    total, by_group = head_losses(head, groups, dtype=product_dtype(hidden))
    values = [one for group in by_group for one in group]
    divergences = None if taught is None else values.pop(0)
    sums = [one.sums(losses) for one, losses in zip(labelled, values, strict=True)]
    return HeadTerms(total, sum(sums[1:], start=sums[0]) if sums else None, divergences)
