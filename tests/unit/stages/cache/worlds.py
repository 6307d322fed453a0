"""A small folder of shards without `align`: random ids on two sides, their alignment, and models to read them.

    world = write_world(folder)          # world.shards, world.teacher (with its tokenizer), world.options(top_k=5)

Row 3 is skipped on both sides. The student's side has two tokens for each of the teacher's, so every token of a
response is a span. The tokenizers are only there to be recognised: no id comes from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.kinds import Row
from sra_data.shards.schema import AlignmentRow, ExampleRow, SideRow
from sra_data.shards.store import (
    VOCABULARY,
    FolderSchema,
    Manifest,
    StoredVocabulary,
    Unit,
    alignment_name,
    alignment_schema,
    begin,
    corpus_schema,
    record_pairs,
    save_vocabulary,
    seal,
    side_schema,
    write_part,
)
from sra_data.stages.cache.options import CacheOptions
from sra_data.teacher.spec import CaptureOptions, TeacherSpec
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level, train_unigram

ROWS_PER_PART = 5
NUM_ROWS = 13
TEACHER_SIDE, STUDENT_SIDE = "teacher-aaaaaaaa", "student-bbbbbbbb"
ALIGNMENT = alignment_name(TEACHER_SIDE, STUDENT_SIDE)
LONGEST = 12


@dataclass(frozen=True)
class World:
    """Where everything is."""

    shards: Path
    teacher: Path
    student: Path

    def options(self, **changes: Any) -> CacheOptions:
        """Options for the CPU: top 5, float32, small batches; `changes` by name, of whichever part they are."""
        capture = CaptureOptions(top_k=5, hidden_dtype="fp32")
        spec = TeacherSpec(device="cpu")
        return changed(CacheOptions(str(self.shards), spec, capture=capture, batch_tokens=30), **changes)


def changed(options: CacheOptions, **changes: Any) -> CacheOptions:
    """The same with other options; the teacher's `name` too."""
    kinds: dict[str, Any] = {"teacher": TeacherSpec, "capture": CaptureOptions}
    for part, kind in kinds.items():
        own = {name: changes.pop(name) for name in list(changes) if name in kind.__dataclass_fields__}
        options = replace(options, **{part: replace(getattr(options, part), **own)})
    return replace(options, **changes)


def side_row(number: int, *, per_token: int = 1) -> SideRow:
    """Example `number`: 6 to 12 tokens, the last half its response; number 3 is skipped."""
    random = np.random.default_rng(number)
    none, pairs = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    if number == 3:
        return SideRow(
            f"e{number}", "skipped:overlong", none, none, none, none.astype(np.uint8), pairs, none, pairs, pairs
        )
    length = int(random.integers(6, LONGEST + 1))
    ids = np.repeat(random.integers(3, 97, length).astype(np.int32), per_token)
    starts = np.arange(len(ids), dtype=np.int32)
    spans = per_token * np.array([[length // 2, length - 1]], np.int32)
    return SideRow(
        id=f"e{number}",
        status="ok",
        ids=ids,
        starts=starts,
        ends=starts + 1,
        kinds=np.ones(len(ids), np.uint8),
        response_ranges=spans,
        response_turns=np.zeros(1, np.int32),
        response_spans=spans,
        label_spans=spans,
    )


def alignment_row(number: int) -> AlignmentRow:
    """Spans of one token of the teacher's and two of the student's: the student is the left side."""
    teacher = side_row(number)
    if number == 3:
        nothing = np.zeros((0, 2), np.int32)
        return AlignmentRow(teacher.id, "skipped:left_overlong", nothing, nothing)
    start, stop = teacher.response_spans[0].tolist()
    spans = np.stack([np.arange(start, stop), np.arange(start, stop) + 1], axis=1).astype(np.int32)
    return AlignmentRow(teacher.id, "ok", 2 * spans, spans)


def make_units() -> list[Unit]:
    """Three parts."""
    starts = range(0, NUM_ROWS, ROWS_PER_PART)
    return [Unit(part, start, min(start + ROWS_PER_PART, NUM_ROWS)) for part, start in enumerate(starts)]


def write_section(
    shards: Path,
    section: str,
    schema: FolderSchema,
    rows: Sequence[Row],
    facts: dict[str, Any],
    *,
    made_from: Sequence[str] = ("corpus",),
    vocabulary: StoredVocabulary | None = None,
) -> None:
    """One sealed folder."""
    files = () if vocabulary is None else (VOCABULARY,)
    units = make_units()
    begin(shards, section, {"made": section}, lambda: units, files=files, made_from=made_from)
    if vocabulary is not None:
        save_vocabulary(shards / section, vocabulary)
    for unit in units:
        part = rows[unit.start : unit.stop]
        write_part(shards / section, schema, unit, part, [2, len(part) - 2])
    seal(shards, section, facts)


def forget(shards: Path, section: str) -> None:
    """Take a folder away, and the manifest's word of it."""
    shutil.rmtree(shards / section)
    change_manifest(shards, lambda manifest: manifest[section.partition("/")[0]].pop(section.partition("/")[2]))


def change_manifest(shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` change it."""
    manifest = Manifest.load(shards)
    change(manifest.content)
    manifest.write()


def write_side(
    shards: Path,
    name: str,
    model: Path,
    *,
    per_token: int = 1,
    max_length: int = 64,
    numbers: Sequence[int] = range(NUM_ROWS),
) -> None:
    """A sealed side, read by the tokenizer beside a model; `numbers` are those of the examples its rows are like."""
    facts = {
        "tokenizer_name": str(model),
        "revision": None,
        "tokenizer": SideTokenizer.load(str(model)).fingerprint,
        "max_length": max_length,
    }
    rows = [replace(side_row(like, per_token=per_token), id=f"e{row}") for row, like in enumerate(numbers)]
    write_section(shards, f"sides/{name}", side_schema(), rows, facts)


def write_alignment(shards: Path, name: str = ALIGNMENT, *, without: Collection[int] = ()) -> None:
    """The alignment of the two sides, sealed; the student lacks the examples `without`."""
    nothing = np.zeros(0, np.int32)
    rows = [alignment_row(number) for number in range(NUM_ROWS)]
    for number in without:
        none = nothing.reshape(0, 2)
        rows[number] = AlignmentRow(rows[number].id, "skipped:left_overlong", none, none)
    write_section(
        shards,
        f"alignments/{name}",
        alignment_schema(),
        rows,
        {},
        made_from=(f"sides/{STUDENT_SIDE}", f"sides/{TEACHER_SIDE}"),
        vocabulary=StoredVocabulary(nothing, nothing, nothing, nothing, None),
    )


def pair_of(teacher: Path, student: Path, *, teacher_side: str = TEACHER_SIDE) -> dict[str, Any]:
    """What the manifest says of an aligned pair."""
    return {
        "teacher": {"name": str(teacher), "revision": None},
        "student": {"name": str(student), "revision": None},
        "teacher_side": teacher_side,
        "student_side": STUDENT_SIDE,
        "alignment": ALIGNMENT,
    }


def save_teacher(folder: Path, **overrides: Any) -> Path:
    """A tiny Llama with a byte-level tokenizer beside it."""
    tiny_model("llama", **overrides).save_pretrained(folder)
    train_byte_level().save_pretrained(folder)
    return folder


def write_world(folder: Path, teacher: Path) -> World:
    """Shards for a teacher that is there, and a student's tokenizer."""
    student, shards = folder / "student", folder / "shards"
    train_unigram().save_pretrained(student)
    examples = [
        ExampleRow(f"e{number}", "train" if number % 4 else "dev", number, "p", "r") for number in range(NUM_ROWS)
    ]
    write_section(shards, "corpus", corpus_schema(), examples, {"source": ["test"]})
    write_side(shards, TEACHER_SIDE, teacher)
    write_side(shards, STUDENT_SIDE, student, per_token=2)
    write_alignment(shards)
    record_pairs(shards, [pair_of(teacher, student)])
    return World(shards, teacher, student)
