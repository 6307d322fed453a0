"""One example, as both sides read it: the response as two rows of pieces with the spans lined up beneath each other.

This module finds out what there is to show; `text.py` shows it on a terminal, `html.py` on a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.schema import SPECIAL, ExampleRow, SideRow, side_text
from sra_data.shards.store import PairSpans
from sra_data.spans.covering import covered_characters
from sra_data.spans.ragged import Ragged

NOWHERE = (0, 0)  # the tokens of a response that a side does not have


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
        student: Name of the student's side; `teacher` of the teacher's, `alignment` of theirs.
        status: "ok", or why the pair has no spans here, sides named by what they do.
        text: As the teacher reads it.
        turns: For each response its columns, in order.
        covered: Share of the response's characters that lie in spans (of the teacher's text).
    """

    row: int
    id: str
    split: str
    status: str
    student: str
    teacher: str
    alignment: str
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


@dataclass(frozen=True)
class ReadSide:
    """An example as one side reads it: the side's name, its row and the text its characters count in."""

    name: str
    row: SideRow
    text: str

    @classmethod
    def of(cls, name: str, row: SideRow, example: ExampleRow) -> ReadSide:
        """With the text from the example where the side keeps none of its own."""
        return cls(name, row, side_text(row, example))

    def pieces(self) -> list[Piece]:
        """One for every token."""
        return cut_pieces(self.text, self.row.ids, self.row.ends, self.row.kinds)

    @property
    def prompt(self) -> str:
        """The text before the first response; all of it where there is none."""
        ranges = self.row.response_ranges
        return self.text[: int(ranges[0, 0])] if len(ranges) else self.text

    def turns(self, token_spans: NDArray[np.int32]) -> dict[int, tuple[int, int]]:
        """Which tokens each response is, by the number of its message."""
        spans = [(int(start), int(stop)) for start, stop in token_spans]
        return dict(zip(self.row.response_turns.tolist(), spans, strict=True))


def make_inspection(
    *,
    row: int,
    example: ExampleRow,
    student: ReadSide,
    teacher: ReadSide,
    alignment: str,
    spans: PairSpans,
    status: str,
) -> Inspection:
    """Cut an example's text into the pieces of both sides and line up the spans.

    Args:
        row: its number.
        example: as the user gave it; `student` and `teacher` as the sides read it.
        alignment: of the two, by its name; `spans` from there.
        status: of the pair, in the words to show.
    """
    turns = line_up(
        student_pieces=student.pieces(),
        teacher_pieces=teacher.pieces(),
        student_turns=student.turns(student.row.label_spans),
        teacher_turns=teacher.turns(teacher.row.response_spans),
        student_spans=spans.student_spans,
        teacher_spans=spans.teacher_spans,
    )
    return Inspection(
        row=row,
        id=example.id,
        split=example.split,
        status=status,
        student=student.name,
        teacher=teacher.name,
        alignment=alignment,
        text=teacher.text,
        prompt=teacher.prompt if len(teacher.row.response_ranges) else student.prompt,
        turns=turns,
        num_teacher_tokens=len(teacher.row.ids),
        num_student_tokens=len(student.row.ids),
        num_spans=len(spans.student_spans),
        covered=_share_covered(teacher.row, spans.teacher_spans),
    )


def _share_covered(side: SideRow, token_spans: NDArray[np.int32]) -> float:
    """Share of the characters of a side's responses that lie in spans; 0 where it has none."""
    ranges = side.response_ranges
    characters = int((ranges[:, 1] - ranges[:, 0]).sum())
    spans, ends, stretches = (Ragged.from_lengths(one, [len(one)]) for one in (token_spans, side.ends, ranges))
    inside = covered_characters(spans=spans, ends=ends, stretches=stretches).values
    return int((inside[:, 1] - inside[:, 0]).sum()) / characters if characters else 0.0


def cut_pieces(text: str, ids: NDArray[np.int32], ends: NDArray[np.int32], kinds: NDArray[np.uint8]) -> list[Piece]:
    """One piece for every token; special tokens have no text.

    Tokens that share one end are parts of one character: the first carries the text, the others their place.
    """
    pieces: list[Piece] = []
    shared = np.unique(ends[kinds != SPECIAL], return_counts=True)
    parts = {int(end): int(count) for end, count in zip(*shared, strict=True)}
    before, part = 0, 0
    for token, (token_id, end, kind) in enumerate(zip(ids.tolist(), ends.tolist(), kinds.tolist(), strict=True)):
        if kind == SPECIAL:
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
    student_turns: Mapping[int, tuple[int, int]],
    teacher_turns: Mapping[int, tuple[int, int]],
    student_spans: NDArray[np.int32],
    teacher_spans: NDArray[np.int32],
) -> list[list[Column]]:
    """Columns of every response: its spans in order, and between them the response's tokens that are in no span.

    Args:
        student_turns: token spans of the student's responses, by message; a template may leave one out.
        teacher_turns: those of the teacher's.
        student_spans: [K, 2].
        teacher_spans: [K, 2].
    """
    turns: list[list[Column]] = []
    next_student = next_teacher = span = 0
    for turn in sorted({*student_turns, *teacher_turns}):
        (student_start, student_stop), (teacher_start, teacher_stop) = (
            side.get(turn, NOWHERE) for side in (student_turns, teacher_turns)
        )
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
