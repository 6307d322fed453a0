"""All that is known of the rows before a data file is opened, from the index files alone.

From it come the order of training, the totals every loss term is divided by, and which rows share a micro-batch.

Which rows are trained on is decided by the student's side alone, so the order is the same for every teacher and every
method: a row that a teacher lacks keeps its cross entropy and what the other teachers say.

Legend: R rows of the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sra_train.contract import StepTotals
from sra_train.data.order import NO_ROW
from sra_train.data.sources import Sources


@dataclass(frozen=True, eq=False)
class RowTable:
    """What the index files say of every row, as columns."""

    row_groups: NDArray[np.int64]  # [R] of the corpus, counted through all parts
    is_train: NDArray[np.bool_]  # [R] split train, read by the student, something to learn
    is_dev: NDArray[np.bool_]  # [R] likewise
    num_tokens: NDArray[np.int64]  # [R] the student's
    num_labels: NDArray[np.int64]  # [R]
    num_spans: NDArray[np.int64]  # [R] of all teachers together
    skipped: dict[str, int] = field(default_factory=dict)  # rows left out, by status
    lacking: dict[str, int] = field(default_factory=dict)  # teacher -> rows to train on that it lacks

    @classmethod
    def read(cls, sources: Sources) -> RowTable:
        """From the indexes of the corpus, the student's side and the teachers' folders."""
        corpus, side = sources.shards.corpus.index, sources.side.index
        starts, num_labels = corpus.group_starts, side.num_labels.astype(np.int64)
        usable = side.is_ok & (num_labels > 0)
        skipped = {status: count for status, count in side.status_counts().items() if status != "ok"}
        without_labels = int((side.is_ok & (num_labels == 0)).sum())
        if without_labels:
            skipped["skipped:no_label"] = without_labels
        is_train = usable & corpus.in_split("train")
        lacking = {one.name: int((is_train & ~one.has_row).sum()) for one in sources.teachers}
        return cls(
            row_groups=np.repeat(np.arange(len(starts) - 1), np.diff(starts)),
            is_train=is_train,
            is_dev=usable & corpus.in_split("dev"),
            num_tokens=side.num_tokens.astype(np.int64),
            num_labels=num_labels,
            num_spans=sum((one.num_spans for one in sources.teachers), start=np.zeros(len(side), np.int64)),
            skipped=skipped,
            lacking={name: count for name, count in lacking.items() if count},
        )

    def totals(self, rows: NDArray[np.int64]) -> StepTotals:
        """What the terms of one global step over `rows` are divided by; `NO_ROW` counts nothing."""
        real = rows[rows != NO_ROW]
        return StepTotals(labels=float(self.num_labels[real].sum()), examples=float(len(real)))

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Student tokens of each of `rows`, 0 for `NO_ROW`."""
        return np.where(rows == NO_ROW, 0, self.num_tokens[rows])
