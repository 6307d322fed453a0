"""What methods share that compare student and teacher at rows laid beside each other (`contract.AlignedRows`).

Shapes: B examples, S rows of the batch, D_t the teacher's hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sra_data.errors import ShardError
from sra_train.contract import AlignedRows, Batch, StepTotals, TeacherBatch
from sra_train.methods.terms.cross_entropy import sum_per_example

Reduction = Literal["token", "mean", "sum"]


def per_label(reduction: Reduction, *names: str) -> frozenset[str]:
    """Which of the terms are divided by the labels of the step and not by its examples (`teachers.together`)."""
    return frozenset(names) if reduction == "token" else frozenset()


def divisor(reduction: Reduction, totals: StepTotals) -> float:
    """What an example's value is divided by in the loss of the step."""
    return max(totals.labels if reduction == "token" else totals.examples, 1)


def item_weights(example: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
    """How much each item (a row, a chunk) counts within its example: 1, or 1 over the items of the example.

    Args:
        example: [S] of each item.
        batch: Which examples there are.
        reduction: Over an example's items.

    Returns:
        [S].
    """
    ones = torch.ones_like(example, dtype=batch.weight.dtype)
    if reduction != "mean":
        return ones
    return ones / sum_per_example(ones, example, len(batch.weight))[example]


def item_counts(example: Tensor, batch: Batch, pages: TeacherBatch, *, name: str, single: str) -> dict[str, Tensor]:
    """Events of a micro-batch: how many items, examples with none of them, rows that the teacher lacks.

    Args:
        example: [S] of each item.
        batch: Which examples there are.
        pages: The teacher's part of it.
        name: Of the items together; single: of one.
    """
    real = batch.weight > 0
    ones = torch.ones_like(example)
    of_example = sum_per_example(ones, example, len(batch.weight))
    return {
        name: ones.sum(),
        f"examples_without_{single}": (real & pages.has_teacher & (of_example == 0)).sum(),
        "rows_without_teacher": (real & ~pages.has_teacher).sum(),
    }


def teacher_states(pages: TeacherBatch, layer: int, rows: AlignedRows, dtype: torch.dtype) -> Tensor:
    """The teacher's states of `layer` at the rows [S, D_t]; raises as `teacher_hidden` does."""
    return teacher_hidden(pages, layer)[rows.example, rows.teacher_positions].to(dtype)


def teacher_hidden(pages: TeacherBatch, layer: int) -> Tensor:
    """The teacher's states of `layer` [B, P, D_t].

    Raises:
        ShardError: If the batch lacks them.
    """
    if layer not in pages.hidden:
        raise ShardError(
            f"teacher {pages.name}: its pages hold no hidden states of layer {layer}, which the method reads; "
            f"run `sra-data cache-teacher --layers {layer}` into a new folder"
        )
    return pages.hidden[layer]
