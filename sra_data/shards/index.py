"""The index of a folder: its key columns and row hashes in one small file, so that a run is planned from it alone.

Some 40 bytes a row in memory beside the ids; ids stay in Arrow's buffers, words (split, status) are codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sra_data.errors import ShardError, one_line
from sra_data.shards.durable import publish, sha256_of, staged
from sra_data.shards.kinds import KEYS
from sra_data.shards.manifest import Receipt
from sra_data.shards.schema import OK
from sra_data.shards.stores.mirror import mirror_of

INDEX = "index.parquet"
ROWS_PER_GROUP = 65_536
REMEDY = "run the command that makes this folder again: with all parts there, it only writes the index"
INDEX_COLUMNS = {"part": pa.int32(), "row_group": pa.int32(), "row_hash": pa.uint64()}
CODED = ["part", "row_group", "split", "status"]  # by a dictionary


@dataclass(frozen=True, eq=False)
class Index:
    """Every row of a folder, in order; row numbers are positions in these arrays.

    Attributes:
        kind: "corpus", "side", "alignment" or "teacher".
        ids: the example ids, an Arrow string array; see `id_of`.
        numbers: the other columns. int32 [rows]: num_bytes (corpus); num_tokens, num_positions and num_labels (side);
            num_spans (alignment); num_positions (teacher); part and row_group (number within the part) in all.
            row_hash, uint64 [rows].
        words: split and status as (codes int32 [rows], names).
    """

    kind: str
    ids: pa.Array
    numbers: dict[str, NDArray[Any]]
    words: dict[str, tuple[NDArray[np.int32], list[str]]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getattr__(self, name: str) -> NDArray[Any]:
        """The number columns by name: ``index.num_spans``."""
        if name in self.__dict__.get("numbers", {}):
            return self.__dict__["numbers"][name]
        raise AttributeError(f"an index of {self.__dict__.get('kind')} has no {name}")

    def id_of(self, row: int) -> str:
        """The example id of a row."""
        return self.ids[int(row)].as_py()

    def row_of(self, example_id: str) -> int:
        """The row of an example id.

        Raises:
            ShardError: If there is none.
        """
        row = pc.index(self.ids, pa.scalar(example_id, self.ids.type)).as_py()
        if row < 0:
            raise ShardError(f"example {example_id}: not in these shards; `id` is a column of {INDEX}")
        return row

    @cached_property
    def is_ok(self) -> NDArray[np.bool_]:
        """Rows whose status is "ok": bool [rows] (sides and alignments)."""
        return self._is("status", OK)

    def in_split(self, name: str) -> NDArray[np.bool_]:
        """Rows of a split: bool [rows] (corpus)."""
        return self._is("split", name)

    def _is(self, column: str, word: str) -> NDArray[np.bool_]:
        codes, names = self.words[column]
        return codes == (names.index(word) if word in names else -1)

    @property
    def split(self) -> NDArray[np.str_]:
        """The split of every row as text (corpus). Large: prefer `in_split`."""
        return self._spelled("split")

    @property
    def status(self) -> NDArray[np.str_]:
        """The status of every row as text (sides and alignments). Large: prefer `is_ok`."""
        return self._spelled("status")

    def _spelled(self, column: str) -> NDArray[np.str_]:
        codes, names = self.words[column]
        return np.asarray(names or [""], np.str_)[codes]

    def status_counts(self) -> dict[str, int]:
        """How many rows have each status."""
        codes, names = self.words["status"]
        return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First row of every row group of the folder, and the number of rows: int64 [groups + 1]."""
        changes = (np.diff(self.part) != 0) | (np.diff(self.row_group) != 0)
        starts = [np.zeros(min(len(self), 1), np.int64), np.flatnonzero(changes) + 1, np.full(1, len(self))]
        return np.concatenate(starts).astype(np.int64)

    @cached_property
    def part_of_group(self) -> NDArray[np.int32]:
        """The part that each row group is in: int32 [groups]."""
        found: NDArray[np.int32] = self.part[self.group_starts[:-1]]
        return found

    def keys(self, names: Sequence[str], first: int, stop: int) -> list[list[Any]]:
        """Key columns of rows [first, stop)."""
        columns: list[list[Any]] = []
        for name in names:
            if name == "id":
                columns.append(self.ids[first:stop].to_pylist())
            elif name in self.words:
                codes, words = self.words[name]
                columns.append([words[code] for code in codes[first:stop]])
            else:
                columns.append(self.numbers[name][first:stop].tolist())
        return columns


def index_table(keys: pa.Table, row_hashes: NDArray[np.uint64], receipt: Receipt) -> pa.Table:
    """The index's rows of one part."""
    part = np.full(receipt.rows, receipt.part, np.int32)
    group = np.repeat(np.arange(len(receipt.row_groups), dtype=np.int32), receipt.row_groups)
    added = {"part": part, "row_group": group, "row_hash": row_hashes}
    for name, values in added.items():
        keys = keys.append_column(pa.field(name, INDEX_COLUMNS[name], nullable=False), pa.array(values))
    return keys


def write_index(folder: Path, tables: Iterable[pa.Table]) -> str:
    """Write index.parquet from the parts' tables in order, memory for ROWS_PER_GROUP rows; returns its sha256."""
    path = folder / INDEX
    writer: pq.ParquetWriter | None = None
    with staged(path) as file:
        try:
            for table in _gathered(tables):
                if writer is None:
                    sink = pa.PythonFile(file, mode="w")
                    writer = pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=CODED)
                writer.write_table(table, row_group_size=table.num_rows)
            if writer is not None:
                writer.close()
        finally:
            if writer is not None:
                writer.is_open = False  # or its destructor would write a footer over half the rows
        publish(file, path)
    sha256, mirror = sha256_of(path), mirror_of(folder)
    if mirror is not None:
        mirror.publish_index(path, sha256)
    return sha256


def _bring(path: Path, sha256: str | None) -> None:
    """Bring an index that is in a store here, unless it is.

    Raises:
        ShardError: If it is not there, or damaged.
    """
    mirror = mirror_of(path.parent)
    if mirror is not None and sha256 is not None:
        mirror.fetch(path, sha256)


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Neighbouring tables put together until they have ROWS_PER_GROUP rows."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table.replace_schema_metadata(None))
        rows += table.num_rows
        if rows >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


class IndexRows:
    """The rows of an index in order, some at a time, memory for one of its row groups."""

    def __init__(self, folder: Path, *, sha256: str) -> None:
        """Open it; `sha256` is what the file's bytes must hash to.

        Raises:
            ShardError: If it is missing or damaged.
        """
        self.path = folder / INDEX
        _bring(self.path, sha256)
        try:
            is_whole = sha256_of(self.path) == sha256
            self._file = pq.ParquetFile(self.path, pre_buffer=False) if is_whole else None
            if self._file is not None:
                _refuse_inflated(self._file.metadata, None)
        except FileNotFoundError:
            raise ShardError(f"{self.path}: missing; {REMEDY}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ShardError(f"{self.path}: damaged ({error}); delete it and {REMEDY}") from error
        if self._file is None:
            raise ShardError(f"{self.path}: damaged, its sha256 is not the manifest's; delete it and {REMEDY}")
        self.num_rows = self._file.metadata.num_rows
        self._next_group = 0
        self._read: pa.Table = self._file.schema_arrow.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, fewer at the end."""
        assert self._file is not None
        while self._read.num_rows < count and self._next_group < self._file.metadata.num_row_groups:
            self._read = pa.concat_tables([self._read, self._file.read_row_group(self._next_group, use_threads=False)])
            self._next_group += 1
        taken, self._read = self._read.slice(0, count), self._read.slice(count)
        return taken

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_index(
    folder: Path, *, kind: str | None = None, sha256: str | None = None, num_rows: int | None = None
) -> Index:
    """Read index.parquet.

    Args:
        folder: the folder.
        kind: what it must be an index of; found out if not given.
        sha256: what the file's bytes must hash to (the manifest knows).
        num_rows: how many rows it must have (likewise): more are not decoded.

    Raises:
        ShardError: If it is missing, damaged or of another kind.
    """
    path = folder / INDEX
    _bring(path, sha256)
    try:
        if sha256 is not None and sha256_of(path) != sha256:
            raise ShardError(f"{path}: damaged, its sha256 is not the manifest's; delete it and {REMEDY}")
        _refuse_inflated(pq.read_metadata(path), num_rows)
        words = ["split", "status"]
        names = set(pq.read_schema(path).names)
        table = pq.read_table(path, read_dictionary=[word for word in words if word in names], memory_map=False)
        table.validate(full=True)  # text that is no text would fail where it is used
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; {REMEDY}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        said = one_line(error)
        raise ShardError(f"{path}: damaged ({said}); delete it and {REMEDY}") from error
    return _index_of(_kind_of_table(table, kind, path), table)


def _refuse_inflated(metadata: pq.FileMetaData, num_rows: int | None) -> None:
    """Refuse a small file that would become a large table: its footer says how many rows it has, a dictionary a few.

    Raises:
        ValueError: If it has other rows than the manifest counts, or an id or a hash that stands for many.
    """
    if num_rows is not None and metadata.num_rows != num_rows:
        raise ValueError(f"{metadata.num_rows} rows, the manifest counts {num_rows}")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema not in CODED and chunk.has_dictionary_page:
                raise ValueError(f"column {chunk.path_in_schema} has a dictionary")


def _kind_of_table(table: pa.Table, kind: str | None, path: Path) -> str:
    """What a table is an index of: its columns, their types and that none of them lacks a value say so."""
    names = set(table.column_names)
    found = next((name for name, keys in KEYS.items() if {*keys, *INDEX_COLUMNS} == names), None)
    if found is None:
        raise ShardError(f"{path}: damaged, columns {', '.join(sorted(names))}; delete it and {REMEDY}")
    if kind not in (None, found):
        raise ShardError(f"{path}: an index of {found}, not of {kind}; {REMEDY}")
    for name, expected in {**KEYS[found], **INDEX_COLUMNS}.items():
        column = table.column(name)
        dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if dtype != expected or column.null_count:
            raise ShardError(f"{path}: damaged, column {name} of {dtype}; delete it and {REMEDY}")
    return found


def refuse_other_rows(index: Index, receipts: Mapping[int, Receipt], *, where: Path) -> None:
    """Refuse an index whose rows do not stand in the parts and row groups that the receipts say, in order.

    Raises:
        ShardError: If so.
    """
    counts = [len(receipt.row_groups) for receipt in receipts.values()]
    sizes = np.asarray([rows for receipt in receipts.values() for rows in receipt.row_groups], np.int64)
    groups = np.asarray([group for count in counts for group in range(count)], np.int32)
    parts = np.repeat(np.asarray(list(receipts), np.int32), counts)
    same = int(sizes.sum()) == len(index)
    same = same and np.array_equal(index.part, np.repeat(parts, sizes))
    same = same and np.array_equal(index.row_group, np.repeat(groups, sizes))
    smallest = min((int(values.min()) for values in index.numbers.values() if len(values)), default=0)
    if not same or smallest < 0:
        raise ShardError(f"{where / INDEX}: damaged, its rows are not those of the receipts; delete it and {REMEDY}")


def _index_of(kind: str, table: pa.Table) -> Index:
    words: dict[str, tuple[NDArray[np.int32], list[str]]] = {}
    numbers: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table.column(name)
        if name in ("split", "status"):
            coded = column.cast(pa.string()).dictionary_encode().unify_dictionaries().combine_chunks()
            words[name] = (coded.indices.to_numpy(), coded.dictionary.to_pylist())
        elif name != "id":
            numbers[name] = column.to_numpy()
    ids = table.column("id").cast(pa.large_string()).combine_chunks()
    return Index(kind, ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks), numbers, words)
