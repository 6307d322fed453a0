"""Which positions of a batch are read, as rows of indices: labels, and the last tokens of spans.

Rows are in the order of examples and, within one, of positions or spans; spans of one student token come before the
longer ones.

Legend: B examples, N student tokens, R rows, S spans of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_train.contract import IGNORED_LABEL, LabelRows, SpanRows
from sra_train.data.staging import StagingBuffer

Positions = NDArray[np.int64]


def next_labels(labels: Positions) -> Positions:
    """The label each position predicts [B, N]; IGNORED_LABEL at the last one.

    A label at token 0 has no position before it; nothing predicts it.
    """
    shifted = np.full_like(labels, IGNORED_LABEL)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def label_rows(name: str, labels: Positions, staging: StagingBuffer, *, without: Positions | None = None) -> LabelRows:
    """The positions that predict a label.

    Args:
        name: of the memory in `staging`.
        labels: [B, N].
        staging: Where the rows live.
        without: [S] flattened positions that are left out.
    """
    targets = next_labels(labels).reshape(-1)
    wanted = targets != IGNORED_LABEL
    if without is not None:
        wanted[without] = False
    return gathered(name, np.flatnonzero(wanted), targets, labels.shape[1], staging)


def gathered(name: str, positions: Positions, targets: Positions, width: int, staging: StagingBuffer) -> LabelRows:
    """Rows at flattened `positions` [R]; `targets` [B x N] is what each position of the batch predicts."""
    return LabelRows(
        positions=staging.copied(f"{name}.positions", positions),
        example=staging.copied(f"{name}.example", positions // width),
        targets=staging.copied(f"{name}.targets", targets[positions]),
    )


def span_rows(
    name: str,
    *,
    student: Sequence[NDArray[np.integer]],
    teacher: Sequence[NDArray[np.integer]],
    labels: Positions,
    staging: StagingBuffer,
) -> SpanRows:
    """The spans of a batch.

    Args:
        name: of the memory in `staging`.
        student: [K_b, 2] of each example, in tokens.
        teacher: [K_b, 2] of each example, in rows of the pages.
        labels: [B, N].
        staging: Where the rows live.
    """
    counts = np.array([len(one) for one in student], dtype=np.int64)
    tokens, rows = (np.concatenate(side).astype(np.int64).reshape(-1, 2) for side in (student, teacher))
    is_single = tokens[:, 1] - tokens[:, 0] == 1
    order = np.argsort(~is_single, kind="stable")
    example = np.repeat(np.arange(len(counts)), counts)[order]
    span = (np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts))[order]
    positions = example * labels.shape[1] + tokens[order, 1] - 1
    found = {
        "example": example,
        "span": span,
        "student_positions": positions,
        "teacher_positions": rows[order, 1] - 1,
        "targets": next_labels(labels).reshape(-1)[positions],
    }
    copied = {field: staging.copied(f"{name}.{field}", values) for field, values in found.items()}
    return SpanRows(num_single=int(is_single.sum()), **copied)
