"""Which positions of both sides predict a label of their own side, and where they stand in tables by example.

For methods that let the tokens of a response attend to those of the other side's (`contract.ResponseRows`). What is a
label is each side's own matter: its response's tokens and the special token that closes them.

A worked example: the student's label rows are 2, 3 of example 0 and 1, 2, 3 of example 1, so its table is 3 wide and
its slots are 0 1 _ | 3 4 5. A teacher that lacks example 0 has slots 3 ... in a table of the same kind.

Legend: B examples, N student tokens, P teacher positions, R label rows of the student, Q of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_train.contract import IGNORED_LABEL, LabelRows, ResponseRows
from sra_train.data.examples import TeacherPart
from sra_train.data.index_rows import Positions, next_labels
from sra_train.data.staging import StagingBuffer


def response_rows(
    parts: Sequence[TeacherPart | None],
    cached: Sequence[NDArray[np.int32]],
    labels: Positions,
    staging: StagingBuffer,
    name: str,
) -> ResponseRows:
    """The rows of a batch.

    Args:
        parts: The teacher's part of every slot, with its side's `ids` and `label_spans`.
        cached: [P] token index of each cached row of the teacher, of every slot.
        labels: [B, N], the student's.
        staging: Where the rows live.
        name: Of the memory in `staging`.
    """
    found = [
        np.zeros((0, 2), np.int64) if part is None else predicting(part, rows)
        for part, rows in zip(parts, cached, strict=True)
    ]
    student_slots, student_width = slots_of((next_labels(labels) != IGNORED_LABEL).sum(1))
    counts = np.array([len(one) for one in found], dtype=np.int64)
    teacher_slots, teacher_width = slots_of(counts)
    rows, example = np.concatenate(found), np.repeat(np.arange(len(found)), counts)
    width = max([1, *(len(one) for one in cached)])  # the pages are padded to it
    fields = {"positions": example * width + rows[:, 0], "example": example, "targets": rows[:, 1]}
    return ResponseRows(
        student_slots=staging.copied(f"{name}.student_slots", student_slots),
        student_width=student_width,
        teacher=LabelRows(
            **{field: staging.copied(f"{name}.teacher.{field}", values) for field, values in fields.items()}
        ),
        teacher_slots=staging.copied(f"{name}.teacher_slots", teacher_slots),
        teacher_width=teacher_width,
    )


def predicting(part: TeacherPart, cached: NDArray[np.int32]) -> Positions:
    """[Q, 2] (cached row, the id behind it) where that id is a label of the teacher's side, in order."""
    ids = part.side.ids.astype(np.int64)
    is_label = np.zeros(len(ids) + 1, dtype=bool)
    for start, stop in part.side.label_spans.tolist():
        is_label[start:stop] = True
    behind = cached.astype(np.int64) + 1
    rows = np.flatnonzero(is_label[np.minimum(behind, len(ids))])
    return np.stack([rows, ids[behind[rows]]], axis=1)


def slots_of(counts: NDArray[np.int64]) -> tuple[Positions, int]:
    """Places in a flattened table [B, width] of rows that stand example by example, and the width.

    Args:
        counts: [B] rows of each example.
    """
    width = max(1, int(counts.max()))  # an axis of length 0 has no maximum
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(counts)) * width, counts) + within, width
