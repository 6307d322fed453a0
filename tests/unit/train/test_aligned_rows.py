"""Which rows of student and teacher stand beside each other: worked examples, and a law over shards."""

from __future__ import annotations

import numpy as np
import pytest

from sra_data.shards.schema import SideRow, TeacherRow, response_positions
from sra_data.shards.store import PairSpans
from sra_train.data.aligned_rows import rows_of
from sra_train.data.examples import TeacherPart

END = (99, 88)


def table(pairs) -> np.ndarray:
    return np.array(pairs, np.int32).reshape(-1, 2)


def side(length: int, responses, *, turns=None, end: int | None = None) -> SideRow:
    ids = np.arange(length, dtype=np.int32)
    if end is not None:
        ids[[stop for _, stop in responses if stop < length]] = end
    nothing = np.zeros(length, np.int32)
    return SideRow(
        id="a",
        status="ok",
        ids=ids,
        starts=nothing,
        ends=nothing,
        kinds=nothing.astype(np.uint8),
        response_ranges=np.zeros((len(responses), 2), np.int32),
        response_turns=np.array(range(len(responses)) if turns is None else turns, np.int32),
        response_spans=table(responses),
        label_spans=table(responses),
    )


def rows(kind: str, student: SideRow, teacher: SideRow, spans) -> list[tuple[int, int]]:
    """As tokens of both sides."""
    ours, theirs = zip(*spans, strict=True) if spans else ((), ())
    part = TeacherPart(PairSpans("a", "ok", table(ours), table(theirs)), teacher, TeacherRow(id="a"))
    cached = response_positions(teacher.response_spans)
    found = rows_of(kind, student, part, cached, END)
    return [(one, int(cached[row])) for one, row in found.tolist()]


SPANS = [((2, 3), (2, 3)), ((3, 5), (3, 4)), ((5, 6), (4, 6))]


def test_the_worked_example() -> None:
    student, teacher = side(7, [(2, 6)], end=END[0]), side(7, [(2, 6)], end=END[1])
    assert rows("boundary", student, teacher, SPANS) == [(1, 1), (2, 2), (4, 3), (5, 5)]
    assert rows("strict", student, teacher, SPANS) == [(1, 1), (5, 5)]
    assert rows("response", student, teacher, SPANS) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]


@pytest.mark.parametrize("ends", [(None, END[1]), (END[0], None), (None, None)])
def test_an_end_that_one_side_does_not_have_is_not_taught_strictly(ends) -> None:
    student, teacher = side(7, [(2, 6)], end=ends[0]), side(7, [(2, 6)], end=ends[1])
    assert rows("strict", student, teacher, SPANS) == [(1, 1)]
    assert rows("boundary", student, teacher, SPANS)[-1] == (5, 5)


def test_a_text_that_was_cut_has_no_end() -> None:
    student, teacher = side(6, [(2, 6)]), side(6, [(2, 6)])
    assert rows("strict", student, teacher, SPANS) == [(1, 1)]


def test_a_token_that_straddles_the_start_leaves_the_start_out() -> None:
    """Spans begin behind the straddler on both sides; no boundary is shared before."""
    student, teacher = side(8, [(2, 7)]), side(8, [(2, 7)])
    spans = [((3, 4), (4, 5)), ((4, 7), (5, 7))]
    assert rows("boundary", student, teacher, spans) == [(3, 4), (6, 6)]
    only_ours = [((3, 4), (2, 3)), ((4, 7), (3, 7))]  # begins its response on one side alone
    assert rows("boundary", student, teacher, only_ours) == [(3, 2), (6, 6)]


def test_without_a_prompt_nothing_stands_before_the_first_token() -> None:
    student, teacher = side(3, [(0, 2)]), side(3, [(0, 2)])
    spans = [((0, 1), (0, 1)), ((1, 2), (1, 2))]
    assert rows("boundary", student, teacher, spans) == [(0, 0), (1, 1)]
    assert rows("strict", student, teacher, spans) == [(0, 0)]
    assert rows("response", student, teacher, spans) == [(0, 0), (1, 1)]
    with_prompt = side(4, [(1, 3)])  # the teacher has one: a beginning token
    moved = [((0, 1), (1, 2)), ((1, 2), (2, 3))]
    assert rows("boundary", student, with_prompt, moved) == [(0, 1), (1, 2)]


def test_a_span_of_another_turn_does_not_follow() -> None:
    student, teacher = side(10, [(2, 4), (7, 8)]), side(12, [(3, 5), (9, 10)])
    spans = [((2, 4), (3, 5)), ((7, 8), (9, 10))]
    assert rows("boundary", student, teacher, spans) == [(1, 2), (3, 4), (6, 8), (7, 9)]
    assert rows("strict", student, teacher, spans) == [(6, 8)]


def test_responses_are_laid_side_by_side_turn_by_turn_as_far_as_both_go() -> None:
    student, teacher = side(10, [(2, 4), (6, 9)], turns=[1, 3]), side(12, [(3, 6), (8, 9)], turns=[1, 3])
    assert rows("response", student, teacher, []) == [(1, 2), (2, 3), (3, 4), (5, 7), (6, 8)]
    lacking = side(12, [(8, 9)], turns=[3])
    assert rows("response", student, lacking, []) == [(5, 7), (6, 8)]


def test_no_span_no_row() -> None:
    student, teacher = side(6, [(2, 6)]), side(6, [(2, 6)])
    assert rows("boundary", student, teacher, []) == []
    assert rows("strict", student, teacher, []) == []
