"""Reading rows of one folder by number, every value checked on the way.

A few rows or thousands, in any order; what is asked for together is read together. Hidden states and attention are read
straight from the file, only the rows wanted; the small compressed columns come by row group, and the latest row groups
stay in memory because an epoch's order returns to them. Safe to use from one prefetch thread beside the main one.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.columns import TEXT, Column, FolderSchema, value_hash
from sra_data.shards.index import Index, read_index, refuse_other_rows
from sra_data.shards.kinds import Row, build_row
from sra_data.shards.known_hashes import KnownHashes
from sra_data.shards.manifest import Manifest, command_for, is_in_store, kind_of, part_path, shards_of
from sra_data.shards.part import (
    DamagedPart,
    PartFile,
    damaged,
    direct_sizes,
    forget_part,
    open_part,
    stored_values,
)
from sra_data.shards.receipts import check_metadata, has_file
from sra_data.shards.schema import response_positions

OPEN_PARTS = 32
CACHE_BYTES = 256 << 20
POSITIONS = "positions"  # a column of a teacher that is computed from its side, not stored


@dataclass
class _Group:
    """What is kept of one row group: the hashes of its values, and the stored values of its compressed columns."""

    number: int  # in the folder
    part: int
    in_part: int
    first: int  # row number of its first row
    keys: list[dict[str, Any]]  # of each row
    hashes: NDArray[np.uint64]  # [rows, columns], checked against the index
    num_positions: NDArray[np.int64]  # [rows]; zeros where the folder has none
    values: dict[str, list[memoryview | None]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(len(value or b"") for values in self.values.values() for value in values) + self.hashes.nbytes


class FolderReader:
    """The rows of one sealed folder.

    Attributes:
        section: "corpus", "sides/<name>", "alignments/<name>" or "teachers/<name>".
        folder: where it is.
        root: what it was sealed with.
        facts: its section of the manifest.
    """

    def __init__(
        self,
        shards: Path,
        section: str,
        *,
        side: FolderReader | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Open a folder.

        Args:
            shards: the whole folder of shards.
            section: which folder of it.
            side: for a teacher: its side, where the positions of its rows come from.
            cache_bytes: memory for decompressed row groups.

        Raises:
            ShardError: If the folder is missing or not sealed, or its metadata is not what it was sealed with.
        """
        self.section = section
        self.folder = shards / section
        self.facts = Manifest.load(shards).sealed(section)
        self.root: str = self.facts["root"]
        self._metadata = check_metadata(shards, section, self.facts)
        self._side = side
        self._cache_bytes = cache_bytes
        self._lock = threading.RLock()
        self._parts: OrderedDict[int, PartFile] = OrderedDict()
        self._known: dict[int, KnownHashes] = {}  # of open parts
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._held_bytes = 0

    @cached_property
    def index(self) -> Index:
        """The folder's index, read once."""
        found = read_index(
            self.folder, kind=kind_of(self.section), sha256=self.facts["index_sha256"], num_rows=self.facts["num_rows"]
        )
        refuse_other_rows(found, self._metadata.receipts, where=self.folder)
        return found

    @cached_property
    def schema(self) -> FolderSchema:
        """The folder's columns."""
        with self._lock:
            return self._part(int(self.index.part[0])).schema

    def __len__(self) -> int:
        return self.facts["num_rows"]

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files and forget what was kept; reading again opens them again."""
        with self._lock:
            for part in self._parts.values():
                part.close()
            self._parts.clear()
            self._known.clear()
            self._groups.clear()
            self._held_bytes = 0

    def read(self, row_numbers: Sequence[int] | NDArray[Any], columns: Sequence[str] | None = None) -> list[Any]:
        """Rows by number, in the order asked; every value is checked against its hash.

        Args:
            row_numbers: numbers in the folder's index; repeats are allowed.
            columns: names of value columns (`schema`), and "positions" for a teacher opened beside its side; all by
                default. What is not asked for is None in the rows, or absent from their dictionaries.

        Returns:
            `ExampleRow`, `SideRow`, `AlignmentRow` or `TeacherRow` objects. Hidden states are views of memory of their
            own, which neighbouring rows share.

        Raises:
            ShardError: If a value is damaged, with file, example id and column; or a column or row does not exist.
        """
        numbers = np.asarray(row_numbers, np.int64)
        if len(numbers) == 0:
            return []
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise ShardError(
                f"{self.folder}: rows {numbers.min()} to {numbers.max()}, it has {len(self)}; check the order"
            )
        with self._lock:
            try:
                return self._read(numbers, columns)
            except DamagedPart:
                if not self._forget(numbers):
                    raise
            return self._read(numbers, columns)  # once more, from the store: damage that is there is found again

    def _read(self, numbers: NDArray[np.int64], columns: Sequence[str] | None) -> list[Any]:
        wanted, with_positions = self._columns(columns)
        if (np.diff(numbers) > 0).all():
            return self._read_sorted(numbers, wanted, with_positions)
        unique, back = np.unique(numbers, return_inverse=True)
        rows = self._read_sorted(unique, wanted, with_positions)
        return [rows[place] for place in back.tolist()]

    def _forget(self, numbers: NDArray[np.int64]) -> bool:
        """Throw away what this machine keeps of these rows' parts, which are in a store; whether it kept anything."""
        if self.is_here:
            return False
        self.close()
        parts = {int(self.index.part[0]), *self.index.part[numbers].tolist()}
        forgotten = [forget_part(self.folder, self._metadata.receipts[part]) for part in parts]  # all of them
        return any(forgotten)

    def fetch(self, row_numbers: Sequence[int] | NDArray[Any], columns: Sequence[str] | None = None) -> int:
        """Bring the row groups of rows that will be read into the cache of this machine, where they are in a store.

        Reads nothing and checks nothing: what is wrong is found, and said, where it is read. Columns as in `read`.

        Returns:
            The bytes that came from the store.
        """
        if self.is_here or len(row_numbers) == 0:
            return 0
        groups = np.unique(np.searchsorted(self.index.group_starts, np.asarray(row_numbers), side="right") - 1)
        first = self.index.group_starts[groups]
        of_part: dict[int, list[int]] = {}
        for part, group in zip(self.index.part[first].tolist(), self.index.row_group[first].tolist(), strict=True):
            of_part.setdefault(part, []).append(group)
        with self._lock:
            names = [column.name for column in self._columns(columns)[0]]
        fetched = 0
        for part, numbers in of_part.items():
            with self._lock:
                opened = self._part(part)
            fetched += opened.fetch(numbers, names)  # the reader may go on meanwhile
        return fetched

    @property
    def is_here(self) -> bool:
        """Whether the parts are on this machine and not in a store."""
        return not is_in_store(self.folder)

    def refuse_unsealed(self, name: str) -> None:
        """Refuse a file beside the parts that came after the folder was sealed: nothing vouches for it.

        Raises:
            ShardError: If it is there and not sealed.
        """
        if has_file(self.folder, name) and name not in self._metadata.files:
            raise ShardError(f"{self.folder / name}: not sealed; {command_for(self.section, shards_of(self.folder))}")

    def bytes_by_column(self) -> dict[str, int]:
        """Bytes on disk of each column, compressed where it is, and of each file beside the parts under its name."""
        sizes = Counter[str]()
        with self._lock:
            for part in self._metadata.receipts:
                sizes.update(self._part(part).bytes_by_column())
        sizes.update({name: self._metadata.files[name].bytes for name in self._metadata.plan.files})
        return dict(sizes)

    def _columns(self, names: Sequence[str] | None) -> tuple[list[Column], bool]:
        """The value columns asked for, in file order, and whether positions are."""
        if names is None:
            is_possible = self._side is not None and self.schema.granularity == "token"
            return list(self.schema.columns), is_possible
        known = [column.name for column in self.schema.columns] + ([POSITIONS] if self._side is not None else [])
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ShardError(
                f"{self.folder}: no column {', '.join(unknown)} (it has {', '.join(known)}); "
                "make the folder again with the options that store it"
            )
        return [column for column in self.schema.columns if column.name in names], POSITIONS in names

    def _read_sorted(self, rows: NDArray[np.int64], columns: list[Column], with_positions: bool) -> list[Row]:
        starts = self.index.group_starts
        group_of = np.searchsorted(starts, rows, side="right") - 1
        numbers, firsts = np.unique(group_of, return_index=True)
        compressed = [column.name for column in columns if column.compression != "none"]
        positions = self._positions(rows) if with_positions else None
        found: list[Row] = []
        for number, chosen in zip(numbers.tolist(), np.split(rows, firsts[1:]), strict=True):
            group = self._group(number, compressed)
            values = [self._decoded(group, column, chosen - group.first) for column in columns]
            names = [column.name for column in columns]
            for row, *fields in zip((chosen - group.first).tolist(), *values, strict=True):
                named = dict(zip(names, fields, strict=True))
                if positions is not None:
                    named[POSITIONS] = positions[len(found)]
                found.append(build_row(self.schema.kind, group.keys[row], named))
        return found

    def _positions(self, rows: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Token indices of a teacher's rows, from its side."""
        assert self._side is not None
        if self.schema.granularity != "token":
            raise ShardError(f"{self.folder}: cached by spans, its rows have no token positions; use the span tables")
        spans = self._side.read(rows, ["response_spans"])
        return [response_positions(row.response_spans) for row in spans]

    def _keys(self, first: int, stop: int) -> list[dict[str, Any]]:
        """The key columns of rows [first, stop), from the index."""
        columns = self.index.keys(list(self.schema.keys), first, stop)
        return [dict(zip(self.schema.keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def _decoded(self, group: _Group, column: Column, rows: NDArray[np.int64]) -> list[Any]:
        """The column's values of some rows of the group (numbered within it), checked and decoded."""
        counts = group.num_positions
        if column.compression == "none":
            sizes = direct_sizes(self.schema, column.name, counts)
            stored: Iterable[Any] = self._part(group.part).direct(column.name, group.in_part, sizes, rows)
        else:
            stored = (group.values[column.name][row] for row in rows.tolist())
        stored = list(stored)
        known = group.hashes[rows, self.schema.columns.index(column)].tolist()
        found = list(map(value_hash, stored))
        if found != known:
            wrong = [a != b for a, b in zip(found, known, strict=True)].index(True)
            self._refuse(group, int(rows[wrong]), f"column {column.name}", "checksum differs")
        if column.codec == TEXT:
            return [None if data is None else bytes(data).decode() for data in stored]
        return list(map(column.decode, stored, counts[rows].tolist()))

    def _refuse(self, group: _Group, row: int, what: str, problem: str) -> None:
        path = part_path(self.folder, group.part)
        raise damaged(path, f"example {group.keys[row]['id']}, {what}", problem)

    # ----------------------------------------------------------------------- what is kept

    def _group(self, number: int, names: Sequence[str]) -> _Group:
        """The row group of that number, with these compressed columns in memory."""
        group = self._groups.get(number) or self._open_group(number)
        lacking = [name for name in names if name not in group.values]
        if lacking:
            self._load(group, lacking)
        self._groups[number] = group
        self._groups.move_to_end(number)
        while self._held_bytes > self._cache_bytes and len(self._groups) > 1:  # the newest stays, whatever its size
            self._held_bytes -= self._groups.popitem(last=False)[1].num_bytes
        return group

    def _open_group(self, number: int) -> _Group:
        """A row group with its hashes, checked against the index."""
        first, stop = (int(row) for row in self.index.group_starts[number : number + 2])
        part, in_part = int(self.index.part[first]), int(self.index.row_group[first])
        hashes = self._hashes(part).of(number)
        counts = self.index.numbers.get("num_positions")
        positions = np.zeros(stop - first, np.int64) if counts is None else counts[first:stop].astype(np.int64)
        group = _Group(number, part, in_part, first, self._keys(first, stop), hashes, positions)
        self._held_bytes += group.num_bytes
        return group

    def _load(self, group: _Group, names: Sequence[str]) -> None:
        """Decompress columns of the group into memory."""
        table = self._part(group.part).table([group.in_part], names)
        before = group.num_bytes
        for name in names:
            group.values[name] = stored_values(table.column(name))
        self._held_bytes += group.num_bytes - before

    def _part(self, number: int) -> PartFile:
        """An open part; the latest few stay open."""
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = open_part(self.folder, self._metadata.receipts[number])
            if len(self._parts) > OPEN_PARTS:
                oldest, closed = self._parts.popitem(last=False)
                closed.close()
                self._known.pop(oldest, None)
        self._parts.move_to_end(number)
        return part

    def _hashes(self, number: int) -> KnownHashes:
        """The hashes of an open part's values."""
        part = self._part(number)
        if number not in self._known:
            self._known[number] = KnownHashes(part, number, self.index, list(self.schema.keys), at_once=self.is_here)
        return self._known[number]


def refuse_other_base(reader: FolderReader, base: FolderReader) -> None:
    """Refuse a folder that was made from other content of `base` than is there now.

    Raises:
        ShardError: With the command that makes it again.
    """
    had = reader.facts.get("made_from", {}).get(base.section)
    if had != base.root:
        raise ShardError(
            f"{reader.folder}: made from {base.section} {str(had)[:12]}, the folder holds {base.root[:12]}; delete it "
            f"and {command_for(reader.section, shards_of(reader.folder))}"
        )
