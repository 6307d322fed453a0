"""The order of training: pure functions of the seed, the epoch, the corpus root and which rows are trainable.

Iterator state is where resume goes wrong, so there is none: `epoch_order` says the order of a whole epoch at once, a
global batch is a slice of it, a rank's share a slice of that, and the state of the stream is ONE integer, the number
of the global step. World size, accumulation, workers and the number of resumes are no input and so change nothing.

Rows are shuffled in two stages, because a row group is what a disk reads at once: the row groups are permuted, then
rows are shuffled inside windows of a few permuted groups. Keys are drawn for EVERY row of the corpus and trainable
rows are picked afterwards: leaving out a row never moves another.

Only the raw 64-bit output of a counter-based generator is used, which numpy keeps stable for ever; `permutation` and
`shuffle` may change between its versions.

Refuses: fewer trainable rows than one batch (by `OrderPlan`'s maker, the caller sees it as a `TrainingError`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sra_data.errors import TrainingError

NO_ROW = -1  # a slot of the batch that no row fills; it gets weight 0


def random_keys(purpose: str, *, seed: int, epoch: int, corpus_root: str, count: int) -> np.ndarray:
    """`count` random uint64 keys that depend on the arguments alone, on any machine and numpy version."""
    digest = hashlib.sha256(f"{purpose}\n{seed}\n{epoch}\n{corpus_root}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")).random_raw(count)


def epoch_order(
    row_groups: np.ndarray, trainable: np.ndarray, *, seed: int, epoch: int, corpus_root: str, window: int
) -> np.ndarray:
    """The order in which one epoch reads the trainable rows.

    Args:
        row_groups: [R] number of the row group each corpus row stands in, counted through all parts.
        trainable: [R] bool, whether the row is read at all.
        seed: Of the run.
        epoch: From 0.
        corpus_root: Seal of the corpus folder.
        window: Row groups that are shuffled together.

    Returns:
        int64 row numbers, each trainable row exactly once.
    """
    assert window >= 1
    assert row_groups.shape == trainable.shape
    num_groups = int(row_groups.max()) + 1 if len(row_groups) else 0
    group_keys = random_keys("row groups", seed=seed, epoch=epoch, corpus_root=corpus_root, count=num_groups)
    place = np.empty(num_groups, dtype=np.int64)
    place[np.argsort(group_keys, kind="stable")] = np.arange(num_groups)
    row_keys = random_keys("rows", seed=seed, epoch=epoch, corpus_root=corpus_root, count=len(row_groups))
    # lexsort reads its keys from the last to the first: by window, then by random key, ties by row number
    rows = np.flatnonzero(trainable)
    return rows[np.lexsort((row_keys[rows], place[row_groups[rows]] // window))]


@dataclass(frozen=True)
class Place:
    """Where a global step stands."""

    step: int
    epoch: int
    batch: int  # number of the batch inside the epoch

    @property
    def starts_epoch(self) -> bool:
        return self.batch == 0


class OrderPlan:
    """The whole stream of global batches of a run; hold it anywhere, it has no state.

    Args:
        row_groups: [R] row group of each corpus row, counted through all parts.
        trainable: [R] bool.
        seed, corpus_root, window: As in `epoch_order`.
        batch_size: G, rows of a global batch.

    Raises:
        TrainingError: If there are fewer trainable rows than one batch.
    """

    def __init__(
        self,
        *,
        row_groups: np.ndarray,
        trainable: np.ndarray,
        seed: int,
        corpus_root: str,
        window: int,
        batch_size: int,
    ) -> None:
        self.row_groups = np.asarray(row_groups, dtype=np.int64)
        self.trainable = np.asarray(trainable, dtype=bool)
        self.seed = seed
        self.corpus_root = corpus_root
        self.window = window
        self.batch_size = batch_size
        self.num_rows = int(self.trainable.sum())
        if self.num_rows < batch_size:
            raise TrainingError(
                f"training.batch_size={batch_size}: the shards hold {self.num_rows} examples to train on, fewer than"
                f" one batch; set training.batch_size to at most {max(self.num_rows, 1)} or align more data"
            )
        self.steps_per_epoch = math.ceil(self.num_rows / batch_size)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return epoch_order(
            self.row_groups,
            self.trainable,
            seed=self.seed,
            epoch=epoch,
            corpus_root=self.corpus_root,
            window=self.window,
        )

    @property
    def rows_of_window(self) -> int:
        """Rows that are shuffled together, on average: what a reader has to have at hand."""
        num_groups = len(np.unique(self.row_groups[self.trainable]))
        return math.ceil(self.num_rows * min(self.window / max(num_groups, 1), 1))

    def place(self, step: int) -> Place:
        """Epoch and batch of global step `step`, both from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return Place(step=step, epoch=epoch, batch=batch)

    def global_batch(self, step: int) -> np.ndarray:
        """[G] row numbers of global step `step`; `NO_ROW` fills up the last batch of an epoch."""
        place = self.place(step)
        rows = self._order(place.epoch)[place.batch * self.batch_size : (place.batch + 1) * self.batch_size]
        return pad_rows(rows, self.batch_size)


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows` filled up to `size` with `NO_ROW`."""
    return np.concatenate([rows, np.full(size - len(rows), NO_ROW, dtype=np.int64)])
