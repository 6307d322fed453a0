"""From rows on disk to a rank's micro-batches: the one place where order, reader and collate meet.

`training_stream` yields the micro-batches of one rank from any step on; its iterator runs in the prefetch thread. Where
the shards are in a store, another thread fetches what the next steps need (ahead.py).

Legend: G global batch, b micro-batch of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from sra_data.shards.store import cache_bytes
from sra_train.contract import Batch, StepTotals
from sra_train.data.ahead import fetching_ahead
from sra_train.data.collate import collate
from sra_train.data.examples import ExampleParts
from sra_train.data.micro_batches import TokenBudget, plan_micro_batches
from sra_train.data.order import NO_ROW, OrderPlan
from sra_train.data.reader import RowReader
from sra_train.data.staging import StagingBuffer, StagingPool
from sra_train.data.table import RowTable
from sra_train.data.text import ResponseText, response_text


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
    text: ResponseText | None = None  # where bits per byte are wanted

    @property
    def shape(self) -> tuple[int, int]:
        """Examples, and tokens of the longest."""
        rows, tokens = self.batch.input_ids.shape
        return rows, tokens


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
        read: Row numbers -> rows.
        table: The index.
        pool: Of staging buffers.
    """

    def __init__(self, *, read: RowReader, table: RowTable, pool: StagingPool) -> None:
        self.read = read
        self.table = table
        self.pool = pool

    def fetching_ahead(
        self, batches: Iterator[np.ndarray], *, most_rows: int, with_text: bool = False
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Fetch the rows of `batches` ahead of their reading; see ahead.py."""

        def fetch(rows: np.ndarray) -> int:
            return self.read.fetch(rows[rows != NO_ROW].astype(np.int64), with_text=with_text)

        needed = None if self.read.is_here else fetch
        return fetching_ahead(needed, batches, most_rows=most_rows, cache_bytes=cache_bytes())

    def make(
        self, rows: np.ndarray, *, step: int, index: int, is_last: bool, totals: StepTotals, with_text: bool = False
    ) -> MicroBatch:
        """One micro-batch of `rows` [b], `NO_ROW` for empty slots."""
        real = [int(row) for row in rows if row != NO_ROW]
        found = dict(zip(real, self.read(real, with_text=with_text), strict=True)) if real else {}
        examples: list[ExampleParts | None] = [found.get(int(row)) for row in rows]
        staging = self.pool.take()
        batch = collate(examples, forms=self.read.forms, staging=staging)
        return MicroBatch(
            step=step,
            index=index,
            is_last=is_last,
            batch=batch,
            totals=totals,
            num_tokens=int(self.table.num_tokens[real].sum()),
            num_spans=int(self.table.num_spans[real].sum()),
            staging=staging,
            text=response_text(examples, batch, staging) if with_text else None,
        )


def training_stream(maker: BatchMaker, plan: OrderPlan, share: Share, *, start: int, stop: int) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the global steps [start, stop)."""

    def pieces_of(rows: np.ndarray) -> list[np.ndarray]:
        return share.pieces(rows, maker.table.lengths(rows))

    batches = (np.concatenate(pieces_of(plan.global_batch(step))) for step in range(start, stop))
    most_rows = plan.rows_of_window // share.world_size + plan.batch_size
    with maker.fetching_ahead(batches, most_rows=most_rows) as reached:
        for step in range(start, stop):
            reached(step - start)
            rows = plan.global_batch(step)
            totals = maker.table.totals(rows)
            pieces = pieces_of(rows)
            for index, piece in enumerate(pieces):
                yield maker.make(piece, step=step, index=index, is_last=index == len(pieces) - 1, totals=totals)


def development_stream(maker: BatchMaker, share: Share) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the whole development split, the largest first, with their text.

    Every rank yields equally many, and the totals are those of the whole split: sums over all of them are the losses.
    """
    rows = np.flatnonzero(maker.table.is_dev)
    totals = maker.table.totals(rows)
    pieces = share.pieces(rows, maker.table.lengths(rows))
    with maker.fetching_ahead(iter(pieces), most_rows=len(rows), with_text=True) as reached:
        for index, piece in enumerate(pieces):
            reached(index)
            is_last = index == len(pieces) - 1
            yield maker.make(piece, step=0, index=index, is_last=is_last, totals=totals, with_text=True)
