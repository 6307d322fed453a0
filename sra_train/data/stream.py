"""From rows on disk to a rank's micro-batches: the one place where order, reader and collate meet.

`RowTable` is all that is known of the corpus before a data file is opened: from it come the order, the totals every
loss term is divided by, and which rows share a micro-batch. `TrainingStream` yields the micro-batches of one rank from
any step on; its iterator runs in the prefetch thread.

Legend: R corpus rows, G global batch, b micro-batch of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sra_train.contract import Batch, CacheNeeds, StepTotals
from sra_train.data.collate import ExampleRows, TextBytes, collate, filler, text_bytes
from sra_train.data.micro_batches import TokenBudget, plan_micro_batches
from sra_train.data.order import NO_ROW, OrderPlan
from sra_train.data.staging import StagingBuffer, StagingPool

ReadRows = Callable[[Sequence[int]], list[ExampleRows]]


@dataclass(frozen=True)
class RowTable:
    """What the index files say of every corpus row, as columns."""

    row_groups: np.ndarray  # [R] int64, counted through all parts
    is_train: np.ndarray  # [R] bool: split train, ok on both sides, something to learn
    is_dev: np.ndarray  # [R] bool, likewise
    num_tokens: np.ndarray  # [R] int64, the student's
    num_labels: np.ndarray  # [R] int64
    num_spans: np.ndarray  # [R] int64
    skipped: dict[str, int]  # rows left out, by status

    def totals(self, rows: np.ndarray) -> StepTotals:
        """What the terms of one global step over `rows` are divided by; `NO_ROW` counts nothing."""
        real = rows[rows != NO_ROW]
        return StepTotals(labels=float(self.num_labels[real].sum()), examples=float(len(real)))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Student tokens of each of `rows`, 0 for `NO_ROW`."""
        return np.where(rows == NO_ROW, 0, self.num_tokens[rows])


@dataclass
class MicroBatch:
    """What one rank runs at once."""

    step: int  # global step it belongs to, from 0
    index: int  # which micro-batch of the step
    is_last: bool  # of its step
    batch: Batch
    totals: StepTotals
    num_tokens: int  # the student's, without padding
    num_spans: int
    staging: StagingBuffer
    text: TextBytes | None = None  # where bits per byte are wanted


@dataclass(frozen=True)
class Share:
    """Which part of every global batch this process runs."""

    rank: int
    world_size: int
    budget: TokenBudget  # of each of its micro-batches

    def pieces(self, rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """This process's micro-batches of a global batch of `rows` with so many tokens."""
        return plan_micro_batches(rows, lengths, rank=self.rank, world_size=self.world_size, budget=self.budget)


class BatchMaker:
    """Reads rows and collates them into micro-batches.

    Args:
        read: Row numbers -> rows, in the same order.
        needs: Of the method.
        temperatures: Of the cache's log tails.
        table: The index.
        pool: Of staging buffers.
        granularity: Whether the teacher's rows are "token" positions or "span"s.
    """

    def __init__(
        self,
        *,
        read: ReadRows,
        needs: CacheNeeds,
        temperatures: Sequence[float],
        table: RowTable,
        pool: StagingPool,
        granularity: str = "token",
    ) -> None:
        self.read = read
        self.needs = needs
        self.temperatures = temperatures
        self.table = table
        self.pool = pool
        self.granularity = granularity

    def make(
        self, rows: np.ndarray, *, step: int, index: int, is_last: bool, totals: StepTotals, with_text: bool = False
    ) -> MicroBatch:
        """One micro-batch of `rows` [b], `NO_ROW` for empty slots."""
        real = [int(row) for row in rows if row != NO_ROW]
        found = dict(zip(real, self.read(real), strict=True)) if real else {}
        examples: list[ExampleRows | None] = [found.get(int(row)) for row in rows]
        if not real:
            examples[0] = filler(self.read([self._some_row()])[0])
        staging = self.pool.take()
        batch = collate(
            examples,
            needs=self.needs,
            temperatures=self.temperatures,
            staging=staging,
            granularity=self.granularity,
        )
        return MicroBatch(
            step=step,
            index=index,
            is_last=is_last,
            batch=batch,
            totals=totals,
            num_tokens=int(self.table.num_tokens[real].sum()),
            num_spans=int(self.table.num_spans[real].sum()),
            staging=staging,
            text=text_bytes(examples, batch.input_ids.shape[1]) if with_text else None,
        )

    def _some_row(self) -> int:
        """A row that can stand in where a rank has none: the shortest, so that it costs little."""
        usable = np.flatnonzero(self.table.is_train | self.table.is_dev)
        return int(usable[np.argmin(self.table.num_tokens[usable])])


def training_stream(maker: BatchMaker, plan: OrderPlan, share: Share, *, start: int, stop: int) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the global steps [start, stop)."""
    for step in range(start, stop):
        rows = plan.global_batch(step)
        totals = maker.table.totals(rows)
        pieces = share.pieces(rows, maker.table.lengths(rows))
        for index, piece in enumerate(pieces):
            yield maker.make(piece, step=step, index=index, is_last=index == len(pieces) - 1, totals=totals)


def development_stream(maker: BatchMaker, share: Share) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the whole development split, the largest first, with their text.

    Every rank yields equally many, and the totals are those of the whole split: sums over all of them are the losses.
    """
    rows = np.flatnonzero(maker.table.is_dev)
    totals = maker.table.totals(rows)
    pieces = share.pieces(rows, maker.table.lengths(rows))
    for index, piece in enumerate(pieces):
        yield maker.make(piece, step=0, index=index, is_last=index == len(pieces) - 1, totals=totals, with_text=True)
