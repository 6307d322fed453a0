"""What a column is, what the columns of a folder are, and how values and rows are hashed.

A part has KEY columns (plain strings and integers: any tool reads them, and a plan is made from them alone), one
column per VALUE (a large_binary blob through a codec, or plain text), and ``hashes``: for every row the xxh3_64 of each
of its stored values in column order. Training reads some columns only, and a projection can still be checked, value by
value. ``row_hash`` is the xxh3_64 over keys and hashes: it stands in the index and in the sealed root.

Shape rules, written into each field's metadata: a number is that many; "positions" is the row's num_positions; "any"
follows from the number of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.codecs import Codec, codec_named
from sra_data.shards.metadata import ColumnRecord, checked

HASHES = "hashes"
TEXT = "utf8"  # the one codec that is plain text in the file rather than a blob
FORMAT_VERSION = 2
MAKE_ANEW = "make it anew: sra-data align --teacher X --student Y --data D --out NEW, then sra-data cache-teacher NEW"


@dataclass(frozen=True)
class Column:
    """One value column: its name on disk, its codec, its shape rule and whether it is compressed.

    An uncompressed column of known size is read straight from the file, row by row, without Parquet's decoder.
    """

    name: str
    codec: str
    shape: tuple[int | str, ...] = ()
    compression: str = "zstd"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    nullable: bool = False

    @cached_property
    def _codec(self) -> Codec:
        return codec_named(self.codec, where=self.name)

    def resolve(self, num_positions: int) -> tuple[int, ...]:
        """The shape of one row's value; -1 where the bytes decide."""
        known = {"positions": num_positions, "any": -1}
        return tuple([known[rule] if isinstance(rule, str) else rule for rule in self.shape])

    def size(self, num_positions: int) -> int:
        """Bytes of one row's value, for columns whose shape is known beforehand."""
        return self._codec.size(self.resolve(num_positions), self.parameters)

    @cached_property
    def growth(self) -> tuple[int, int]:
        """Bytes of a value without positions, and of each position more: `size` is linear."""
        return self.size(0), self.size(1) - self.size(0)

    def encode(self, value: Any, num_positions: int) -> list[Any]:
        """Value -> buffers to store.

        Raises:
            ValueError: If the value has another dtype or shape than the column says.
        """
        shape = self.resolve(num_positions)
        found = tuple(value.shape)
        if len(found) != len(shape) or any(want not in (-1, have) for want, have in zip(shape, found, strict=True)):
            raise ValueError(f"column {self.name}: expected shape {shape}, got {found}")
        return self._codec.encode(value, self.parameters)

    def decode(self, data: memoryview, num_positions: int) -> Any:
        """Stored bytes -> value."""
        return self._codec.decode(data, self.resolve(num_positions), self.parameters)

    def metadata(self) -> dict[str, str]:
        """What the file says about the column."""
        return {
            "codec": self.codec,
            "shape": json.dumps(self.shape),
            "compression": self.compression,
            "parameters": json.dumps(dict(self.parameters)),
            "nullable": json.dumps(self.nullable),
        }


@dataclass(frozen=True)
class FolderSchema:
    """The columns of a folder's parts.

    Attributes:
        kind: "corpus", "side", "alignment" or "teacher".
        keys: names and types of the key columns.
        columns: the value columns, in file order.
        granularity: "token" (rows of a teacher's value are positions) or "span" (they are spans).
    """

    kind: str
    keys: Mapping[str, pa.DataType]
    columns: tuple[Column, ...]
    granularity: str = "token"

    def column(self, name: str) -> Column | None:
        """The value column of that name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def layers(self) -> list[int]:
        """Layers whose hidden states are stored."""
        return [int(column.name.split(".")[1]) for column in self.columns if column.name.startswith("hidden.")]

    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        return {
            "sra.format_version": str(FORMAT_VERSION),
            "sra.kind": self.kind,
            "sra.granularity": self.granularity,
            "sra.columns": json.dumps([column.name for column in self.columns]),
        }

    def canonical(self) -> str:
        """One text that says everything about the columns; part of the sealed root."""
        columns = [[column.name, column.codec, column.shape, dict(column.parameters)] for column in self.columns]
        return json.dumps([self.kind, self.granularity, list(self.keys), columns], sort_keys=True)

    def arrow(self) -> pa.Schema:
        """The Parquet schema."""
        fields = [pa.field(name, dtype, nullable=False) for name, dtype in self.keys.items()]
        fields.append(pa.field(HASHES, pa.large_binary(), nullable=False))
        for column in self.columns:
            is_text = column.codec == TEXT
            dtype = pa.large_string() if is_text else pa.large_binary()
            fields.append(pa.field(column.name, dtype, nullable=column.nullable, metadata=column.metadata()))
        return pa.schema(fields, metadata=self.metadata())


def schema_from_arrow(schema: pa.Schema, *, where: str) -> FolderSchema:
    """Read back what `FolderSchema.arrow` wrote.

    Raises:
        ShardError: If the file is not a part of shards, or of another format version.
    """
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items() if key[:4] == b"sra."}
    refuse_version(metadata.get("sra.format_version"), where=where)
    columns, names = [], json.loads(metadata["sra.columns"])
    for name in names:
        said = {key.decode(): value.decode() for key, value in (schema.field(name).metadata or {}).items()}
        value = {key: json.loads(said[key]) for key in ("shape", "parameters", "nullable")}
        value |= {"codec": said["codec"], "compression": said["compression"]}
        found = checked(ColumnRecord, value, where=f"{where}: column {name}", remedy=MAKE_ANEW)
        columns.append(
            Column(name, found.codec, tuple(found.shape), found.compression, found.parameters, found.nullable)
        )
    keys = {field.name: field.type for field in schema if field.name not in (HASHES, *names)}
    return FolderSchema(metadata["sra.kind"], keys, tuple(columns), metadata["sra.granularity"])


LONGEST_VERSION = 9  # digits that are shown


def refuse_version(found: Any, *, where: object) -> None:
    """Refuse another format version than this build's.

    Args:
        found: what a file says its version is: a number, or its digits; None where it says nothing.
        where: the file.

    Raises:
        ShardError: With the remedy.
    """
    if str(found) == str(FORMAT_VERSION):
        return
    said = str(found)[:LONGEST_VERSION]
    is_newer = said.isdecimal() and int(said) > FORMAT_VERSION
    remedy = f"update this package, or {MAKE_ANEW}" if is_newer else MAKE_ANEW
    raise ShardError(f"{where}: shard format {said}, this build reads {FORMAT_VERSION}; {remedy}")


def value_hash(data: Any) -> int:
    """xxh3_64 of one stored value; an absent text counts as 0."""
    return 0 if data is None else xxhash.xxh3_64_intdigest(data)


def row_hash(keys: Sequence[str | int], hashes: bytes | memoryview) -> int:
    """`hash_rows` of one row; `hashes`: those of its values, uint64 little endian, in column order."""
    return int(hash_rows([[key] for key in keys], np.frombuffer(hashes, "<u8")[None])[0])


def hash_rows(keys: Sequence[Sequence[str | int] | NDArray[Any]], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """xxh3_64 over each row's keys (numbers as int64, a text by its xxh3_64) and the hashes of its values.

    Args:
        keys: The key columns, [B] each.
        hashes: Of the values, [B, columns].

    Returns:
        uint64 [B].
    """
    words = np.column_stack([*map(_key_words, keys), hashes]).astype("<u8", copy=False)
    width = 8 * words.shape[1]
    data, digest = words.tobytes(), xxhash.xxh3_64_intdigest
    found = [digest(data[place : place + width]) for place in range(0, len(data), width)]
    return np.asarray(found, np.uint64)


def _key_words(column: Sequence[Any] | NDArray[Any]) -> NDArray[np.uint64]:
    """A key column as 8 bytes a row."""
    if not len(column) or not isinstance(column[0], str):
        return np.asarray(column, np.int64).view(np.uint64)
    digest = xxhash.xxh3_64_intdigest
    if column[0] == column[-1]:  # split or status: some words, over and over
        known = {text: digest(text.encode()) for text in set(column)}
        return np.fromiter(map(known.__getitem__, column), np.uint64, len(column))
    return np.asarray([digest(text.encode()) for text in column], np.uint64)
