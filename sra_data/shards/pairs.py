"""An alignment as those see it who teach and learn: which of its two sides is the student's, which the teacher's.

On disk an alignment has no direction: left and right are its sides in the order of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.images import load_images
from sra_data.shards.index import Index
from sra_data.shards.nearest import NEAREST, load_nearest
from sra_data.shards.reader import FolderReader
from sra_data.shards.schema import IntArray, response_positions
from sra_data.shards.vocabulary import load_vocabulary

BETWEEN_SIDES = "~"


def alignment_name(one: str, other: str, suffix: str = "") -> str:
    """The name of the alignment of two sides, whichever comes first; `suffix` tells other options apart."""
    left, right = sorted((one, other))
    return BETWEEN_SIDES.join([left, right, *([suffix] if suffix else [])])


def sides_of(alignment: str) -> tuple[str, str]:
    """(left, right) side of an alignment, from its name."""
    left, right, *_ = alignment.split(BETWEEN_SIDES)
    return left, right


def options_of(alignment: str) -> str:
    """What tells an alignment with other options than the usual ones apart, from its name: ``word``; else nothing."""
    return BETWEEN_SIDES.join(alignment.split(BETWEEN_SIDES)[2:])


@dataclass(frozen=True)
class PairSpans:
    """The spans of one example: span k of the student is span k of the teacher."""

    id: str
    status: str
    student_spans: IntArray  # [K, 2] tokens
    teacher_spans: IntArray  # [K, 2] tokens


def cached_starts(spans: PairSpans, response_spans: IntArray) -> NDArray[np.bool_]:
    """[K] spans at whose start the teacher's pages have a row: what it said after the text that both have read.

    Args:
        spans: Of an example.
        response_spans: [R, 2] of the teacher's side.
    """
    return np.isin(spans.teacher_spans[:, 0] - 1, response_positions(response_spans))


@dataclass(frozen=True, eq=False)
class PairVocabulary:
    """Ids of student and teacher that stand for the same bytes; see `StoredVocabulary`.

    Attributes:
        student_ids: [n] int32, increasing; `teacher_ids` [n] int32 their counterparts.
        student_of_teacher: [teacher's ids] int32, -1 without a counterpart; `teacher_of_student` likewise.
        end_of_sequence: (student's id, teacher's id), a pair by role; None where a side has none.
    """

    student_ids: NDArray[np.int32]
    teacher_ids: NDArray[np.int32]
    student_of_teacher: NDArray[np.int32]
    teacher_of_student: NDArray[np.int32]
    end_of_sequence: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class PairImages:
    """Where the teacher's ids go among the student's; see `SideImages`.

    Attributes:
        byte_prefix, first_piece: [teacher's ids] int32, the student's id or -1.
        teacher_first_byte: [teacher's ids] int32 or -1; `student_first_byte` [student's ids] likewise.
    """

    byte_prefix: NDArray[np.int32]
    first_piece: NDArray[np.int32]
    teacher_first_byte: NDArray[np.int32]
    student_first_byte: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PairNearest:
    """The ids of both sides by edit distance; see `SideNearest`.

    Attributes:
        student_of_teacher: [teacher's ids] int32, the student's nearest id or -1.
        student_pieces: the bytes each id of the student stands for; `teacher_pieces` likewise.
    """

    student_of_teacher: NDArray[np.int32]
    student_pieces: list[bytes]
    teacher_pieces: list[bytes]


class PairReader:
    """An alignment in one direction: which side is the student's and which the teacher's.

    Attributes:
        reader: its rows, left and right.
        name: of its folder.
        student, teacher: names of the sides.
        root: what it was sealed with.
    """

    def __init__(self, reader: FolderReader, *, student: str, teacher: str) -> None:
        self.reader = reader
        self.name = reader.section.partition("/")[2]
        self.student, self.teacher = student, teacher
        self.root = reader.root
        self._student_is_left = (student, teacher) == sides_of(self.name)
        assert self._student_is_left or (teacher, student) == sides_of(self.name)

    @property
    def index(self) -> Index:
        """The alignment's index."""
        return self.reader.index

    def read(self, row_numbers: Sequence[int] | NDArray[Any]) -> list[PairSpans]:
        """Rows by number, in the order asked; raises as `FolderReader.read` does."""
        rows = self.reader.read(row_numbers)
        if self._student_is_left:
            return [PairSpans(row.id, row.status, row.left_spans, row.right_spans) for row in rows]
        return [PairSpans(row.id, row.status, row.right_spans, row.left_spans) for row in rows]

    def fetch(self, row_numbers: Sequence[int] | NDArray[Any]) -> int:
        """Bring rows nearer that will be read; see `FolderReader.fetch`."""
        return self.reader.fetch(row_numbers)

    @property
    def roles(self) -> tuple[str, str]:
        """What the left and the right side of the folder are here: "student" and "teacher", or the other way round."""
        return ("student", "teacher") if self._student_is_left else ("teacher", "student")

    def in_roles(self, status: str) -> str:
        """A status of the folder for people: ``skipped:left_overlong`` -> ``skipped:teacher_overlong``."""
        for side, role in zip(("left", "right"), self.roles, strict=True):
            if status.startswith(f"skipped:{side}_"):
                return status.replace(side, role, 1)
        return status

    def vocabulary(self) -> PairVocabulary:
        """What the two tokenizers share.

        Raises:
            ShardError: If the file is missing or damaged.
        """
        stored = load_vocabulary(self.reader.folder)
        if not self._student_is_left:
            stored = stored.swapped()
        return PairVocabulary(
            student_ids=stored.left_ids,
            teacher_ids=stored.right_ids,
            student_of_teacher=stored.left_of_right,
            teacher_of_student=stored.right_of_left,
            end_of_sequence=stored.end_of_sequence,
        )

    def images(self) -> PairImages:
        """Where the teacher's ids go among the student's.

        Raises:
            ShardError: If the file is missing or damaged.
        """
        stored = load_images(self.reader.folder)
        student, teacher = (stored.left, stored.right) if self._student_is_left else (stored.right, stored.left)
        return PairImages(teacher.byte_prefix, teacher.first_piece, teacher.first_byte, student.first_byte)

    def nearest(self) -> PairNearest:
        """Where the teacher's ids go among the student's by edit distance, and what every id stands for.

        Raises:
            ShardError: If the file is missing or damaged; with the command that makes it.
        """
        self.reader.refuse_unsealed(NEAREST)
        stored = load_nearest(self.reader.folder)
        student, teacher = (stored.left, stored.right) if self._student_is_left else (stored.right, stored.left)
        return PairNearest(teacher.ids, student.pieces, teacher.pieces)
