"""One part's file, opened for reading: checked on the way in, read in two ways.

Compressed columns come through Parquet's decoder, a row group at a time. Uncompressed columns of known size (hidden
states, attention, hashes) are read straight from the file: in a column chunk that is one plain page the values stand
one after the other behind 4-byte lengths and end where the chunk ends, so a row's bytes are found by arithmetic and
read with one call into memory of ours. No decoder, no second copy, and a single row can be read alone. The lengths are
checked here, the values against their hashes by the caller; the writer reads every part back this way before it
publishes it. Where the bytes come from, a file or a store, is `part_bytes`'s.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError, one_line
from sra_data.shards.columns import HASHES, FolderSchema, hash_rows, schema_from_arrow, value_hash
from sra_data.shards.manifest import Receipt, part_path, shards_of
from sra_data.shards.part_bytes import FileBytes, PartBytes, bytes_of
from sra_data.shards.stores.blocks import Range

FOOTER_END = 8  # its length and the magic word
PREFIX_BYTES = 4  # Parquet writes a value's length before it
LENGTH = struct.Struct("<I")
ALIGNMENT = 64
PIECE = 8 << 20  # of a file that is read from end to end
# What Parquet, numpy and JSON raise over bytes that are not what they should be.
UNREADABLE = (
    pa.ArrowException,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class DamagedPart(ShardError):
    """A value of a part that is not what was written."""


def damaged(path: Path, what: str, problem: str) -> DamagedPart:
    """A damaged value, named, with the remedy."""
    return DamagedPart(
        f"{path}: {what}: {problem}; run `sra-data repair {shards_of(path.parent)}`: it throws {path.name} away and "
        "says which command makes it again"
    )


def footer_hash(path: Path) -> str:
    """`footer_hash_of` a file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it cannot end with a footer.
    """
    file = FileBytes(path)
    try:
        return footer_hash_of(file)
    finally:
        file.close()


def footer_hash_of(part: PartBytes) -> str:
    """xxh3_64 of a Parquet file's footer, as hex: its last 8 bytes give the footer's length, and are included.

    Raises:
        ValueError: If it cannot end with a footer.
    """
    if part.size < FOOTER_END:
        raise ValueError(f"file of {part.size} bytes")
    length = int.from_bytes(_last(part, FOOTER_END)[:4], "little") + FOOTER_END
    if length > part.size:
        raise ValueError(f"a footer of {length} bytes in a file of {part.size}")
    return xxhash.xxh3_64_hexdigest(_last(part, length))


def _last(part: PartBytes, count: int) -> bytearray:
    data = bytearray(count)
    if part.read_into(memoryview(data), part.size - count) != count:
        raise ValueError("file ends too early")
    return data


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Parquet's and the system's errors, as one line that names the file and what was read."""
    try:
        yield
    except UNREADABLE as error:
        raise damaged(path, what, one_line(error)) from error


class PartFile:
    """A part opened for reading.

    Attributes:
        path: its file.
        schema: its columns.
        row_groups: rows of each row group, int64 [G].
        starts: first row of each row group and the number of rows, int64 [G + 1].
    """

    def __init__(
        self, path: Path, *, row_groups: Sequence[int], footer: str, opened: Callable[[], PartBytes] | None = None
    ) -> None:
        """Open it; `row_groups` and `footer` are what its receipt says, `opened` gives its bytes (else the file).

        The footer is checked before anything in it is believed: a flipped bit there could change how values are read.

        Raises:
            ShardError: If it is missing or is not the part its receipt describes.
        """
        self.path = path
        with self.naming("footer"):
            self._bytes = FileBytes(path) if opened is None else opened()
            try:
                if footer_hash_of(self._bytes) != footer:
                    raise ValueError("not the one the receipt names")
                self._file = pq.ParquetFile(self._bytes.opened(), pre_buffer=False)  # reading ahead only costs
                self._metadata = self._file.metadata
                self._arrow: pa.Schema = self._file.schema_arrow
                self.schema = schema_from_arrow(self._arrow, where=str(path))
                groups = [self._metadata.row_group(index).num_rows for index in range(self._metadata.num_row_groups)]
                if groups != list(row_groups):
                    raise ValueError(f"row groups {groups} instead of {list(row_groups)}")
            except BaseException:
                self._bytes.close()
                raise
        self.row_groups = np.asarray(groups, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.row_groups)]).astype(np.int64)
        self._chunk_ends: dict[str, NDArray[np.int64]] = {}

    def close(self) -> None:
        """Close its files."""
        self._file.close()
        self._bytes.close()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def num_rows(self) -> int:
        """Rows in it."""
        return int(self.starts[-1])

    def table(self, row_groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some columns of some row groups, in that order."""
        with self.naming(f"row groups {list(row_groups)}, columns {', '.join(columns)}"):
            self._refuse_dictionaries(row_groups, columns)
            return self._file.read_row_groups(list(row_groups), columns=list(columns), use_threads=False)

    def _refuse_dictionaries(self, row_groups: Sequence[int], columns: Sequence[str]) -> None:
        """Refuse values that stand for others: a small file would become a large table."""
        places = [(name, self._arrow.get_field_index(name)) for name in columns]
        for group in map(self._metadata.row_group, row_groups):
            for name, place in places:
                if group.column(place).has_dictionary_page:
                    raise ValueError(f"column {name} has a dictionary, parts have none")

    def bytes_by_column(self) -> dict[str, int]:
        """Bytes of each column in the file, compressed where it is."""
        sizes: dict[str, int] = {}
        for group in range(self._metadata.num_row_groups):
            found = self._metadata.row_group(group)
            for number in range(found.num_columns):
                chunk = found.column(number)
                sizes[chunk.path_in_schema] = sizes.get(chunk.path_in_schema, 0) + chunk.total_compressed_size
        return sizes

    def hashes(self, row_group: int) -> NDArray[np.uint64]:
        """The hashes of a row group's values: uint64 [rows, columns]."""
        rows, width = int(self.row_groups[row_group]), 8 * len(self.schema.columns)
        stop = int(self._chunk_end(HASHES)[row_group])
        block = self._read(stop - rows * (width + PREFIX_BYTES), stop, f"row group {row_group}, column {HASHES}")
        values = np.frombuffer(block, np.uint8).reshape(rows, -1)[:, PREFIX_BYTES:]
        return np.ascontiguousarray(values).view("<u8")

    def direct(
        self, column: str, row_group: int, sizes: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> list[memoryview]:
        """Values of an uncompressed column, straight from the file.

        Args:
            column: its name.
            row_group: number of the row group.
            sizes: bytes of every value of the row group, int64 [rows of the group].
            rows: which values (one at least), increasing, numbered within the row group.

        Returns:
            One view per row; neighbours share one read and one block of memory, aligned for any dtype.
        """
        stops = list(accumulate(size + PREFIX_BYTES for size in sizes.tolist()))
        origin = int(self._chunk_end(column)[row_group]) - stops[-1]  # of the page's values in the file
        values: list[memoryview] = []
        borders = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
        for first, last in pairwise([0, *borders, len(rows)]):
            run = rows[first:last].tolist()  # neighbours
            begin = stops[run[0] - 1] if run[0] else 0
            block = self._read(origin + begin, origin + stops[run[-1]], f"row group {row_group}, column {column}")
            start = PREFIX_BYTES
            for row in run:
                stop = stops[row] - begin
                if LENGTH.unpack_from(block, start - PREFIX_BYTES)[0] != stop - start:
                    raise damaged(self.path, f"row {self.starts[row_group] + row}, column {column}", "wrong length")
                values.append(block[start:stop])
                start = stop + PREFIX_BYTES
        return values

    def _chunk_end(self, column: str) -> NDArray[np.int64]:
        """Where each row group's chunk of the column ends in the file: int64 [G]."""
        if column not in self._chunk_ends:
            with self.naming("footer"):
                place = self._arrow.get_field_index(column)
                chunks = [self._metadata.row_group(group).column(place) for group in range(len(self.row_groups))]
                ends = [chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks]
            self._chunk_ends[column] = np.asarray(ends, np.int64)
        return self._chunk_ends[column]

    def _read(self, start: int, stop: int, what: str) -> memoryview:
        """Bytes [start, stop) of the file, the first value (behind its length) aligned."""
        shift = ALIGNMENT - PREFIX_BYTES
        memory = np.empty(shift + max(stop - start, 0) + ALIGNMENT, np.uint8)
        shift += -memory.ctypes.data % ALIGNMENT
        block = memory[shift : shift + stop - start].data
        with self.naming(what):
            done = self._bytes.read_into(block, start) if start >= 0 else 0
        if done < stop - start:
            raise damaged(self.path, what, "file ends too early")
        return block

    def fetch(self, row_groups: Iterable[int], columns: Sequence[str]) -> int:
        """Bring these columns, and the hashes, nearer before they are read; the bytes that came from a store."""
        if isinstance(self._bytes, FileBytes):
            return 0
        ranges: list[Range] = []
        with self.naming("footer"):
            places = [self._arrow.get_field_index(name) for name in (HASHES, *columns)]
            for group in map(self._metadata.row_group, row_groups):
                for chunk in map(group.column, places):
                    start = chunk.data_page_offset
                    ranges.append((max(start, 0), min(start + chunk.total_compressed_size, self._bytes.size)))
        return self._bytes.fetch(ranges)

    def forget(self) -> bool:
        """Throw away what this machine keeps of a part in a store; whether it kept anything."""
        return self._bytes.forget()

    def naming(self, what: str) -> AbstractContextManager[None]:
        """Parquet's and the system's errors, as one line that names the file and what was read."""
        return naming(self.path, what)


def open_part(folder: Path, receipt: Receipt, *, is_read_once: bool = False) -> PartFile:
    """A part that its receipt says is there, in its folder or in the store that the folder stands for.

    Args:
        folder: of parts.
        receipt: of the part.
        is_read_once: of a part in a store: little will be read of it, and once; do not keep it here.

    Raises:
        ShardError: If it is missing or is not the part its receipt describes, or a store refuses.
    """
    path = part_path(folder, receipt.part)
    opened = partial(bytes_of, folder, receipt, is_read_once=is_read_once)
    return PartFile(path, row_groups=receipt.row_groups, footer=receipt.footer, opened=opened)


def forget_part(folder: Path, receipt: Receipt) -> bool:
    """Throw away what this machine keeps of a part in a store, which may be damaged; whether it kept anything."""
    found = bytes_of(folder, receipt)
    try:
        return found.forget()
    finally:
        found.close()


def sha256_of_part(folder: Path, receipt: Receipt) -> str:
    """sha256 of a part's bytes, wherever they are.

    Raises:
        ShardError: If it is missing or cannot be read.
    """
    with naming(part_path(folder, receipt.part), "file"):
        found, digest = bytes_of(folder, receipt), hashlib.sha256()
        try:
            buffer = memoryview(bytearray(min(PIECE, max(found.size, 1))))
            for start in range(0, found.size, len(buffer)):
                count = found.read_into(buffer, start)
                digest.update(buffer[:count])
            return digest.hexdigest()
        finally:
            found.close()


def row_hashes(keys: pa.Table, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Row hashes from the key columns and the hashes of the values [rows, columns]: uint64 [rows]."""
    columns = (column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy() for column in keys.columns)
    return hash_rows(list(columns), hashes)


def stored_values(column: pa.ChunkedArray | pa.Array) -> list[memoryview | None]:
    """The stored bytes of every value of a binary or text column; no copy."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps several chunks only where one cannot hold them
        return [value for chunk in array.chunks for value in stored_values(chunk)]
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * array.offset).tolist()
    data = memoryview(array.buffers()[2] or b"")
    valid = array.is_valid().to_pylist() if array.null_count else None
    return [
        data[start:stop] if valid is None or valid[index] else None
        for index, (start, stop) in enumerate(pairwise(offsets))
    ]


def direct_sizes(schema: FolderSchema, column: str, num_positions: NDArray[Any]) -> NDArray[np.int64]:
    """Bytes of each row's value in an uncompressed column: int64 [rows]."""
    found = schema.column(column)
    assert found is not None
    base, step = found.growth
    return base + step * np.asarray(num_positions, np.int64)


def check_part(part: PartFile) -> tuple[pa.Table, NDArray[np.uint64]]:
    """Read every value of a part and check it against its hash, memory for one row group.

    Returns:
        Its key columns, and its row hashes, uint64 [rows].

    Raises:
        ShardError: At the first value that differs: file, example id and column.
    """
    keys = part.table(range(len(part.row_groups)), list(part.schema.keys))
    found = []
    for group, (start, stop) in enumerate(zip(part.starts[:-1], part.starts[1:], strict=True)):
        group_keys = keys.slice(start, stop - start)
        hashes = part.hashes(group)
        part.fetch([group], [column.name for column in part.schema.columns])
        with part.naming("keys"):
            ids = group_keys.column("id").to_pylist()
        for place, (column, values) in enumerate(_all_values(part, group, group_keys)):
            for row, value in enumerate(values):
                if value_hash(value) != hashes[row, place]:
                    raise damaged(part.path, f"example {ids[row]}, column {column}", "checksum differs")
        with part.naming("keys"):  # damaged text may not even be text
            found.append(row_hashes(group_keys, hashes))
    return keys, np.concatenate(found)


def _all_values(part: PartFile, group: int, keys: pa.Table) -> Iterator[tuple[str, Sequence[Any]]]:
    """Every column of a row group with its stored values, in the schema's order."""
    compressed = [column.name for column in part.schema.columns if column.compression != "none"]
    table = part.table([group], compressed)
    for column in part.schema.columns:
        if column.compression == "none":
            sizes = direct_sizes(part.schema, column.name, keys.column("num_positions").to_numpy())
            yield column.name, part.direct(column.name, group, sizes, np.arange(len(sizes)))
        else:
            yield column.name, stored_values(table.column(column.name))
