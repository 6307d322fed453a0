"""Many rows of the corpus, a side or an alignment at once, as columns: the fast way to and from a part.

The arrays of a whole batch become Parquet's columns as they are, one buffer and its offsets each, without an object per
row. What is written is, byte for byte, what `write_part` makes of the same rows one by one (a test holds both to it).
`read_part` brings a part back in the same form, sealed or not: that is how `align` uses a side that is there already.

Shapes: B rows; the others as in schema.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.columns import TEXT, Column, FolderSchema, hash_rows
from sra_data.shards.kinds import alignment_schema, corpus_schema, side_schema
from sra_data.shards.manifest import Receipt, Unit, part_path, rows_root
from sra_data.shards.part import damaged, open_part
from sra_data.shards.schema import count_positions

LARGEST_VALUE = (1 << 31) - (1 << 20)  # a Parquet page, and so a row group's column, is below 2 GiB
HASH_BYTES = 8
PLAIN_DTYPES: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "uint8": np.dtype("<u1")}


class Rows(Protocol):
    """Rows of unequal length in one array: row i is ``values[splits[i]:splits[i + 1]]``."""

    @property
    def values(self) -> NDArray[Any]:
        """[N, ...], the rows one after the other."""

    @property
    def splits(self) -> NDArray[np.int64]:
        """[B + 1]."""


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows as they are stored.

    Attributes:
        schema: their folder's columns.
        batch: keys, hashes and values, [B] rows.
        row_hashes: uint64 [B].
    """

    schema: FolderSchema
    batch: pa.RecordBatch
    row_hashes: NDArray[np.uint64]

    @property
    def num_positions(self) -> NDArray[np.int32]:
        """[B] positions a teacher's pages will have (a side)."""
        found: NDArray[np.int32] = self.batch.column("num_positions").to_numpy()
        return found


def corpus_columns(
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    num_bytes: NDArray[np.int32],
    prompts: Sequence[str | None],
    responses: Sequence[str | None],
    chats: Sequence[str | None],
) -> EncodedRows:
    """`ExampleRow`s by column.

    Raises:
        ValueError: If a column has another number of rows.
        ShardError: If a value is larger than a part can hold.
    """
    keys = {"id": ids, "split": splits, "num_bytes": num_bytes}
    return _encode(corpus_schema(), keys, {"prompt": prompts, "response": responses, "chat": chats})


def side_columns(
    *,
    ids: Sequence[str],
    statuses: Sequence[str],
    token_ids: Rows,
    starts: Rows,
    ends: Rows,
    kinds: Rows,
    response_ranges: Rows,
    response_turns: Rows,
    response_spans: Rows,
    label_spans: Rows,
    texts: Sequence[str | None],
) -> EncodedRows:
    """`SideRow`s by column; int32 arrays [N], [R] and [R, 2] a row, `kinds` uint8 [N].

    Raises:
        ValueError: If an array has another dtype or shape, or another number of rows.
        ShardError: If a value is larger than a part can hold.
    """
    keys = {
        "id": ids,
        "status": statuses,
        "num_tokens": _lengths(token_ids),
        "num_positions": position_counts(response_spans),
        "num_labels": label_counts(label_spans),
    }
    values = {
        "ids": token_ids,
        "starts": starts,
        "ends": ends,
        "kinds": kinds,
        "response_ranges": response_ranges,
        "response_turns": response_turns,
        "response_spans": response_spans,
        "label_spans": label_spans,
        "text": texts,
    }
    return _encode(side_schema(), keys, values)


def alignment_columns(
    *, ids: Sequence[str], statuses: Sequence[str], left_spans: Rows, right_spans: Rows
) -> EncodedRows:
    """`AlignmentRow`s by column; raises as `side_columns` does."""
    keys = {"id": ids, "status": statuses, "num_spans": _lengths(left_spans)}
    return _encode(alignment_schema(), keys, {"left_spans": left_spans, "right_spans": right_spans})


@dataclass(frozen=True, eq=False)
class PartColumns:
    """A part's rows by column, every value checked against its hash and all hashes against the receipt.

    Attributes:
        keys: the key columns.
        numbers: the values of each column of numbers [N, ...], and where its rows begin and end, int64 [B + 1].
        texts: each column of text.
    """

    keys: dict[str, list[Any]]
    numbers: dict[str, tuple[NDArray[Any], NDArray[np.int64]]]
    texts: dict[str, list[str | None]]


def read_part(folder: Path, unit: Unit) -> PartColumns:
    """A whole part of corpus, a side or an alignment; it need not be sealed.

    Raises:
        ShardError: If it is not there or damaged.
    """
    receipt = Receipt.load(folder, unit.part)
    path = part_path(folder, unit.part)
    if (receipt.part, receipt.rows) != (unit.part, unit.stop - unit.start):
        raise damaged(path, "receipt", f"{receipt.rows} rows of part {receipt.part}, the plan says {unit}")
    with open_part(folder, receipt) as part:
        schema, groups = part.schema, range(len(part.row_groups))
        table = part.table(groups, [*schema.keys, *(column.name for column in schema.columns)])
        hashes = np.concatenate([part.hashes(group) for group in groups])
        with part.naming("keys"):
            keys = {name: table.column(name).to_pylist() for name in schema.keys}
            row_hashes = hash_rows(list(keys.values()), hashes)
    if rows_root(schema.canonical(), row_hashes.tobytes()) != receipt.rows_root:
        raise damaged(path, "keys or hashes", "not those the receipt was written for")
    numbers: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {}
    texts: dict[str, list[str | None]] = {}
    for place, column in enumerate(schema.columns):
        array = _whole(table.column(column.name))
        wrong = np.flatnonzero(value_hashes(array) != hashes[:, place])
        if len(wrong):
            raise damaged(path, f"example {keys['id'][wrong[0]]}, column {column.name}", "checksum differs")
        if column.codec == TEXT:
            texts[column.name] = array.to_pylist()
        else:
            numbers[column.name] = _numbers(column, array)
    return PartColumns(keys, numbers, texts)


def _numbers(column: Column, array: pa.Array) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A column's stored numbers in one array [N, ...], and where its rows begin and end, int64 [B + 1]."""
    dtype, rest = PLAIN_DTYPES[column.codec], [rule for rule in column.shape[1:] if isinstance(rule, int)]
    offsets = _offsets(array)
    data = memoryview(array.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    values = np.frombuffer(data, dtype).reshape(-1, *rest)
    return values, (offsets - offsets[0]) // (dtype.itemsize * int(np.prod(rest, dtype=np.int64)))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One array of all row groups."""
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def position_counts(spans: Rows) -> NDArray[np.int32]:
    """`count_positions` of every row of spans [R, 2]: int32 [B]."""
    counts = np.zeros(len(spans.splits) - 1, np.int32)
    num_spans = _lengths(spans)
    single = num_spans == 1
    chosen = spans.values[spans.splits[:-1][single]].reshape(-1, 2)
    counts[single] = chosen[:, 1] - np.maximum(chosen[:, 0] - 1, 0)
    for row in np.flatnonzero(num_spans > 1).tolist():
        counts[row] = count_positions(spans.values[spans.splits[row] : spans.splits[row + 1]])
    return counts


def label_counts(label_spans: Rows) -> NDArray[np.int32]:
    """Labels of every row that can be learnt, int32 [B]: nothing stands before token 0 to predict it from."""
    labels = label_spans.values
    counts = np.maximum(labels[:, 1] - np.maximum(labels[:, 0], 1), 0)
    sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return np.diff(sums[label_spans.splits]).astype(np.int32)


def _lengths(rows: Rows) -> NDArray[np.int32]:
    return np.diff(rows.splits).astype(np.int32)


def _encode(schema: FolderSchema, keys: Mapping[str, Any], values: Mapping[str, Any]) -> EncodedRows:
    arrays = [pa.array(keys[name], dtype) for name, dtype in schema.keys.items()]
    ids = keys["id"]
    stored = [_stored(column, values[column.name], ids) for column in schema.columns]
    if {len(array) for array in (*arrays, *stored)} != {len(ids)}:
        raise ValueError(f"columns of {sorted({len(array) for array in (*arrays, *stored)})} rows for {len(ids)} ids")
    hashes = np.stack([value_hashes(array) for array in stored], axis=1).astype("<u8", copy=False)
    offsets = np.arange(len(ids) + 1, dtype=np.int64) * (HASH_BYTES * len(stored))
    hash_array = pa.Array.from_buffers(
        pa.large_binary(), len(ids), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(hashes))]
    )
    batch = pa.record_batch([*arrays, hash_array, *stored], schema=schema.arrow())
    return EncodedRows(schema, batch, hash_rows(list(keys.values()), hashes))


def _stored(column: Column, value: Any, ids: Sequence[str]) -> pa.Array:
    """A column's values as Parquet stores them; numbers are not copied."""
    if column.codec == TEXT:
        array = pa.array(value, pa.large_string())
    else:
        numbers = value.values
        dtype = PLAIN_DTYPES.get(column.codec)
        if numbers.dtype != dtype or numbers.shape[1:] != column.shape[1:]:
            raise ValueError(f"column {column.name}: expected {column.codec} {column.shape}, got {numbers.dtype}")
        if int(value.splits[-1]) != len(numbers):
            raise ValueError(f"column {column.name}: {len(numbers)} numbers, its rows hold {value.splits[-1]}")
        width = numbers.itemsize * int(np.prod(numbers.shape[1:], dtype=np.int64))
        buffers = [pa.py_buffer(value.splits * width), pa.py_buffer(np.ascontiguousarray(numbers))]
        array = pa.Array.from_buffers(pa.large_binary(), len(value.splits) - 1, [None, *buffers])
    sizes = np.diff(_offsets(array))
    if len(sizes) and sizes.max() > LARGEST_VALUE:
        row = int(sizes.argmax())
        raise ShardError(
            f"example {ids[row]}, column {column.name}: {sizes[row]} bytes, a value holds at most {LARGEST_VALUE}; "
            "give a shorter maximum length"
        )
    return array


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    return np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * array.offset)


def value_hashes(array: pa.Array) -> NDArray[np.uint64]:
    """`value_hash` of every value of a large_binary or large_string array: uint64 [B]."""
    if array.null_count == len(array):
        return np.zeros(len(array), np.uint64)
    data = memoryview(array.buffers()[2] or b"")
    digest = xxhash.xxh3_64_intdigest
    hashes = np.fromiter(
        [digest(data[start:stop]) for start, stop in pairwise(_offsets(array).tolist())], np.uint64, len(array)
    )
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return hashes
