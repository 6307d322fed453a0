"""One example, as both sides read it: the response as two rows of pieces with the spans lined up beneath each other.

This module finds out what there is to show; `text.py` shows it on a terminal, `html.py` on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.schema import AlignmentRow, CorpusRow


@dataclass(frozen=True)
class Piece:
    """One token: the text it ends with, and its place where several tokens share one character.

    Attributes:
        text: Characters from the end of the token before to its own end.
        token: Index in the side's ids.
        part: 1-based place among the tokens that end together; `parts` of them (1: an ordinary token).
        special_id: The id of a special token, which has no characters; else None.
    """

    text: str
    token: int
    part: int = 1
    parts: int = 1
    special_id: int | None = None


@dataclass(frozen=True)
class Column:
    """Pieces of both sides that stand beneath each other: a span, or (number None) tokens in no span."""

    number: int | None
    student: list[Piece]
    teacher: list[Piece]


@dataclass(frozen=True)
class Inspection:
    """Everything there is to show of one example.

    Attributes:
        turns: For each response its columns, in order.
        covered: Share of the response's characters that lie in spans (of the teacher's text).
    """

    row: int
    id: str
    split: str
    teacher_status: str
    student_status: str
    student: str
    text: str
    prompt: str
    turns: list[list[Column]]
    num_teacher_tokens: int
    num_student_tokens: int
    num_spans: int
    covered: float

    def as_dict(self) -> dict[str, Any]:
        """It as plain values."""
        return asdict(self)


def make_inspection(*, row: int, student: str, corpus: CorpusRow, alignment: AlignmentRow) -> Inspection:
    """Cut an example's text into the pieces of both sides and line up the spans."""
    student_text = corpus.text if alignment.student_text is None else alignment.student_text
    sides = {
        "student": cut_pieces(student_text, _array(alignment.student_ids), _array(alignment.student_ends)),
        "teacher": cut_pieces(corpus.text, corpus.teacher_ids, corpus.teacher_ends),
    }
    student_spans, teacher_spans = _array(alignment.student_spans), _array(alignment.teacher_spans)
    turns = line_up(
        student_pieces=sides["student"],
        teacher_pieces=sides["teacher"],
        student_responses=_array(alignment.label_spans),
        teacher_responses=corpus.teacher_response_spans,
        student_spans=student_spans,
        teacher_spans=teacher_spans,
    )
    ranges = corpus.response_ranges
    characters = int((ranges[:, 1] - ranges[:, 0]).sum()) if len(ranges) else 0
    inside = sum(
        len(piece.text) for turn in turns for column in turn if column.number is not None for piece in column.teacher
    )
    return Inspection(
        row=row,
        id=corpus.id,
        split=corpus.split,
        teacher_status=corpus.status,
        student_status=alignment.status,
        student=student,
        text=corpus.text,
        prompt=corpus.text[: int(ranges[0, 0])] if len(ranges) else corpus.text,
        turns=turns,
        num_teacher_tokens=len(corpus.teacher_ids),
        num_student_tokens=len(_array(alignment.student_ids)),
        num_spans=len(student_spans),
        covered=min(1.0, inside / characters) if characters else 0.0,
    )


def cut_pieces(text: str, ids: NDArray[np.int32], ends: NDArray[np.int32]) -> list[Piece]:
    """One piece for every token; special tokens (end 0) have no text.

    Tokens that share one end are parts of one character: the first carries the text, the others their place.
    """
    pieces: list[Piece] = []
    parts = {int(end): int(count) for end, count in zip(*np.unique(ends, return_counts=True), strict=True)}
    before, part = 0, 0
    for token, (token_id, end) in enumerate(zip(ids.tolist(), ends.tolist(), strict=True)):
        if end == 0:
            pieces.append(Piece("", token, special_id=token_id))
            continue
        part = part + 1 if end == before else 1
        pieces.append(Piece(text[before:end], token, part, parts[end]))
        before = max(before, end)
    return pieces


def line_up(
    *,
    student_pieces: Sequence[Piece],
    teacher_pieces: Sequence[Piece],
    student_responses: NDArray[np.int32],
    teacher_responses: NDArray[np.int32],
    student_spans: NDArray[np.int32],
    teacher_spans: NDArray[np.int32],
) -> list[list[Column]]:
    """Columns of every response: its spans in order, and between them the response's tokens that are in no span.

    Args:
        student_responses: [R, 2] token spans of the student's labels.
        teacher_responses: [R', 2] token spans of the teacher's responses (R' differs where a template left out a turn).
        student_spans: [K, 2].
        teacher_spans: [K, 2].
    """
    turns: list[list[Column]] = []
    next_student = next_teacher = span = 0
    pairs = _paired(student_responses, teacher_responses, student_spans, teacher_spans)
    for (student_start, student_stop), (teacher_start, teacher_stop) in pairs:
        columns: list[Column] = []
        next_student, next_teacher = max(student_start, next_student), max(teacher_start, next_teacher)
        while span < len(student_spans) and teacher_spans[span][0] < teacher_stop:
            (a, b), (c, d) = student_spans[span].tolist(), teacher_spans[span].tolist()
            columns += _unmatched(student_pieces[next_student:a], teacher_pieces[next_teacher:c])
            columns.append(Column(span, list(student_pieces[a:b]), list(teacher_pieces[c:d])))
            next_student, next_teacher, span = b, d, span + 1
        columns += _unmatched(student_pieces[next_student:student_stop], teacher_pieces[next_teacher:teacher_stop])
        turns.append(columns)
        next_student, next_teacher = max(next_student, student_stop), max(next_teacher, teacher_stop)
    return turns


def _unmatched(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[Column]:
    return [Column(None, list(student), list(teacher))] if student or teacher else []


def _paired(
    student: NDArray[np.int32],
    teacher: NDArray[np.int32],
    student_spans: NDArray[np.int32],
    teacher_spans: NDArray[np.int32],
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Responses of both sides that stand beneath each other.

    Equal in number: in order. Otherwise by the spans they share; a response without a partner stands alone.
    """
    students = [(int(start), int(stop)) for start, stop in student]
    teachers = [(int(start), int(stop)) for start, stop in teacher]
    if len(students) == len(teachers):
        return list(zip(students, teachers, strict=True))
    pairs = []
    for start, stop in teachers:
        shared = (teacher_spans[:, 0] >= start) & (teacher_spans[:, 0] < stop)
        first = int(student_spans[shared][0, 0]) if shared.any() else -1
        partner = next((span for span in students if span[0] <= first < span[1]), (0, 0))
        pairs.append((partner, (start, stop)))
    return pairs


def _array(values: NDArray[np.int32] | None) -> NDArray[np.int32]:
    assert values is not None, "the reader was asked for every column"
    return values
