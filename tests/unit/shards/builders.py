"""Small folders of shards for tests: arbitrary rows, and whole sets made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sra_data.shards.codecs import encode_float32, estimate_channel_scales
from sra_data.shards.columns import FolderSchema, Row
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, response_positions
from sra_data.shards.store import (
    Unit,
    alignment_schema,
    begin,
    corpus_schema,
    cut_row_groups,
    save_embeddings,
    save_head,
    seal,
    teacher_schema,
    write_part,
)

VOCAB_SIZE = 151_936
WIDTH = 8
ALIGNMENT = "alignments/student-00000000"
FINGERPRINT = {"source": "words.jsonl", "teacher_tokenizer": "aaaa", "options": {"max_length": 64}}


def int32(values: object, *shape: int) -> np.ndarray:
    """An int32 array of that shape."""
    array = np.asarray(values, np.int32)
    return array.reshape(shape) if shape else array


def corpus_row(number: int, rng: np.random.Generator) -> CorpusRow:
    """A row with one or two responses; every seventh is skipped."""
    if number % 7 == 3:
        none = int32([])
        return CorpusRow(
            f"id-{number}", "train", "skipped:teacher_overlong", "x é 👍", int32([], 0, 2), none, none, int32([], 0, 2)
        )
    length = int(rng.integers(6, 40))
    spans = int32([[0, 3], [4, length]]) if number % 2 else int32([[2, length]])
    ids = rng.integers(0, VOCAB_SIZE, length).astype(np.int32)
    text = "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, 3 * length))
    ends = np.arange(3, 3 * length + 1, 3, dtype=np.int32)
    split = "dev" if number % 5 == 0 else "train"
    return CorpusRow(f"id-{number}", split, "ok", text, 3 * spans, ids, ends, spans)


def alignment_row(corpus: CorpusRow, rng: np.random.Generator) -> AlignmentRow:
    """Its alignment with a student of two tokens for each of the teacher's; even ids see another text."""
    length = len(corpus.teacher_ids)
    ids = rng.integers(0, 50_257, 2 * length).astype(np.int32)
    spans = np.stack([np.arange(length), np.arange(length) + 1], axis=1).astype(np.int32)
    text = None if int(corpus.id[3:]) % 2 else corpus.text + " "
    labels = 2 * corpus.teacher_response_spans
    return AlignmentRow(
        corpus.id, corpus.status, ids, np.arange(2 * length, dtype=np.int32), labels, 2 * spans, spans, text
    )


def teacher_row(corpus: CorpusRow, rng: np.random.Generator, schema: FolderSchema) -> TeacherRow:
    """What a teacher might have said, with every column the schema has."""
    positions = response_positions(corpus.teacher_response_spans)
    count = len(positions)
    hidden, attention = {}, {}
    for column in schema.columns:
        layer = int(column.name.split(".")[1]) if column.name.split(".")[0] in ("hidden", "attention") else 0
        if column.name.startswith("hidden."):
            values = rng.standard_normal((count, int(column.shape[1]))).astype(np.float32)
            hidden[layer] = encode_float32(values, column.codec, CHANNEL_SCALES)
        elif column.name.startswith("attention."):
            attention[layer] = rng.random(count, dtype=np.float32)
    return TeacherRow(
        corpus.id,
        positions,
        hidden,
        attention,
        rng.integers(0, VOCAB_SIZE, (count, 4)).astype(np.int32),
        -np.sort(rng.random((count, 4)) * 9, axis=1).astype(np.float16),
        rng.standard_normal((2, count)).astype(np.float32),
        rng.standard_normal(count).astype(np.float32),
        rng.integers(0, VOCAB_SIZE, (count, 3)).astype(np.int32),
        rng.random((count, 3), dtype=np.float32),
    )


CHANNEL_SCALES = estimate_channel_scales(np.random.default_rng(7).standard_normal((64, WIDTH)).astype(np.float32))


def full_teacher_schema(hidden_dtype: str = "bf16") -> FolderSchema:
    """A teacher's folder with every kind of column."""
    return teacher_schema(
        hidden={2: WIDTH, 4: WIDTH},
        hidden_dtype=hidden_dtype,
        channel_scales={2: CHANNEL_SCALES, 4: CHANNEL_SCALES},
        attention=[4],
        top_k=4,
        vocab_size=VOCAB_SIZE,
        num_temperatures=2,
        num_sampled=3,
    )


def make_rows(count: int, schema: FolderSchema, seed: int = 0) -> dict[str, list[Row]]:
    """Rows of all three folders, by section."""
    rng = np.random.default_rng(seed)
    corpus = [corpus_row(number, rng) for number in range(count)]
    return {
        "corpus": list(corpus),
        ALIGNMENT: [alignment_row(row, rng) for row in corpus],
        "teacher": [teacher_row(row, rng, schema) for row in corpus],
    }


def make_units(count: int, rows_per_part: int) -> list[Unit]:
    """Parts of equal numbers of rows."""
    starts = range(0, count, rows_per_part)
    return [Unit(part, start, min(start + rows_per_part, count)) for part, start in enumerate(starts)]


def write_section(
    shards: Path, section: str, schema: FolderSchema, rows: Sequence[Row], groups: Sequence[Sequence[int]]
) -> None:
    """Begin, write and seal one folder; `groups` are the row groups of each part."""
    stops = np.cumsum([sum(group) for group in groups]).tolist()
    units = [Unit(part, stop - sum(groups[part]), stop) for part, stop in enumerate(stops)]
    files = ("head.safetensors", "embeddings.safetensors") if section == "teacher" else ()
    begin(shards, section, FINGERPRINT, lambda: units, files=files)
    for unit, group in zip(units, groups, strict=True):
        write_part(shards / section, schema, unit, rows[unit.start : unit.stop], group)
    if section == "teacher":
        weight = np.arange(24, dtype=np.float32).reshape(6, 4)
        save_head(shards / section, {"weight": encode_float32(weight, "bf16")}, {"scale": "1.0"})
        save_embeddings(shards / section, int32([1, 4]), None, {"scale": "2.0"})
    seal(shards, section)


def make_shards(
    shards: Path, *, count: int = 30, rows_per_part: int = 12, hidden_dtype: str = "bf16"
) -> dict[str, list[Row]]:
    """A whole sealed set with small parts and row groups; returns its rows by section."""
    schema = full_teacher_schema(hidden_dtype)
    rows = make_rows(count, schema)
    groups = []
    for unit in make_units(count, rows_per_part):
        counts = [row.num_positions for row in rows["corpus"][unit.start : unit.stop] if isinstance(row, CorpusRow)]
        groups.append(cut_row_groups(counts, max_positions=100))
    schemas = {"corpus": corpus_schema(), ALIGNMENT: alignment_schema(), "teacher": schema}
    for section, section_schema in schemas.items():
        write_section(shards, section, section_schema, rows[section], groups)
    return rows
