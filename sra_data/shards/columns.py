"""The columns of each kind of folder, how a row becomes their values, and how they become a row again.

A part has KEY columns (plain strings and integers: any tool reads them, and a plan is made from them alone), one
column per VALUE (a large_binary blob through a codec, or plain text), and ``hashes``: for every row the xxh3_64 of each
of its stored values in column order. Training reads some columns only, and a projection can still be checked, value by
value. ``row_hash`` is the xxh3_64 over keys and hashes: it stands in the index and in the sealed root.

Shape rules, written into each field's metadata: a number is that many; "positions" is the row's num_positions; "any"
follows from the number of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.codecs import Codec, bits_for, codec_named, scales_to_text
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, count_positions

Row = CorpusRow | AlignmentRow | TeacherRow
HASHES = "hashes"
TEXT = "utf8"  # the one codec that is plain text in the file rather than a blob
FORMAT_VERSION = 1

KEYS: dict[str, dict[str, pa.DataType]] = {
    "corpus": {
        "id": pa.string(),
        "split": pa.string(),
        "status": pa.string(),
        "num_tokens": pa.int32(),
        "num_positions": pa.int32(),
    },
    "alignment": {
        "id": pa.string(),
        "status": pa.string(),
        "num_student_tokens": pa.int32(),
        "num_labels": pa.int32(),
        "num_spans": pa.int32(),
    },
    "teacher": {"id": pa.string(), "num_positions": pa.int32()},
}


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
        }


@dataclass(frozen=True)
class FolderSchema:
    """The columns of a folder's parts.

    Attributes:
        kind: "corpus", "alignment" or "teacher".
        columns: the value columns, in file order.
        granularity: "token" (rows of a teacher's value are positions) or "span" (they are spans).
    """

    kind: str
    columns: tuple[Column, ...]
    granularity: str = "token"

    @property
    def keys(self) -> dict[str, pa.DataType]:
        """Names and types of the key columns."""
        return KEYS[self.kind]

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
            nullable = column.name == "student_text"
            fields.append(pa.field(column.name, dtype, nullable=nullable, metadata=column.metadata()))
        return pa.schema(fields, metadata=self.metadata())


def schema_from_arrow(schema: pa.Schema, *, where: str) -> FolderSchema:
    """Read back what `FolderSchema.arrow` wrote.

    Raises:
        ShardError: If the file is not a part of shards, or of another format version.
    """
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items() if key[:4] == b"sra."}
    version = metadata.get("sra.format_version")
    if version != str(FORMAT_VERSION):
        raise ShardError(
            f"{where}: shard format {version}, this build reads {FORMAT_VERSION}; run `sra-data align` again"
        )
    columns = []
    for name in json.loads(metadata["sra.columns"]):
        said = {key.decode(): value.decode() for key, value in schema.field(name).metadata.items()}
        shape = tuple(json.loads(said["shape"]))
        columns.append(Column(name, said["codec"], shape, said["compression"], json.loads(said["parameters"])))
    return FolderSchema(metadata["sra.kind"], tuple(columns), metadata["sra.granularity"])


# --------------------------------------------------------------------------- the three kinds


def corpus_schema() -> FolderSchema:
    """Columns of corpus parts."""
    return FolderSchema(
        "corpus",
        (
            Column("text", TEXT),
            Column("response_ranges", "int32", ("any", 2)),
            Column("teacher_ids", "int32", ("any",)),
            Column("teacher_ends", "int32", ("any",)),
            Column("teacher_response_spans", "int32", ("any", 2)),
        ),
    )


def alignment_schema() -> FolderSchema:
    """Columns of alignment parts."""
    return FolderSchema(
        "alignment",
        (
            Column("student_ids", "int32", ("any",)),
            Column("student_ends", "int32", ("any",)),
            Column("label_spans", "int32", ("any", 2)),
            Column("student_spans", "int32", ("any", 2)),
            Column("teacher_spans", "int32", ("any", 2)),
            Column("student_text", TEXT),
        ),
    )


def teacher_schema(
    *,
    hidden: Mapping[int, int],
    hidden_dtype: str = "bf16",
    channel_scales: Mapping[int, NDArray[np.float32]] | None = None,
    attention: Sequence[int] = (),
    top_k: int = 0,
    vocab_size: int = 0,
    top_k_dtype: str = "fp16",
    num_temperatures: int = 0,
    num_sampled: int = 0,
    next_log_prob: bool = True,
    granularity: str = "token",
) -> FolderSchema:
    """Columns of teacher parts.

    Args:
        hidden: layer -> channels D; empty for none.
        hidden_dtype: one of `HIDDEN_DTYPES`.
        channel_scales: layer -> float32 [D]; needed by "int8".
        attention: layers whose last-query attention is stored.
        top_k: entries per position, 0 for none; ids are packed to the bits `vocab_size` needs.
        top_k_dtype: "fp16" or "fp32".
        num_temperatures: rows of log_tails, 0 for none.
        num_sampled: sampled ids per position, 0 for none.
        next_log_prob: whether the log-probability of the token that follows is stored.
        granularity: "token" or "span".
    """
    columns = []
    packed = {"bits": bits_for(vocab_size)}
    if top_k:
        columns.append(Column("top_k.ids", "packed_ids", ("positions", top_k), parameters=packed))
        columns.append(Column("top_k.values", f"sorted_{top_k_dtype}", ("positions", top_k)))
    if num_temperatures:
        columns.append(Column("log_tails", "float32", (num_temperatures, "positions")))
    if next_log_prob:
        columns.append(Column("next_log_prob", "float32", ("positions",)))
    if num_sampled:
        columns.append(Column("sampled.ids", "packed_ids", ("positions", num_sampled), parameters=packed))
        columns.append(Column("sampled.weights", "float32", ("positions", num_sampled)))
    columns += [Column(f"attention.{layer}", "float32", ("positions",), "none") for layer in attention]
    for layer, width in hidden.items():
        scales = {} if hidden_dtype != "int8" else {"channel_scales": scales_to_text((channel_scales or {})[layer])}
        columns.append(Column(f"hidden.{layer}", hidden_dtype, ("positions", width), "none", scales))
    return FolderSchema("teacher", tuple(columns), granularity)


# --------------------------------------------------------------------------- rows and values


def key_values(row: Row) -> dict[str, str | int]:
    """The row's key columns."""
    if isinstance(row, CorpusRow):
        return {
            "id": row.id,
            "split": row.split,
            "status": row.status,
            "num_tokens": len(row.teacher_ids),
            "num_positions": count_positions(row.teacher_response_spans),
        }
    if isinstance(row, AlignmentRow):
        labels = row.label_spans
        return {
            "id": row.id,
            "status": row.status,
            "num_student_tokens": len(row.student_ids),
            # Nothing stands before token 0 to predict it from: the only label that cannot be learnt.
            "num_labels": int((labels[:, 1] - np.maximum(labels[:, 0], 1)).clip(min=0).sum()),
            "num_spans": len(row.student_spans),
        }
    return {"id": row.id, "num_positions": teacher_positions(row)}


def teacher_positions(row: TeacherRow) -> int:
    """P of a teacher's row, from whatever it holds."""
    for values in (row.positions, row.next_log_prob, row.top_k_ids, row.sampled_ids):
        if values is not None:
            return len(values)
    for tensors in (row.attention, row.hidden):
        for tensor in tensors.values():
            return len(tensor)
    raise ValueError(f"teacher's row {row.id} holds nothing")


_TEACHER_FIELDS = {
    "top_k.ids": "top_k_ids",
    "top_k.values": "top_k_values",
    "log_tails": "log_tails",
    "next_log_prob": "next_log_prob",
    "sampled.ids": "sampled_ids",
    "sampled.weights": "sampled_weights",
}


def column_value(row: Row, name: str) -> Any:
    """What the row holds for a value column."""
    if isinstance(row, TeacherRow):
        if name in _TEACHER_FIELDS:
            return getattr(row, _TEACHER_FIELDS[name])
        kind, _, layer = name.partition(".")
        tensors: Mapping[int, Any] = row.hidden if kind == "hidden" else row.attention
        return tensors.get(int(layer))
    return getattr(row, name)


def build_row(kind: str, keys: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """A row from its keys and decoded values; what was not read stays None or out of the dictionaries."""
    if kind == "corpus":
        found: dict[str, Any] = {column.name: values.get(column.name) for column in corpus_schema().columns}
        return CorpusRow(id=keys["id"], split=keys["split"], status=keys["status"], **found)
    if kind == "alignment":
        found = {column.name: values.get(column.name) for column in alignment_schema().columns}
        return AlignmentRow(id=keys["id"], status=keys["status"], **found)
    fields: dict[str, Any] = {"hidden": {}, "attention": {}}
    for name, value in values.items():
        if name in _TEACHER_FIELDS:
            fields[_TEACHER_FIELDS[name]] = value
        elif name == "positions":
            fields["positions"] = value
        else:
            group, _, layer = name.partition(".")
            fields[group][int(layer)] = value
    return TeacherRow(id=keys["id"], **fields)


def value_hash(data: Any) -> int:
    """xxh3_64 of one stored value; an absent text counts as 0."""
    return 0 if data is None else xxhash.xxh3_64_intdigest(data)


def row_hash(keys: Sequence[str | int], hashes: bytes | memoryview) -> int:
    """xxh3_64 over a row's key values and the hashes of its values."""
    hasher = xxhash.xxh3_64(json.dumps(list(keys)).encode())
    hasher.update(hashes)
    return hasher.intdigest()


def hash_rows(keys: Sequence[Sequence[str | int]], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`row_hash` of many rows: their key columns, and the hashes of their values [B, columns], give uint64 [B]."""
    # What json.dumps writes for a list of texts and whole numbers, a column at a time.
    written: list[Iterable[str]] = []
    for column in keys:
        write: Callable[[Any], str] = encode_basestring_ascii if column and isinstance(column[0], str) else str
        written.append(map(write, column))
    width = 8 * hashes.shape[1]
    blob = np.ascontiguousarray(hashes, "<u8").tobytes()
    digest = xxhash.xxh3_64_intdigest
    found = [
        digest(f"[{', '.join(row)}]".encode() + blob[place : place + width])
        for row, place in zip(zip(*written, strict=True), range(0, len(blob), width), strict=True)
    ]
    return np.asarray(found, np.uint64)
