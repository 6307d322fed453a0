"""Where two texts read alike: the laws of the text LCS, and its cost on long texts."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.spans.segments import equal_blocks, segments_for
from tests.reference.alignment import longest_common_subsequence

SHORT = st.text("ab \n", max_size=30)


def pairs(student: str, teacher: str, **options: int) -> list[tuple[int, int]]:
    blocks = equal_blocks(student=student, teacher=teacher, **options)
    return [(s + offset, t + offset) for s, t, length in blocks for offset in range(length)]


def check(student: str, teacher: str, found: list[tuple[int, int]]) -> None:
    assert all(student[s] == teacher[t] for s, t in found)
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(found))


@settings(deadline=None)
@given(SHORT, SHORT)
def test_blocks_are_a_longest_common_subsequence(student: str, teacher: str) -> None:
    found = pairs(student, teacher)
    check(student, teacher, found)
    assert len(found) == longest_common_subsequence(student, teacher)


@settings(deadline=None)
@given(SHORT, SHORT)
def test_blocks_are_as_long_as_they_can_be(student: str, teacher: str) -> None:
    blocks = equal_blocks(student=student, teacher=teacher)
    assert all(length > 0 for *_, length in blocks)
    for (s, t, length), (next_s, next_t, _) in pairwise(blocks):
        assert (s + length, t + length) != (next_s, next_t)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["alpha beta gamma delta\n", "one two\n", "x", "zzzz", "\n"]), max_size=25), st.data())
def test_blocks_found_by_anchors_are_right_even_where_they_are_not_longest(lines: list[str], data) -> None:
    other = [line for line in lines if data.draw(st.booleans())] + data.draw(st.lists(st.sampled_from(["q", "x"])))
    student, teacher = "".join(lines), "".join(other)
    check(student, teacher, pairs(student, teacher, max_table_bits=64))


def test_text_that_is_the_same_is_one_segment_for_each_response() -> None:
    ranges = [np.array([(1, 3), (4, 4), (5, 8)]), np.zeros((0, 2), dtype=np.int32)]
    texts = ["x" * 9, "y"]
    segments = segments_for(student_texts=texts, student_ranges=ranges, teacher_texts=texts, teacher_ranges=ranges)
    assert segments.example.tolist() == [0, 0]
    assert segments.student_start.tolist() == segments.teacher_start.tolist() == [1, 5]
    assert segments.length.tolist() == [2, 3]


def test_turns_are_compared_pair_by_pair_and_nothing_outside_them() -> None:
    segments = segments_for(
        student_texts=["<u>hi<a> yes, I do <a>same"],
        student_ranges=[np.array([(8, 19), (22, 26)])],
        teacher_texts=["USER hi BOT yes, I do BOT same"],
        teacher_ranges=[np.array([(12, 21), (26, 30)])],
    )
    assert segments.example.tolist() == [0, 0]
    assert segments.student_start.tolist() == [9, 22]
    assert segments.teacher_start.tolist() == [12, 26]
    assert segments.length.tolist() == [9, 4]


def test_the_same_text_with_other_ranges_is_still_compared_by_its_ranges() -> None:
    segments = segments_for(
        student_texts=["abab"], student_ranges=[[(0, 2)]], teacher_texts=["abab"], teacher_ranges=[[(2, 4)]]
    )
    assert (segments.student_start.tolist(), segments.teacher_start.tolist()) == ([0], [2])


@pytest.mark.parametrize("separator", [" ", ""])
def test_a_million_characters_that_differ_here_and_there_are_still_paired(separator: str) -> None:
    source = random.Random(7)
    words = ["".join(source.choices("abcdefghij", k=5)) for _ in range(200_000)]
    changed = list(words)
    for place in range(0, len(words), 997):
        changed[place] = "XYZ"
    student, teacher = separator.join(words), separator.join(changed)
    assert len(student) >= 1_000_000
    blocks = equal_blocks(student=student, teacher=teacher)
    assert sum(length for *_, length in blocks) >= 0.99 * len(teacher) - 3 * 201
    assert all(student[s : s + length] == teacher[t : t + length] for s, t, length in blocks)


def test_two_long_texts_without_anything_in_common_cost_little_and_pair_nothing_wrong() -> None:
    student, teacher = "ab" * 100_000, "ba" * 100_000 + "c"
    blocks = equal_blocks(student="<" + student, teacher=">" + teacher)
    assert all(student[s - 1 : s - 1 + length] == teacher[t - 1 : t - 1 + length] for s, t, length in blocks)
