"""Spans from given offsets: the laws of method.md section 9, against the character-by-character reference."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.spans.alignment import Segments, SpanTable, TokenOffsets, align, closing_tokens, segments_for
from sra_data.spans.ragged import Ragged
from tests.reference import alignment as reference
from tests.reference.alignment import Token

Cut = list[Token]


def offsets_of(rows: list[Cut]) -> TokenOffsets:
    def column(field: str, dtype: type) -> Ragged:
        return Ragged.from_list([[getattr(token, field) for token in row] for row in rows], dtype)

    return TokenOffsets(
        column("start", np.int32), column("end", np.int32), column("is_special", np.bool_), column("closes", np.bool_)
    )


def from_ends(*ends: int) -> Cut:
    return [Token(start, end, True) for start, end in zip((0, *ends), ends, strict=False)]


def spans_of(table: SpanTable, row: int = 0) -> list[tuple[int, int, int, int]]:
    return [
        (*student, *teacher)
        for student, teacher in zip(table.student_spans[row].tolist(), table.teacher_spans[row].tolist(), strict=True)
    ]


def aligned(student: Cut, teacher: Cut, text: str, span: tuple[int, int] | None = None, **options) -> SpanTable:
    ranges = [np.array([span or (0, len(text))])]
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    return align(
        student=offsets_of([student]), teacher=offsets_of([teacher]), segments=segments, student_texts=[text], **options
    )


@st.composite
def cuts(draw, length: int, framed: bool = False) -> Cut:
    """Any cut of ``length`` characters into tokens: some share or overlap offsets, some characters are skipped."""
    tokens: Cut = [Token(0, 0, False, True)] if framed and draw(st.booleans()) else []
    place = 0
    while place < length:
        place += draw(st.sampled_from([0, 0, 0, 0, 1]))
        stop = min(place + draw(st.integers(1, 3)), length)
        if stop <= place:
            break
        shape = draw(st.sampled_from(["whole", "whole", "whole", "split", "overlap"]))
        if shape == "whole":
            tokens.append(Token(place, stop, True))
        elif shape == "split":
            tokens += [Token(place, stop - 1, True)] if stop - 1 > place else []
            tokens += [Token(stop - 1, stop, False)] * draw(st.integers(1, 2)) + [Token(stop - 1, stop, True)]
        else:
            beyond = min(stop + 1, length)
            tokens += [Token(place, stop, beyond == stop), Token(stop - 1, beyond, True)] if beyond > stop else []
            tokens += [Token(place, stop, True)] if beyond == stop else []
            stop = beyond
        place = stop
    if framed and draw(st.booleans()):
        tokens.append(Token(0, 0, False, True))
    return tokens


@st.composite
def pairs_of_cuts(draw) -> tuple[str, Cut, Cut, tuple[int, int]]:
    text = draw(st.text("ab .é😀", min_size=1, max_size=14))
    start = draw(st.integers(0, len(text) - 1))
    stop = draw(st.integers(start, len(text)))
    return text, draw(cuts(len(text), framed=True)), draw(cuts(len(text), framed=True)), (start, stop)


def test_the_worked_example() -> None:
    table = aligned(from_ends(2, 6, 12, 13), from_ends(5, 6, 9, 12, 13), "x" * 13)
    assert spans_of(table) == [(0, 2, 0, 2), (2, 3, 2, 4), (3, 4, 4, 5)]
    assert table.student_starts.dtype == np.int32
    assert table.splits.dtype == np.int64


@settings(max_examples=200, deadline=None)
@given(pairs_of_cuts())
def test_spans_are_those_of_the_reference(case: tuple[str, Cut, Cut, tuple[int, int]]) -> None:
    text, student, teacher, span = case
    expected = reference.spans(student=student, teacher=teacher, pairs={i: i for i in range(*span)}, student_range=span)
    assert spans_of(aligned(student, teacher, text, span)) == expected


@settings(max_examples=100, deadline=None)
@given(pairs_of_cuts())
def test_swapping_teacher_and_student_swaps_the_pairs(case: tuple[str, Cut, Cut, tuple[int, int]]) -> None:
    text, student, teacher, span = case
    forth, back = aligned(student, teacher, text, span), aligned(teacher, student, text, span)
    assert spans_of(forth) == [(*pair[2:], *pair[:2]) for pair in spans_of(back)]


@settings(max_examples=100, deadline=None)
@given(pairs_of_cuts())
def test_a_tokenizer_with_itself_gives_one_span_per_end_that_may_close(
    case: tuple[str, Cut, Cut, tuple[int, int]],
) -> None:
    text, cut, _, span = case
    ends = [t.end for t in cut if t.closes and not t.is_special and span[0] < t.end <= span[1]]
    straddled = max((t.end for t in cut if not t.is_special and t.start < span[0] < t.end), default=span[0])
    expected = [end for end in ends if end > straddled]
    spans = spans_of(aligned(cut, cut, text, span))
    if straddled > span[0] and straddled not in ends:
        expected = expected[1:]  # the first boundary at or beyond the straddler's stop opens the first span
    assert [cut[stop - 1].end for _, stop, _, _ in spans] == expected
    assert all(pair[:2] == pair[2:] for pair in spans)


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs_of_cuts(), min_size=1, max_size=5))
def test_an_example_is_aligned_the_same_alone_and_in_any_batch(cases: list) -> None:
    texts = [text for text, *_ in cases]
    ranges = [np.array([span], dtype=np.int32) for *_, span in cases]
    table = align(
        student=offsets_of([student for _, student, _, _ in cases]),
        teacher=offsets_of([teacher for _, _, teacher, _ in cases]),
        segments=segments_for(student_texts=texts, student_ranges=ranges, teacher_texts=texts, teacher_ranges=ranges),
        student_texts=texts,
    )
    for row, (text, student, teacher, span) in enumerate(cases):
        assert spans_of(table, row) == spans_of(aligned(student, teacher, text, span))


def test_an_empty_batch_and_empty_rows_give_no_spans() -> None:
    table = aligned([], from_ends(2), "ab")
    assert (len(table), spans_of(table)) == (1, [])
    nothing = Segments(*np.zeros((4, 0), dtype=np.int64))
    assert len(align(student=offsets_of([]), teacher=offsets_of([]), segments=nothing, student_texts=[])) == 0


def test_spans_begin_behind_a_token_that_straddles_the_border_on_either_side() -> None:
    # "abcdef", the response is "cdef"; the student's second token reaches over its border
    student, teacher = from_ends(1, 3, 4, 6), from_ends(2, 3, 4, 5, 6)
    assert spans_of(aligned(student, teacher, "abcdef", (2, 6))) == [(2, 3, 2, 3), (3, 4, 3, 5)]
    assert spans_of(aligned(teacher, student, "abcdef", (2, 6))) == [(2, 3, 2, 3), (3, 5, 3, 4)]


def test_tokens_behind_the_last_shared_boundary_belong_to_no_span() -> None:
    assert spans_of(aligned(from_ends(2, 3), from_ends(2, 3, 6, 8), "x" * 8)) == [(0, 1, 0, 1), (1, 2, 1, 2)]


def test_special_tokens_belong_to_no_span() -> None:
    special = Token(0, 0, False, True)
    assert spans_of(aligned([special, *from_ends(2, 4), special], from_ends(4), "abcd")) == [(1, 3, 0, 1)]


def test_word_boundaries_keep_only_edges_of_words() -> None:
    text = "un like, 中文 นี้"
    letters = from_ends(*range(1, len(text) + 1))
    table = aligned(letters, letters, text, boundaries="word")
    pieces = [text[start:stop] for start, stop, _, _ in spans_of(table)]
    assert pieces == ["un", " ", "like", ",", " ", "中", "文", " ", "นี้"]


@settings(max_examples=60, deadline=None)
@given(pairs_of_cuts())
def test_word_spans_are_runs_of_token_spans(case: tuple[str, Cut, Cut, tuple[int, int]]) -> None:
    text, student, teacher, span = case
    fine = spans_of(aligned(student, teacher, text, span))
    coarse = spans_of(aligned(student, teacher, text, span, boundaries="word"))
    assert len(coarse) <= len(fine)
    assert {edge for pair in coarse for edge in (pair[1], pair[3])} <= {edge for pair in fine for edge in pair}


@given(num_spans=st.integers(1, 40), max_spans=st.integers(1, 12))
def test_neighbours_merge_evenly_beyond_max_spans_and_are_counted(num_spans: int, max_spans: int) -> None:
    cut = from_ends(*range(1, num_spans + 1))
    table = aligned(cut, cut, "x" * num_spans, max_spans=max_spans)
    spans = spans_of(table)
    assert len(spans) == min(num_spans, max_spans)
    assert table.merged_spans == num_spans - len(spans)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_spans
    assert all(left[1] == right[0] and left[3] == right[2] for left, right in pairwise(spans))
    sizes = [stop - start for start, stop, _, _ in spans]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("max_spans", [1, 2, 3, 4, 7])
def test_spans_of_two_responses_never_merge(max_spans: int) -> None:
    text, cut = "x" * 12, from_ends(*range(1, 13))
    ranges = [np.array([(1, 3), (5, 6), (7, 12)])]
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    offsets = offsets_of([cut])
    table = align(student=offsets, teacher=offsets, segments=segments, student_texts=[text], max_spans=max_spans)
    spans = spans_of(table)
    assert len(spans) <= max_spans
    assert table.merged_spans == 8 - len(spans)
    responses = [range(1, 3), range(5, 6), range(7, 12)]
    homes = [[set(range(start, stop)) <= set(response) for response in responses] for start, stop, _, _ in spans]
    assert all(sum(home) == 1 for home in homes)
    if max_spans >= 3:
        assert {start for start, *_ in spans} >= {1, 5, 7}
        assert {stop for _, stop, *_ in spans} >= {3, 6, 12}
    else:
        assert spans[-1] == (7, 12, 7, 12), "the longest stretch is kept when there are more stretches than spans"


# --- the closing rule -------------------------------------------------------------------------------------------------


def closed(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, bool]]:
    starts, ends = (Ragged.from_list([[pair[side] for pair in offsets]], np.int32) for side in (0, 1))
    result = closing_tokens(starts=starts, ends=ends, texts=[text])
    return list(zip(result.ends[0].tolist(), result.closes[0].tolist(), strict=True))


def test_a_character_cut_into_tokens_closes_only_with_the_last() -> None:
    assert closed("😀!", [(0, 1), (0, 1), (0, 1), (1, 2)]) == [(1, False), (1, False), (1, True), (2, True)]


def test_a_boundary_inside_a_character_is_no_boundary() -> None:
    # two tokens over two characters, the border inside the second
    assert closed("éé", [(0, 2), (1, 2)]) == [(2, False), (2, True)]
    assert closed("ééx", [(0, 1), (0, 2), (2, 3)]) == [(1, False), (2, True), (3, True)]


def test_an_end_moves_over_uncovered_marks_and_jamo_and_over_nothing_else() -> None:
    assert closed("e\u0301\u0301x", [(0, 1), (3, 4)]) == [(3, True), (4, True)]
    assert closed("\u1112\u1161\u11abx", [(0, 1), (3, 4)]) == [(3, True), (4, True)]
    assert closed("e\u0301x", [(0, 1), (1, 2), (2, 3)]) == [(1, True), (2, True), (3, True)]
    assert closed("e \u200bx", [(0, 1), (3, 4)]) == [(1, True), (4, True)]


@pytest.mark.parametrize("category", ["Mn", "Mc", "Me"])
def test_an_end_moves_over_marks_of_every_kind(category: str) -> None:
    """A normaliser composes a spacing mark as well as one that takes no space: ো is two of them in one."""
    marks = [character for code in range(0x3000) if unicodedata.category(character := chr(code)) == category]
    assert len(marks) > 4
    for mark in marks:
        assert closed(f"\u0995{mark}x", [(0, 1), (2, 3)]) == [(2, True), (3, True)], hex(ord(mark))


@st.composite
def raw_offsets(draw) -> tuple[str, list[tuple[int, int]]]:
    text = draw(st.text("ae\u0301\u0327\u09c7\u20dd\u1161 😀", max_size=10))
    offsets, place = [], 0
    while place < len(text):
        start = draw(st.integers(max(place - 1, 0), place + 1))
        end = draw(st.integers(max(start + 1, place), start + 3))
        if end > len(text):
            break
        offsets.append((max(start, offsets[-1][0]) if offsets else start, end))
        place = end
    return text, offsets


@settings(max_examples=80, deadline=None)
@given(st.lists(raw_offsets(), min_size=1, max_size=4))
def test_closing_tokens_are_those_of_the_reference(cases: list[tuple[str, list[tuple[int, int]]]]) -> None:
    starts, ends = (
        Ragged.from_list([[pair[side] for pair in offsets] for _, offsets in cases], np.int32) for side in (0, 1)
    )
    result = closing_tokens(starts=starts, ends=ends, texts=[text for text, _ in cases])
    for row, (text, offsets) in enumerate(cases):
        expected = reference.tokens_by_rule(text, offsets)
        assert result.closes[row].tolist() == [token.closes for token in expected]
        assert result.ends[row].tolist() == [token.end for token in expected]
    covered = [place in {p for s, e in o for p in range(s, e)} for text, o in cases for place in range(len(text))]
    assert result.covered.values.tolist() == covered


def test_offsets_that_run_backwards_close_nothing_in_between() -> None:
    assert closed("abc", [(0, 1), (2, 3), (1, 2)]) == [(1, True), (3, False), (3, True)]
