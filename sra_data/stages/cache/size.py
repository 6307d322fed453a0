"""How many bytes a teacher's pages take: one arithmetic for `estimate` and for refusing a disk that is too small.

Values are counted as their codecs make them, before zstd: hidden states and attention are stored so, ids and
log-probabilities come out smaller. So the number is an upper bound, a few percent above what is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ModelError, ShardError
from sra_data.shards.schema import SideRow
from sra_data.shards.store import FolderReader, FolderSchema, Unit, cut_row_groups, is_in_store
from sra_data.stages.cache.examples import ExampleReader
from sra_data.terminal import bytes_in_words

BYTES_OF_DTYPE = {"fp32": 4, "bf16": 2, "fp16": 2}
DISK_ROOM = 1.05
MANY = 1024  # positions over which a column's size per position is taken: packed ids round up once a value
ROW_BYTES = 32  # an example's numbers in its part and in the index, beside its id, which stands in both
VALUE_BYTES = 12  # a value's hash, and the length Parquet writes before it
CHUNK_BYTES = 150  # a column of a row group: page header and its line of the footer


@dataclass(frozen=True)
class PagesSize:
    """Bytes of (a part of) a teacher's folder.

    Attributes:
        num_positions: cached positions; spans, where pages are by span.
        bytes_per_position: their values, before compression.
        bytes_beside: ids, hashes, indexes and footers.
        bytes_of_files: output head and input embeddings.
    """

    num_positions: int
    bytes_per_position: float
    bytes_beside: int = 0
    bytes_of_files: int = 0

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return round(self.num_positions * self.bytes_per_position) + self.bytes_beside + self.bytes_of_files

    def times(self, scale: float) -> PagesSize:
        """So many times the examples; head and embeddings stay."""
        return PagesSize(
            round(scale * self.num_positions),
            self.bytes_per_position,
            round(scale * self.bytes_beside),
            self.bytes_of_files,
        )


def bytes_per_position(schema: FolderSchema) -> float:
    """Bytes of all values of one position, before compression."""
    return sum(column.size(MANY) - column.size(0) for column in schema.columns) / MANY


def pages_size(
    schema: FolderSchema, examples: ExampleReader, units: Sequence[Unit], *, bytes_of_files: int
) -> PagesSize:
    """The size of the pages of some units.

    Args:
        schema: columns of the teacher's parts.
        examples: whose index says how many rows each has.
        units: those to be written.
        bytes_of_files: see `files_size`; 0 where the files are there already.
    """
    index, counts = examples.side.index, examples.num_rows
    num_positions = num_rows = num_groups = 0
    for unit in units:
        rows = slice(unit.start, unit.stop)
        num_positions += int(counts[rows].sum())
        num_rows += unit.stop - unit.start
        num_groups += len(cut_row_groups(counts[rows].tolist()))
    bytes_of_ids = 2 * index.ids.nbytes / max(len(index), 1)
    beside = num_rows * (ROW_BYTES + bytes_of_ids + VALUE_BYTES * len(schema.columns))
    beside += num_groups * CHUNK_BYTES * (len(schema.columns) + len(schema.keys) + 1)
    return PagesSize(num_positions, bytes_per_position(schema), round(beside), bytes_of_files)


def files_size(*, hidden_size: int, vocabulary_size: int, dtype: str, num_ids: int, is_tied: bool) -> int:
    """Bytes of output head and input embeddings.

    Args:
        hidden_size: D.
        vocabulary_size: V, of the head.
        dtype: the teacher's.
        num_ids: ids that occur on the side.
        is_tied: whether the embeddings are the head's rows and are not stored again.
    """
    bytes_of_vector = hidden_size * BYTES_OF_DTYPE[dtype]
    return vocabulary_size * bytes_of_vector + num_ids * (4 + (0 if is_tied else bytes_of_vector))


def refuse_small_disk(folder: Path, size: PagesSize) -> None:
    """Refuse to start what the disk cannot hold; the folder need not be there yet. Stores have no end.

    Raises:
        ShardError: With the bytes needed and free.
    """
    if is_in_store(folder):
        return
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if size.num_bytes * DISK_ROOM > free:
        raise ShardError(
            f"{folder}: the teacher's pages need {bytes_in_words(size.num_bytes)}, the disk has {bytes_in_words(free)} "
            "free; free space, or choose --hidden-dtype int8, fewer --layers or a smaller --top-k"
        )


def ids_that_occur(
    side: FolderReader, units: Sequence[Unit], *, vocabulary_size: int, teacher: str
) -> NDArray[np.int32]:
    """All ids of a side, ascending; read part by part.

    Raises:
        ModelError: If one is beyond the teacher's vocabulary.
    """
    seen = np.zeros(max(vocabulary_size, 1), bool)
    for unit in units:
        rows: list[SideRow] = side.read(range(unit.start, unit.stop), ["ids"])
        for row in rows:
            if len(row.ids) and int(row.ids.max()) >= len(seen):
                raise ModelError(
                    f"teacher {teacher}: its vocabulary has {len(seen)} ids, example {row.id} of {side.section} holds "
                    f"id {int(row.ids.max())}; use the model whose tokenizer the side is of"
                )
            seen[row.ids] = True
    return np.flatnonzero(seen).astype(np.int32)
