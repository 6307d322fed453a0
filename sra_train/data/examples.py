"""One example as it was read: the student's side of it, its text where wanted, and each teacher's part."""

from __future__ import annotations

from dataclasses import dataclass

from sra_data.shards.schema import ExampleRow, IntArray, SideRow, TeacherRow, response_positions
from sra_data.shards.store import PairSpans

NO_EXAMPLE = ""  # id of a slot without a row


@dataclass(frozen=True)
class TeacherPart:
    """What one teacher has of an example; columns that no method asked for are None in its rows."""

    spans: PairSpans  # shared with the student
    side: SideRow  # the teacher's: `response_spans`, and `ids` where they are asked for
    pages: TeacherRow

    @property
    def positions(self) -> IntArray:
        """[P] token index of each cached row, where rows are tokens."""
        return response_positions(self.side.response_spans)


@dataclass(frozen=True)
class ExampleParts:
    """One example's rows of all folders.

    Attributes:
        side: the student's.
        teachers: in the order of the run; None for a teacher that lacks the example.
        example: its text, where bits per byte are wanted.
    """

    side: SideRow
    teachers: tuple[TeacherPart | None, ...] = ()
    example: ExampleRow | None = None


def name_of(example: ExampleParts | None) -> str:
    """The id, or that there is none."""
    return NO_EXAMPLE if example is None else example.side.id
