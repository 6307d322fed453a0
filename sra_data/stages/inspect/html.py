"""Examples as one self-contained page: the one that was asked for, and its neighbours a link away.

Each span is a small two-row table in the running text, the student's pieces above the teacher's; the page wraps like
text, and the sides' names stand at the beginning of every line. Which example is shown is decided by the address alone
(`#row-12`), without a script. Every piece is isolated for right-to-left scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sra_data.pages.render import render
from sra_data.stages.inspect.example import Column, Inspection
from sra_data.stages.inspect.text import heading, visible

TEMPLATE = Path(__file__).with_name("page.html")
LEGEND = (
    "Upper row: the student's tokens. Lower row: the teacher's. One box is one span; hatched tokens are in no span. "
    "␣ space · ⏎ line feed · ⇥ tab · ⟨200D⟩ other invisible characters · ¹⁄₃ part of a character · #id special token"
)
NUM_COLOURS = 5
IN_A_GAP = 8


@dataclass(frozen=True)
class Box:
    """A column as the page has it: its class, what a pointer that rests on it is told, (piece, tip) of both sides."""

    kind: str
    tip: str
    rows: tuple[list[tuple[str, str]], list[tuple[str, str]]]


@dataclass(frozen=True)
class Turn:
    """One response."""

    title: str
    boxes: list[Box]


@dataclass(frozen=True)
class Shown:
    """One example as the page has it."""

    id: str
    title: str
    facts: str
    prompt: str
    turns: list[Turn]


def page(asked: Inspection, around: Sequence[Inspection] = ()) -> str:
    """The whole page.

    Args:
        asked: what is shown at first.
        around: other examples of the same shards, in any order.
    """
    examples = sorted({one.row: one for one in (*around, asked)}.values(), key=lambda one: one.row)
    return render(
        TEMPLATE,
        title=heading(asked)[0],
        asked=_id(asked),
        examples=[_shown(one) for one in examples],
        legend=LEGEND,
    )


def _shown(one: Inspection) -> Shown:
    title, facts = heading(one)
    return Shown(_id(one), title, facts, one.prompt, list(_turns(one)))


def _id(one: Inspection) -> str:
    return f"row-{one.row}"


def _turns(one: Inspection) -> Iterator[Turn]:
    for number, columns in enumerate(one.turns, 1):
        title = "Response" if len(one.turns) == 1 else f"Response {number} of {len(one.turns)}"
        yield Turn(title, [_box(part) for column in columns for part in _parts(column)])


def _parts(column: Column) -> Iterator[Column]:
    """A span as it is; of tokens in no span, of which there may be hundreds, a few at a time, so that they wrap."""
    if column.number is not None:
        yield column
        return
    for start in range(0, max(len(column.student), len(column.teacher)), IN_A_GAP):
        some = slice(start, start + IN_A_GAP)
        yield Column(None, column.student[some], column.teacher[some])


def _box(column: Column) -> Box:
    sides = {"student": column.student, "teacher": column.teacher}
    if column.number is None:
        kind, tip = "gap", "in no span"
    else:
        kind = f"span-{column.number % NUM_COLOURS}"
        tip = f"span {column.number}: {len(column.student)} student tokens, {len(column.teacher)} teacher tokens"
    student, teacher = (
        [(visible(piece), f"{side}'s token {piece.token} · {tip}") for piece in pieces]
        for side, pieces in sides.items()
    )
    return Box(kind, tip, (student, teacher))
