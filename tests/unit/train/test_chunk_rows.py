"""Rows of chunks: which positions of student and teacher predict the tokens of each span."""

from __future__ import annotations

import numpy as np

from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import PairSpans
from sra_train.data.aligned_rows import aligned_rows
from sra_train.data.chunk_rows import chunk_rows
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.staging import StagingBuffer
from tests.unit.methods.batches import side_row


def test_the_example_of_the_data_room() -> None:
    """The student's [2, 4) and the teacher's [1, 4); the labels of a second slot come behind."""
    part = part_of([[2, 4]], [[1, 4]], response=(1, 5))
    labels = np.full((2, 6), -100)
    labels[0, 2:5] = 7
    labels[1, 1:3] = 8
    second = part_of([[1, 2], [2, 3]], [[1, 2], [2, 5]], response=(1, 5))
    cached = [part.positions, second.positions]
    found = chunk_rows(
        [part, second], cached=cached, labels=labels, width=9, staging=StagingBuffer(pinned=False), name="x"
    )
    assert found.example.tolist() == [0, 1, 1]
    assert found.labels.tolist() == [0, 1, 3, 4]
    assert found.chunk_of_label.tolist() == [0, 0, 1, 2]
    assert found.teacher_positions.tolist() == [0, 1, 2, 9, 10, 11, 12]
    assert found.chunk_of_position.tolist() == [0, 0, 0, 1, 2, 2, 2]


def part_of(student: list[list[int]], teacher: list[list[int]], *, response: tuple[int, int]) -> TeacherPart:
    tables = [np.array(one, np.int32).reshape(-1, 2) for one in (student, teacher)]
    return TeacherPart(PairSpans("a", "ok", *tables), side_row("a", [0] * response[1], response), TeacherRow("a"))


def test_chunks_that_are_not_wholly_predicted_are_left_out() -> None:
    """Nothing stands before token 0; token 3 is no label; the teacher's token 0 has no row before it."""
    labels = np.array([[5, 5, 5, -100, 5, 5]])
    staging = StagingBuffer(pinned=False)
    part = part_of([[0, 1], [1, 2], [2, 4], [4, 6]], [[1, 2], [2, 3], [3, 4], [4, 5]], response=(0, 5))
    found = chunk_rows([part], cached=[part.positions], labels=labels, width=5, staging=staging, name="x")
    assert found.labels.tolist() == [0, 2, 3]
    assert found.teacher_positions.tolist() == [1, 3]
    first = part_of([[1, 2], [2, 3]], [[0, 1], [1, 2]], response=(0, 5))
    found = chunk_rows([first, None], cached=[first.positions, np.zeros(0, np.int32)], labels=labels.repeat(2, 0),
                       width=5, staging=staging, name="x")  # fmt: skip
    assert (found.labels.tolist(), found.teacher_positions.tolist()) == ([1], [0])


def test_no_chunk_at_all_is_rows_of_length_zero() -> None:
    labels = np.full((1, 3), -100)
    found = chunk_rows([None], cached=[np.zeros(0, np.int32)], labels=labels, width=1,
                       staging=StagingBuffer(pinned=False), name="x")  # fmt: skip
    assert [len(one) for one in vars(found).values()] == [0] * 5


def test_places_count_within_the_example() -> None:
    def side(response: tuple[int, int]) -> ExampleParts:
        return ExampleParts(side_row("a", [0] * 7, response))

    parts = [part_of([], [], response=(1, 3)), None, part_of([], [], response=(2, 6))]
    examples = [side((2, 4)), None, side((3, 6))]
    cached = [np.zeros(0, np.int32) if one is None else one.positions for one in parts]
    staging = StagingBuffer(pinned=False)
    given = {"cached": cached, "labels": np.full((3, 7), -100), "staging": staging, "name": "x"}
    found = aligned_rows("response", examples, parts, end_of_sequence=None, nearest=None, **given)
    assert found.example.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert found.place.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert found.most == 4
    assert found.student_positions.tolist() == [1, 2, 3, 16, 17, 18, 19]
    assert found.teacher_positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
