"""Small folders of shards for tests: arbitrary rows, and whole sets made from them.

Two sides read one corpus of prompts with responses and chats, the student's with two tokens for each of the teacher's;
one alignment, one teacher. A second teacher, where asked for, reads the student's side: any side can teach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sra_data.shards.codecs import encode_float32, estimate_channel_scales
from sra_data.shards.columns import FolderSchema
from sra_data.shards.kinds import Row
from sra_data.shards.manifest import kind_of
from sra_data.shards.schema import (
    CLOSES,
    OK,
    OPEN,
    SPECIAL,
    AlignmentRow,
    ExampleRow,
    SideRow,
    TeacherRow,
    response_positions,
)
from sra_data.shards.store import (
    VOCABULARY,
    StoredVocabulary,
    Unit,
    alignment_schema,
    begin,
    corpus_schema,
    cut_row_groups,
    record_pairs,
    save_embeddings,
    save_head,
    save_vocabulary,
    seal,
    side_schema,
    teacher_schema,
    write_part,
)

VOCAB_SIZE = 151_936
WIDTH = 8
LEFT, RIGHT = "student-00000000", "teacher-00000000"
ALIGNED = f"{LEFT}~{RIGHT}"
STUDENT_SIDE, TEACHER_SIDE = f"sides/{LEFT}", f"sides/{RIGHT}"
ALIGNMENT = f"alignments/{ALIGNED}"
TEACHER, SECOND_TEACHER = "teachers/big-00000000", "teachers/other-11111111"
TEXT_SECTIONS = ("corpus", STUDENT_SIDE, TEACHER_SIDE, ALIGNMENT)
SECTIONS = (*TEXT_SECTIONS, TEACHER)
FINGERPRINT = {"source": "words.jsonl", "tokenizer": "aaaa", "options": {"max_length": 64}}
PAIR = {
    "teacher": {"name": "models/big", "revision": "f00d"},
    "student": {"name": "models/small", "revision": None},
    "teacher_side": RIGHT,
    "student_side": LEFT,
    "alignment": ALIGNED,
}
MADE_FROM = {
    "corpus": (),
    STUDENT_SIDE: ("corpus",),
    TEACHER_SIDE: ("corpus",),
    ALIGNMENT: (STUDENT_SIDE, TEACHER_SIDE),
    TEACHER: (TEACHER_SIDE,),
    SECOND_TEACHER: (STUDENT_SIDE,),
}
FACTS: dict[str, dict[str, Any]] = {
    STUDENT_SIDE: {"tokenizer_name": "models/small"},
    TEACHER_SIDE: {"tokenizer_name": "models/big"},
    TEACHER: {"name": "models/big", "revision": "f00d", "side": RIGHT, "alignment": None},
    SECOND_TEACHER: {"name": "models/other", "revision": None, "side": LEFT, "alignment": None},
}
TEACHER_FILES = ("head.safetensors", "embeddings.safetensors")


def int32(values: object, *shape: int) -> np.ndarray:
    """An int32 array of that shape."""
    array = np.asarray(values, np.int32)
    return array.reshape(shape) if shape else array


# --------------------------------------------------------------------------- rows


def example_row(number: int, rng: np.random.Generator) -> ExampleRow:
    """A prompt with its response, or (every third) a chat."""
    length = int(rng.integers(18, 120))
    text = "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, length)) + "é 👍"
    split = "dev" if number % 5 == 0 else "train"
    prompt, response = text[:6], text[6:]
    if number % 3 != 2:
        return ExampleRow(f"id-{number}", split, len(response.encode()), prompt, response)
    turns = [
        {"role": role, "content": said} for role, said in zip(("user", "assistant"), (prompt, response), strict=True)
    ]
    chat = json.dumps({"messages": [*turns, *turns], "tools": None}, ensure_ascii=False)
    return ExampleRow(f"id-{number}", split, 2 * len(response.encode()), None, None, chat)


def side_row(example: ExampleRow, rng: np.random.Generator, *, tokens_per_word: int, skipped: str = "") -> SideRow:
    """A side's reading: words of three characters, one or two responses; a chat has the text it was rendered as."""
    number = int(example.id[3:])
    text = None if example.chat is None else f"<s>{example.chat}"
    if skipped:
        none, no_spans = int32([]), int32([], 0, 2)
        kinds = np.zeros(0, np.uint8)
        return SideRow(example.id, skipped, none, none, none, kinds, no_spans, none, no_spans, no_spans, text)
    length = 6 + example.num_bytes // 8
    spans = int32([[0, 3], [4, length]]) if number % 2 else int32([[2, length]])
    count = length * tokens_per_word + 1  # the last one closes
    starts = np.arange(count, dtype=np.int32) * (3 // tokens_per_word)
    kinds = rng.choice(np.array([OPEN, CLOSES, SPECIAL], np.uint8), count)
    return SideRow(
        id=example.id,
        status=OK,
        ids=rng.integers(0, VOCAB_SIZE, count).astype(np.int32),
        starts=starts,
        ends=starts + 3 // tokens_per_word,
        kinds=kinds,
        response_ranges=3 * spans,
        response_turns=int32([1, 3][: len(spans)] if text else [0] * len(spans)),
        response_spans=tokens_per_word * spans,
        label_spans=tokens_per_word * spans + int32([0, 1]),
        text=text,
    )


def alignment_row(left: SideRow, right: SideRow) -> AlignmentRow:
    """A span for each of the right's tokens, two of the left's."""
    for name, side in (("left", left), ("right", right)):
        if side.status != OK:
            status = side.status.replace(":", f":{name}_")
            return AlignmentRow(left.id, status, int32([], 0, 2), int32([], 0, 2))
    tokens = np.arange(len(right.ids) - 1, dtype=np.int32)
    spans = np.stack([tokens, tokens + 1], axis=1)
    return AlignmentRow(left.id, OK, 2 * spans, spans)


def teacher_row(side: SideRow, rng: np.random.Generator, schema: FolderSchema) -> TeacherRow:
    """What a teacher might have said, with every column the schema has."""
    positions = response_positions(side.response_spans)
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
        side.id,
        positions,
        hidden,
        attention,
        rng.integers(0, VOCAB_SIZE, (count, 4)).astype(np.int32),
        -np.sort(rng.random((count, 4)) * 9, axis=1).astype(np.float16),
        rng.standard_normal((2, count)).astype(np.float32),
        rng.standard_normal(count).astype(np.float32),
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
    )


def make_rows(count: int, schema: FolderSchema, *, seed: int = 0) -> dict[str, list[Any]]:
    """Rows of all folders, by section: the right side skips every seventh example, the left every eleventh."""
    rng = np.random.default_rng(seed)
    corpus = [example_row(number, rng) for number in range(count)]
    rows: dict[str, list[Any]] = {"corpus": corpus, STUDENT_SIDE: [], TEACHER_SIDE: []}
    for number, example in enumerate(corpus):
        lost, overlong = number % 11 == 6, number % 7 == 3
        left = side_row(example, rng, tokens_per_word=2, skipped="skipped:special_token_text" if lost else "")
        right = side_row(example, rng, tokens_per_word=1, skipped="skipped:overlong" if overlong else "")
        rows[STUDENT_SIDE].append(left)
        rows[TEACHER_SIDE].append(right)
    rows[ALIGNMENT] = [alignment_row(*pair) for pair in zip(rows[STUDENT_SIDE], rows[TEACHER_SIDE], strict=True)]
    rows[TEACHER] = [teacher_row(row, rng, schema) for row in rows[TEACHER_SIDE]]
    rows[SECOND_TEACHER] = [teacher_row(row, rng, schema) for row in rows[STUDENT_SIDE]]
    return rows


# --------------------------------------------------------------------------- folders


def make_units(count: int, rows_per_part: int) -> list[Unit]:
    """Parts of equal numbers of rows."""
    starts = range(0, count, rows_per_part)
    return [Unit(part, start, min(start + rows_per_part, count)) for part, start in enumerate(starts)]


def schema_of(section: str) -> FolderSchema:
    """The columns of a section's parts."""
    plain = {"corpus": corpus_schema, "side": side_schema, "alignment": alignment_schema}
    return plain.get(kind_of(section), full_teacher_schema)()


def vocabulary() -> StoredVocabulary:
    """Three strings that both sides have, left in order, right not; the last left id has no counterpart."""
    return StoredVocabulary(
        left_ids=int32([0, 2, 3]),
        right_ids=int32([4, 1, 2]),
        right_of_left=int32([4, -1, 1, 2, -1]),
        left_of_right=int32([-1, 2, 3, 2, 0, -1]),
        end_of_sequence=(1, 5),
    )


def write_section(
    shards: Path,
    section: str,
    rows: Sequence[Row],
    groups: Sequence[Sequence[int]],
    *,
    schema: FolderSchema | None = None,
    made_from: Sequence[str] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Begin, write and seal one folder; `groups` are the row groups of each part."""
    stops = np.cumsum([sum(group) for group in groups]).tolist()
    units = [Unit(part, stop - sum(groups[part]), stop) for part, stop in enumerate(stops)]
    kind = kind_of(section)
    files = {"teacher": TEACHER_FILES, "alignment": (VOCABULARY,)}.get(kind, ())
    bases = MADE_FROM[section] if made_from is None else made_from
    begin(shards, section, FINGERPRINT, lambda: units, files=files, made_from=bases)
    for unit, group in zip(units, groups, strict=True):
        write_part(shards / section, schema or schema_of(section), unit, rows[unit.start : unit.stop], group)
    if kind == "teacher":
        weight = np.arange(24, dtype=np.float32).reshape(6, 4)
        save_head(shards / section, {"weight": encode_float32(weight, "bf16")}, {"scale": "1.0"})
        save_embeddings(shards / section, int32([1, 4]), None, {"scale": "2.0"})
    if kind == "alignment":
        save_vocabulary(shards / section, vocabulary())
    seal(shards, section, FACTS.get(section) if facts is None else facts)


def cut_groups(section: str, rows: dict[str, list[Any]], units: Sequence[Unit]) -> list[list[int]]:
    """Small row groups of each part: by bytes of text, or by positions for a teacher."""
    if kind_of(section) == "teacher":
        return [
            cut_row_groups([len(row.positions) for row in rows[section][u.start : u.stop]], most=100) for u in units
        ]
    return [cut_row_groups([row.num_bytes for row in rows["corpus"][u.start : u.stop]], most=400) for u in units]


def make_shards(
    shards: Path,
    *,
    count: int = 30,
    rows_per_part: int = 12,
    hidden_dtype: str = "bf16",
    num_teachers: int = 1,
) -> dict[str, list[Any]]:
    """A whole sealed set with small parts and row groups; returns its rows by section."""
    schema = full_teacher_schema(hidden_dtype)
    rows = make_rows(count, schema)
    units = make_units(count, rows_per_part)
    for section in (*TEXT_SECTIONS, *(TEACHER, SECOND_TEACHER)[:num_teachers]):
        own_schema = schema if kind_of(section) == "teacher" else None
        write_section(shards, section, rows[section], cut_groups(section, rows, units), schema=own_schema)
    record_pairs(shards, [PAIR])
    return {section: rows[section] for section in (*TEXT_SECTIONS, *(TEACHER, SECOND_TEACHER)[:num_teachers])}
