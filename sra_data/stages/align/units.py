"""One unit of an alignment: some rows of the source become one part of the corpus and one of the alignment.

A unit is a pure function of its spec: rows are read again from their range, rendered, cut by both tokenizers, aligned
and written, in batches whose borders follow from the rows alone, so whoever runs a unit writes the same bytes. While
one batch is aligned each tokenizer, in a thread of its own, already cuts the next ones, of the next unit too
(tokenizers let go of the interpreter), and while one unit is written the next is aligned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sra_data.corpus.chat import Rendered, Renderer
from sra_data.corpus.examples import Row
from sra_data.corpus.sources import Source, SourceRange
from sra_data.corpus.tokenization import Side, SideTokenizer, TokenizedBatch
from sra_data.shards.schema import OK
from sra_data.shards.store import (
    TEXT_POSITIONS_PER_GROUP,
    EncodedRows,
    Plan,
    Receipt,
    Unit,
    alignment_columns,
    corpus_columns,
    cut_row_groups,
    missing_units,
    write_columns,
)
from sra_data.spans.alignment import Boundaries, SpanTable, align, segments_for
from sra_data.spans.ragged import Ragged
from sra_data.spans.vocabulary import SharedVocabulary
from sra_data.stages.align.counts import AlignCounts
from sra_data.stages.align.plan import split_of, text_bytes

ROWS_PER_BATCH = 1024  # tokenizers cut 1,024 texts at once for a tenth less than four times 256
TEXT_BYTES_PER_BATCH = 1_000_000
BATCHES_AHEAD = 2
EMPTY_RANGES: NDArray[np.int32] = np.zeros((0, 2), dtype=np.int32)


@dataclass(frozen=True)
class UnitOptions:
    """What the content of a unit depends on beside its rows and tokenizers; the same names as the stage's options."""

    on_invalid: str
    dev_share: float
    teacher_max_length: int | None
    student_max_length: int | None
    overlong: Literal["skip", "truncate-prompt", "truncate"]
    boundaries: Boundaries
    max_spans: int


@dataclass
class AlignWorker:
    """Everything one process needs to do units.

    Attributes:
        sources: The sources of `--data` and `--dev-data`; units name them by index.
        vocabulary: What both sides share, for the counts.
        corpus: Folder of the corpus's parts; those that exist are not written again. `alignment` likewise.
    """

    sources: Sequence[Source]
    teacher: SideTokenizer
    student: SideTokenizer
    vocabulary: SharedVocabulary
    options: UnitOptions
    corpus: Path
    alignment: Path
    renderers: dict[str, Renderer] = field(init=False)

    def __post_init__(self) -> None:
        self.renderers = {"teacher": Renderer(self.teacher), "student": Renderer(self.student)}

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, int]]:
        """Do units one after the other; yields each with its tokens of both sides once it is on disk."""
        with threads("teacher", "student", "corpus-writer", "alignment-writer") as (teacher, student, *writers):
            waiting: tuple[Unit, int, list[Future[Receipt]]] | None = None
            for unit, batches in groupby(self._encoded(units, teacher, student), key=itemgetter(0)):
                made = UnitRows([], [], AlignCounts())
                for _, batch in batches:
                    self._align(batch, made)
                num_rows = sum(len(rows.row_hashes) for rows in made.corpus)
                assert num_rows == unit.stop - unit.start, "the scan and the unit read the same rows"
                if waiting is not None:
                    yield _finished(*waiting)
                waiting = (unit, made.counts.total_tokens, self._write(unit, made, writers))
            if waiting is not None:
                yield _finished(*waiting)

    def _write(self, unit: Unit, rows: UnitRows, writers: Sequence[ThreadPoolExecutor]) -> list[Future[Receipt]]:
        """Begin to write the parts that are missing, each folder's in a thread of its own."""
        num_positions = np.concatenate([batch.num_positions for batch in rows.corpus]).tolist()
        row_groups = cut_row_groups(num_positions, max_positions=TEXT_POSITIONS_PER_GROUP)
        parts = ((self.corpus, rows.corpus, None), (self.alignment, rows.alignment, rows.counts.to_json()))
        return [
            writer.submit(write_columns, folder, unit, encoded, row_groups, notes=notes)
            for writer, (folder, encoded, notes) in zip(writers, parts, strict=True)
            if _is_missing(folder, unit)
        ]

    def _encoded(
        self, units: Sequence[Unit], teacher: ThreadPoolExecutor, student: ThreadPoolExecutor
    ) -> Iterator[tuple[Unit, EncodedBatch]]:
        """Every batch cut by both tokenizers, in order, a few batches ahead of who asks."""
        ahead: deque[tuple[Unit, list[tuple[Row, str]], Future[EncodedSide], Future[EncodedSide]]] = deque()
        for unit, rows in self._batches(units):
            examples = [row for row, _ in rows]
            # A plain row is the same text for both sides; a chat is rendered by each side's own template.
            plain = self.renderers["teacher"].render(examples) if examples[0].messages is None else None
            sides = (
                teacher.submit(self._encode, "teacher", examples, plain),
                student.submit(self._encode, "student", examples, plain),
            )
            ahead.append((unit, rows, *sides))
            if len(ahead) > BATCHES_AHEAD:
                yield _encoded_batch(*ahead.popleft())
        while ahead:
            yield _encoded_batch(*ahead.popleft())

    def _batches(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[tuple[Row, str]]]]:
        """The rows of every unit with their splits, read again from their range."""
        for unit in units:
            hint = dict(unit.hint)
            source = self.sources[hint.pop("source")]
            located = source.read(SourceRange.from_json(hint), on_invalid=self.options.on_invalid)
            kept = ((item.row, split_of(item.row, self.options.dev_share)) for item in located)
            for rows in cut_batches((row, split) for row, split in kept if split != "test"):
                yield unit, rows

    def _encode(self, side: Side, examples: list[Row], plain: Rendered | None) -> EncodedSide:
        """Examples as one side reads them: plain ones as they were rendered, chats by its own template."""
        is_teacher = side == "teacher"
        tokenizer = self.teacher if is_teacher else self.student
        rendered = plain or self.renderers[side].render(examples)
        tokens = tokenizer.encode(
            rendered.texts,
            response_ranges=rendered.ranges,
            is_chat=plain is None,
            max_length=self.options.teacher_max_length if is_teacher else self.options.student_max_length,
            overlong=self.options.overlong,
            side=side,
            names=[row.where for row in examples],
            skip_unlocatable=self.options.on_invalid == "skip",
        )
        return EncodedSide(rendered, tokens)

    def _align(self, batch: EncodedBatch, made: UnitRows) -> None:
        teacher, student = batch.teacher, batch.student
        teacher_statuses, student_statuses = teacher.statuses(), student.statuses()
        statuses = [
            teacher_status if teacher_status != OK else student_status
            for teacher_status, student_status in zip(teacher_statuses, student_statuses, strict=True)
        ]
        ranges = [
            _same_turns(teacher.rendered, student.rendered, index) if status == OK else (EMPTY_RANGES, EMPTY_RANGES)
            for index, status in enumerate(statuses)
        ]
        segments = segments_for(
            student_texts=student.rendered.texts,
            student_ranges=[pair[1] for pair in ranges],
            teacher_texts=teacher.rendered.texts,
            teacher_ranges=[pair[0] for pair in ranges],
        )
        table = align(
            student=student.tokens.offsets,
            teacher=teacher.tokens.offsets,
            segments=segments,
            student_texts=student.rendered.texts,
            boundaries=self.options.boundaries,
            max_spans=self.options.max_spans,
        )
        self._count(batch, statuses, table, made.counts)
        made.corpus.append(_corpus_columns(batch, teacher_statuses))
        made.alignment.append(_alignment_columns(batch, table, statuses))

    def _count(self, batch: EncodedBatch, statuses: list[str], table: SpanTable, counts: AlignCounts) -> None:
        teacher, student = batch.teacher, batch.student
        counts.add_batch(
            statuses=statuses,
            table=table,
            teacher=teacher.tokens.offsets,
            teacher_ranges=teacher.rendered.ranges,
        )
        counts.add_tokens(
            student_ids=student.tokens.ids,
            teacher_ids=teacher.tokens.ids,
            student_spans=student.tokens.response_spans,
            teacher_spans=teacher.tokens.response_spans,
            statuses=statuses,
            vocabulary=self.vocabulary,
        )
        for name, side in (("teacher", teacher), ("student", student)):
            counts.cut.update({f"{name}_{reason}": count for reason, count in side.tokens.counts.items()})


@dataclass(frozen=True)
class EncodedSide:
    """Some rows as one side reads them."""

    rendered: Rendered
    tokens: TokenizedBatch

    def statuses(self) -> list[str]:
        """Why a row is left out on this side, or ``ok``; the template's reason before the tokenizer's."""
        return [
            first if first != OK else second
            for first, second in zip(self.rendered.statuses, self.tokens.status, strict=True)
        ]


@dataclass(frozen=True)
class EncodedBatch:
    """Some rows as both sides read them."""

    rows: list[Row]
    splits: list[str]
    teacher: EncodedSide
    student: EncodedSide


@dataclass
class UnitRows:
    """The rows of one unit, batch by batch, and what was counted."""

    corpus: list[EncodedRows]
    alignment: list[EncodedRows]
    counts: AlignCounts


def _same_turns(teacher: Rendered, student: Rendered, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The ranges of the responses that both templates kept."""
    teacher_turns, student_turns = teacher.turns[index], student.turns[index]
    if teacher_turns == student_turns:
        return teacher.ranges[index], student.ranges[index]
    both = set(teacher_turns) & set(student_turns)
    return (
        teacher.ranges[index][[turn in both for turn in teacher_turns]],
        student.ranges[index][[turn in both for turn in student_turns]],
    )


def _corpus_columns(batch: EncodedBatch, statuses: Sequence[str]) -> EncodedRows:
    rendered, tokens = batch.teacher.rendered, batch.teacher.tokens
    keep = _is_ok(statuses)
    return corpus_columns(
        ids=[row.id for row in batch.rows],
        splits=batch.splits,
        statuses=statuses,
        texts=rendered.texts,
        response_ranges=Ragged.from_list(rendered.ranges, np.int32, (2,)),
        teacher_ids=_only(tokens.ids, keep),
        teacher_ends=_only(tokens.offsets.ends, keep),
        teacher_response_spans=_only(tokens.response_spans, keep),
    )


def _alignment_columns(batch: EncodedBatch, table: SpanTable, statuses: Sequence[str]) -> EncodedRows:
    tokens = batch.student.tokens
    keep = _is_ok(statuses)
    texts = zip(batch.teacher.rendered.texts, batch.student.rendered.texts, strict=True)
    return alignment_columns(
        ids=[row.id for row in batch.rows],
        statuses=statuses,
        student_ids=_only(tokens.ids, keep),
        student_ends=_only(tokens.offsets.ends, keep),
        label_spans=_only(tokens.label_spans, keep),
        student_spans=_only(table.student_spans, keep),
        teacher_spans=_only(table.teacher_spans, keep),
        student_texts=[None if text == teacher_text else text for teacher_text, text in texts],
    )


def _is_ok(statuses: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([status == OK for status in statuses], dtype=bool)


def _only(rows: Ragged, keep: NDArray[np.bool_]) -> Ragged:
    """The same rows, those not kept without values."""
    if keep.all():
        return rows
    return Ragged.from_lengths(rows.values[np.repeat(keep, rows.lengths)], rows.lengths * keep)


def cut_batches(rows: Iterable[tuple[Row, str]]) -> Iterator[list[tuple[Row, str]]]:
    """Neighbouring rows of one kind (plain or chat), bounded in number and text."""
    batch: list[tuple[Row, str]] = []
    size = 0
    for row, split in rows:
        length = text_bytes(row)
        is_other_kind = bool(batch) and (batch[0][0].messages is None) != (row.messages is None)
        if batch and (len(batch) >= ROWS_PER_BATCH or size + length > TEXT_BYTES_PER_BATCH or is_other_kind):
            yield batch
            batch, size = [], 0
        batch.append((row, split))
        size += length
    if batch:
        yield batch


def _is_missing(folder: Path, unit: Unit) -> bool:
    return bool(missing_units(folder, Plan("", {}, (unit,))))


@contextmanager
def threads(*names: str) -> Iterator[list[ThreadPoolExecutor]]:
    """One thread for each name, doing what it is given in order; what they have not begun ends with the block."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)) for name in names]
        try:
            yield pools
        finally:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)


def _finished(unit: Unit, num_tokens: int, writing: Sequence[Future[Receipt]]) -> tuple[Unit, int]:
    for part in writing:
        part.result()
    return unit, num_tokens


def _encoded_batch(
    unit: Unit, rows: list[tuple[Row, str]], teacher: Future[EncodedSide], student: Future[EncodedSide]
) -> tuple[Unit, EncodedBatch]:
    examples, splits = [row for row, _ in rows], [split for _, split in rows]
    return unit, EncodedBatch(examples, splits, teacher.result(), student.result())
