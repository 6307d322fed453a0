"""Writing one part: memory for one row group, nothing visible until everything is checked.

Order of a part's life: it is claimed (claims.py), rows go into ``part-N.parquet.tmp``, footer, every value read back
and compared, fsync, rename, fsync of the folder, then the receipt in the same way, which ends the claim. Any exception,
and the end of the process, leaves no part: Parquet's own writer would write a valid footer over half the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.claims import Claim, claimed
from sra_data.shards.columnar import LARGEST_VALUE, EncodedRows
from sra_data.shards.columns import (
    HASHES,
    TEXT,
    Column,
    FolderSchema,
    row_hash,
    value_hash,
)
from sra_data.shards.durable import publish, sha256_of, staged, temporary_of
from sra_data.shards.kinds import Row, column_value, key_values
from sra_data.shards.manifest import Receipt, Unit, part_path, receipt_bytes, rows_root
from sra_data.shards.part import PartFile, check_part, damaged, footer_hash

POSITIONS_PER_GROUP = 1024  # of a teacher's pages: 4.5 MB at width 2,048 in bf16
# Of corpus, sides and alignments, in bytes of responses: some 16,384 positions, of some 20 bytes each; smaller chunks
# cost more than they hold. From bytes and not tokens, so that all these folders have the same row groups.
TEXT_BYTES_PER_GROUP = 65_536
ROWS_PER_GROUP = 1024


def cut_row_groups(sizes: Iterable[int], *, most: int = POSITIONS_PER_GROUP) -> list[int]:
    """Rows of each row group: as many neighbours as fit `most` (and 1,024 rows); a larger row stands alone.

    Args:
        sizes: positions of each row of a teacher's pages, or bytes of each row of the folders of text.
        most: in the same measure.
    """
    groups: list[int] = []
    filled = 0
    for count in sizes:
        if groups and groups[-1] < ROWS_PER_GROUP and filled + count <= most:
            groups[-1] += 1
            filled += count
        else:
            groups.append(1)
            filled = count
    return groups


def write_part(
    folder: Path,
    schema: FolderSchema,
    unit: Unit,
    rows: Iterable[Row],
    row_groups: Sequence[int],
    *,
    notes: dict[str, Any] | None = None,
    claim: Claim | None = None,
) -> Receipt:
    """Write one part and its receipt, or nothing; a part that is there already stays as it is.

    Args:
        folder: the folder of that kind (created if need be).
        schema: its columns.
        unit: which part, of which rows.
        rows: the unit's rows in order; consumed one row group at a time.
        row_groups: rows of each row group; see `cut_row_groups`.
        notes: kept in the receipt; read after the last row, so the iterator may fill it.
        claim: of the part, by whoever claimed it before its rows were made; here it is claimed otherwise.

    Raises:
        ShardError: If the disk refuses, or what was written does not read back.
        ValueError: If a row does not fit the schema, or the rows do not fill the row groups (a programmer's error).
    """

    def write(file: IO[bytes], path: Path) -> NDArray[np.uint64]:
        hashes = _write_rows(file, path, schema, rows, row_groups)
        file.flush()
        _read_back(temporary_of(path), schema, row_groups, hashes)
        return hashes

    if claim is not None:
        return _publish_part(claim, folder, schema, unit, row_groups, write, notes)
    return _claim_and_publish(folder, schema, unit, row_groups, write, notes)


def write_columns(
    folder: Path,
    unit: Unit,
    encoded: Sequence[EncodedRows],
    row_groups: Sequence[int],
    *,
    notes: dict[str, Any] | None = None,
) -> Receipt:
    """Write one part from columns: the same bytes as `write_part` of the same rows, for a fraction of the time.

    Args:
        folder: the folder of that kind (created if need be).
        unit: which part, of which rows.
        encoded: all its rows in order, at least one batch; see columnar.py.
        row_groups: rows of each row group.
        notes: kept in the receipt.

    Raises:
        ShardError: If the disk refuses, or what was written does not read back.
        ValueError: If the rows do not fill the row groups (a programmer's error).
    """
    schema = encoded[0].schema
    table = pa.Table.from_batches([rows.batch for rows in encoded]).combine_chunks()
    hashes = np.concatenate([rows.row_hashes for rows in encoded])
    if len(hashes) != sum(row_groups):
        raise ValueError(f"{unit.name}: {len(hashes)} rows for row groups {list(row_groups)}")

    def write(file: IO[bytes], path: Path) -> NDArray[np.uint64]:
        sink = pa.BufferOutputStream()  # a part's compressed columns weigh less than the rows beside them
        writer = _open_writer(sink, schema)
        start = 0
        for count in row_groups:
            writer.write_table(table.slice(start, count), row_group_size=count)
            start += count
        writer.close()
        file.write(sink.getvalue())
        file.flush()
        _compare(temporary_of(path), schema, row_groups, table)
        return hashes

    return _claim_and_publish(folder, schema, unit, row_groups, write, notes)


def _claim_and_publish(folder: Path, schema: FolderSchema, unit: Unit, *rest: Any) -> Receipt:
    with claimed(folder, unit) as claim:
        if claim is None:  # another process made it meanwhile
            return Receipt.load(folder, unit.part)
        return _publish_part(claim, folder, schema, unit, *rest)


def _publish_part(
    claim: Claim,
    folder: Path,
    schema: FolderSchema,
    unit: Unit,
    row_groups: Sequence[int],
    write: Callable[[IO[bytes], Path], NDArray[np.uint64]],
    notes: dict[str, Any] | None,
) -> Receipt:
    """Let `write` fill and check the temporary file (it returns the row hashes), then give it its name."""
    if sum(row_groups) != unit.stop - unit.start or not row_groups or min(row_groups) < 1:
        raise ValueError(f"row groups {list(row_groups)} do not hold rows {unit.start}:{unit.stop}")
    path = part_path(folder, unit.part)
    with staged(path) as file:
        hashes = write(file, path)
        receipt = Receipt(
            part=unit.part,
            rows=unit.stop - unit.start,
            row_groups=list(row_groups),
            bytes=temporary_of(path).stat().st_size,
            sha256=sha256_of(temporary_of(path)),
            footer=footer_hash(temporary_of(path)),
            rows_root=rows_root(schema.canonical(), hashes.tobytes()),
            notes=notes or {},
        )
        publish(file, path)
    written = receipt_bytes(receipt)
    return receipt if claim.fulfil(written) == written else Receipt.load(folder, unit.part)


def _write_rows(
    file: IO[bytes], path: Path, schema: FolderSchema, rows: Iterable[Row], row_groups: Sequence[int]
) -> NDArray[np.uint64]:
    """Write all row groups and the footer; returns the row hashes, uint64 [rows]."""
    iterator = iter(rows)
    hashes: list[int] = []
    writer = _open_writer(pa.PythonFile(file, mode="w"), schema)
    try:
        for count in row_groups:
            group = _EncodedGroup(schema, path)
            for _ in range(count):
                row = next(iterator, None)
                if row is None:
                    raise ValueError(f"{path.name}: {len(hashes) + len(group.keys)} rows for row groups {row_groups}")
                group.add(row)
            writer.write_batch(group.batch(), row_group_size=count)
            hashes += group.row_hashes
        if next(iterator, None) is not None:
            raise ValueError(f"{path.name}: more rows than its row groups {list(row_groups)} hold")
        writer.close()
    finally:
        writer.is_open = False  # or its destructor would write a footer over half the rows
    return np.asarray(hashes, np.uint64)


def _open_writer(sink: pa.NativeFile, schema: FolderSchema) -> pq.ParquetWriter:
    compression = dict.fromkeys([*schema.keys, HASHES], "none")  # a dozen short keys a chunk: zstd only costs
    compression |= {column.name: column.compression for column in schema.columns}
    return pq.ParquetWriter(
        sink,
        schema.arrow(),
        compression=compression,
        use_dictionary=False,
        write_statistics=list(schema.keys),
        data_page_size=1 << 30,  # one page per column chunk: see part.py
        data_page_version="1.0",
    )


class _EncodedGroup:
    """The stored values of one row group, gathered row by row."""

    def __init__(self, schema: FolderSchema, path: Path) -> None:
        self.schema = schema
        self.path = path
        self.keys: list[dict[str, str | int]] = []
        self.hashes: list[bytes] = []
        self.row_hashes: list[int] = []
        self.values: dict[str, list[Any]] = {column.name: [] for column in schema.columns}

    def add(self, row: Row) -> None:
        """Encode a row and hash its values."""
        keys = key_values(row)
        num_positions = int(keys.get("num_positions", 0))
        hashes = np.empty(len(self.schema.columns), "<u8")
        for index, column in enumerate(self.schema.columns):
            value = self._encode(column, row, num_positions)
            if value is not None and len(value) > LARGEST_VALUE:
                raise ShardError(
                    f"{self.path}: example {row.id}, column {column.name}: {len(value)} bytes, a value holds at most "
                    f"{LARGEST_VALUE}; give a shorter maximum length"
                )
            self.values[column.name].append(value)
            hashes[index] = value_hash(value)
        self.keys.append(keys)
        self.hashes.append(hashes.tobytes())
        self.row_hashes.append(row_hash(list(keys.values()), self.hashes[-1]))

    def _encode(self, column: Column, row: Row, num_positions: int) -> Any:
        value = column_value(row, column.name)
        if column.codec == TEXT:
            return None if value is None else value.encode()
        if value is None:
            raise ValueError(f"example {row.id} has no {column.name}")
        buffers = column.encode(value, num_positions)
        return buffers[0] if len(buffers) == 1 else b"".join(buffers)

    def batch(self) -> pa.RecordBatch:
        """The row group as one batch."""
        arrays = [pa.array([keys[name] for keys in self.keys], dtype) for name, dtype in self.schema.keys.items()]
        arrays.append(_binary(self.hashes, pa.large_binary()))
        for column in self.schema.columns:
            values = self.values[column.name]
            dtype = pa.large_string() if column.codec == TEXT else pa.large_binary()
            arrays.append(pa.array(_texts(values), dtype) if column.nullable else _binary(values, dtype))
        return pa.record_batch(arrays, schema=self.schema.arrow())


def _texts(values: Sequence[bytes | None]) -> list[str | None]:
    return [None if value is None else value.decode() for value in values]


def _binary(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """A large_binary or large_string array of buffers, with one copy."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    for value, start, stop in zip(values, offsets[:-1], offsets[1:], strict=True):
        data[start:stop] = np.frombuffer(value, np.uint8) if stop > start else 0
    return pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _read_back(path: Path, schema: FolderSchema, row_groups: Sequence[int], expected: NDArray[np.uint64]) -> None:
    """Read all of what was written; the row hashes must be `expected`, uint64 [rows].

    Raises:
        ShardError: At the first difference.
    """
    with PartFile(path, row_groups=row_groups, footer=footer_hash(path)) as part:
        if part.schema != schema:
            raise damaged(path, "columns", "not those that were written")
        found = check_part(part)[1]
        if not np.array_equal(found, expected):
            row = int(np.flatnonzero(found != expected)[0])
            raise damaged(path, f"row {row}", "reads back differently from what was written")


def _compare(path: Path, schema: FolderSchema, row_groups: Sequence[int], written: pa.Table) -> None:
    """Read all of what was written; every value must be the one in `written`.

    The hashes are read straight from the file as every reader will, the rest through Parquet's decoder.

    Raises:
        ShardError: At the first difference.
    """
    with PartFile(path, row_groups=row_groups, footer=footer_hash(path)) as part:
        if part.schema != schema:
            raise damaged(path, "columns", "not those that were written")
        groups = range(len(row_groups))
        names = [name for name in written.column_names if name != HASHES]
        found = part.table(groups, names)
        for name in names:
            had, got = written.column(name), found.column(name)
            if not got.equals(had):
                row = next(row for row in range(len(had)) if row >= len(got) or got[row] != had[row])
                raise damaged(path, f"row {row}, column {name}", "reads back differently from what was written")
        hashes = np.concatenate([part.hashes(group) for group in groups])
        if hashes.tobytes() != b"".join(written.column(HASHES).to_pylist()):
            raise damaged(path, HASHES, "read back differently from what was written")
