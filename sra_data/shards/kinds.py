"""The four kinds of folder: their key and value columns, how a row becomes values, and how values become a row again.

To store another column, add it to the row (schema.py), to its kind's schema here, and to the table in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_data.shards.codecs import bits_for, scales_to_text
from sra_data.shards.columns import TEXT, Column, FolderSchema
from sra_data.shards.schema import AlignmentRow, ExampleRow, SideRow, TeacherRow, count_labels, count_positions

Row = ExampleRow | SideRow | AlignmentRow | TeacherRow

KEYS: dict[str, dict[str, pa.DataType]] = {
    "corpus": {"id": pa.string(), "split": pa.string(), "num_bytes": pa.int32()},
    "side": {
        "id": pa.string(),
        "status": pa.string(),
        "num_tokens": pa.int32(),
        "num_positions": pa.int32(),
        "num_labels": pa.int32(),
    },
    "alignment": {"id": pa.string(), "status": pa.string(), "num_spans": pa.int32()},
    "teacher": {"id": pa.string(), "num_positions": pa.int32()},
}

FAST = "lz4"  # numbers of text: beside a teacher's pages their size is nothing, and zstd costs twice the time


def corpus_schema() -> FolderSchema:
    """Columns of corpus parts."""
    return FolderSchema(
        "corpus",
        KEYS["corpus"],
        (
            Column("prompt", TEXT, nullable=True),
            Column("response", TEXT, nullable=True),
            Column("chat", TEXT, nullable=True),
        ),
    )


def side_schema() -> FolderSchema:
    """Columns of a side's parts."""
    return FolderSchema(
        "side",
        KEYS["side"],
        (
            Column("ids", "int32", ("any",), FAST),
            Column("starts", "int32", ("any",), FAST),
            Column("ends", "int32", ("any",), FAST),
            Column("kinds", "uint8", ("any",), FAST),
            Column("response_ranges", "int32", ("any", 2), FAST),
            Column("response_turns", "int32", ("any",), FAST),
            Column("response_spans", "int32", ("any", 2), FAST),
            Column("label_spans", "int32", ("any", 2), FAST),
            Column("text", TEXT, nullable=True),
        ),
    )


def alignment_schema() -> FolderSchema:
    """Columns of alignment parts."""
    return FolderSchema(
        "alignment",
        KEYS["alignment"],
        (Column("left_spans", "int32", ("any", 2), FAST), Column("right_spans", "int32", ("any", 2), FAST)),
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
    columns += [Column(f"attention.{layer}", "float32", ("positions",), "none") for layer in attention]
    for layer, width in hidden.items():
        scales = {} if hidden_dtype != "int8" else {"channel_scales": scales_to_text((channel_scales or {})[layer])}
        columns.append(Column(f"hidden.{layer}", hidden_dtype, ("positions", width), "none", scales))
    return FolderSchema("teacher", KEYS["teacher"], tuple(columns), granularity)


# --------------------------------------------------------------------------- rows and values


def key_values(row: Row) -> dict[str, str | int]:
    """The row's key columns."""
    if isinstance(row, ExampleRow):
        return {"id": row.id, "split": row.split, "num_bytes": row.num_bytes}
    if isinstance(row, SideRow):
        return {
            "id": row.id,
            "status": row.status,
            "num_tokens": len(row.ids),
            "num_positions": count_positions(row.response_spans),
            "num_labels": count_labels(row.label_spans),
        }
    if isinstance(row, AlignmentRow):
        return {"id": row.id, "status": row.status, "num_spans": len(row.left_spans)}
    return {"id": row.id, "num_positions": teacher_positions(row)}


def teacher_positions(row: TeacherRow) -> int:
    """P of a teacher's row, from whatever it holds."""
    for values in (row.positions, row.next_log_prob, row.top_k_ids):
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
        found = {column.name: values.get(column.name) for column in corpus_schema().columns}
        return ExampleRow(id=keys["id"], split=keys["split"], num_bytes=keys["num_bytes"], **found)
    if kind in _PLAIN_ROWS:
        row_type, schema = _PLAIN_ROWS[kind]
        wanted: dict[str, Any] = {column.name: values.get(column.name) for column in schema.columns}
        return row_type(id=keys["id"], status=keys["status"], **wanted)
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


_PLAIN_ROWS: dict[str, tuple[type[SideRow | AlignmentRow], FolderSchema]] = {
    "side": (SideRow, side_schema()),
    "alignment": (AlignmentRow, alignment_schema()),
}
