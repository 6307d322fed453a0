"""Spans over arbitrary text, with tokenizers of every family trained here and with three published ones.

The reference reads the same tokens by rules of its own: what the pieces spell, or the tokenizer's raw offsets.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.corpus.tokenization import SideTokenizer, TokenizedBatch
from sra_data.spans.alignment import SpanTable, align, segments_for
from tests.reference import alignment as reference
from tests.reference.alignment import Token
from tests.text_strategy import texts
from tests.tokenizer_zoo import zoo

NAMES = tuple(zoo())


@cache
def trained() -> dict[str, SideTokenizer]:
    return {name: SideTokenizer(tokenizer, name) for name, tokenizer in zoo().items()}


@pytest.fixture(scope="module")
def published(shared_folder: Path) -> dict[str, SideTokenizer]:
    names = ("gpt2", "qwen1.5-1.8b", "tinyllama-1.1b")
    return {name: SideTokenizer.load(str(shared_folder / "tokenizers" / name)) for name in names}


def encoded(side: SideTokenizer, text: str, start: int) -> TokenizedBatch:
    return side.encode([text], response_ranges=[[(start, len(text))]], is_chat=False)


def tokens_of(batch: TokenizedBatch) -> list[Token]:
    offsets = batch.offsets
    columns = (offsets.starts, offsets.ends, offsets.closes, offsets.is_special)
    return [Token(*values) for values in zip(*(column[0].tolist() for column in columns), strict=True)]


def spans_between(text: str, start: int, student: TokenizedBatch, teacher: TokenizedBatch) -> SpanTable:
    ranges = [np.array([(start, len(text))])]
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    return align(student=student.offsets, teacher=teacher.offsets, segments=segments, student_texts=[text])


def check_laws(text: str, start: int, student: SideTokenizer, teacher: SideTokenizer) -> None:
    batches = encoded(student, text, start), encoded(teacher, text, start)
    s_tokens, t_tokens = (tokens_of(batch) for batch in batches)
    table = spans_between(text, start, *batches)
    found = [
        (*s_span, *t_span)
        for s_span, t_span in zip(table.student_spans[0].tolist(), table.teacher_spans[0].tolist(), strict=True)
    ]
    pairs = {place: place for place in range(start, len(text))}
    assert found == reference.spans(student=s_tokens, teacher=t_tokens, pairs=pairs, student_range=(start, len(text)))

    # In order and disjoint, no special token, no shared boundary inside, the same characters on both sides.
    shared = {t.end for t in s_tokens if t.closes} & {t.end for t in t_tokens if t.closes}
    last_s = last_t = 0
    for s_start, s_stop, t_start, t_stop in found:
        assert last_s <= s_start < s_stop
        assert last_t <= t_start < t_stop
        inside = s_tokens[s_start:s_stop], t_tokens[t_start:t_stop]
        assert not any(token.is_special for side in inside for token in side)
        assert inside[0][-1].end == inside[1][-1].end
        assert not {token.end for token in inside[0][:-1] if token.closes} & shared
        begin = max((s_tokens[i].end for i in range(s_start)), default=0)
        assert max(begin, start) >= 0
        assert all(max(begin, start) <= token.start for side in inside for token in side if token.end > 0)
        last_s, last_t = s_stop, t_stop

    swapped = spans_between(text, start, batches[1], batches[0])
    assert np.array_equal(swapped.teacher_spans.values, table.student_spans.values)
    assert np.array_equal(swapped.student_spans.values, table.teacher_spans.values)


@settings(max_examples=150, deadline=None)
@given(text=texts(), share=st.floats(0, 1), student=st.sampled_from(NAMES), teacher=st.sampled_from(NAMES))
def test_laws_hold_for_every_pair_of_families(text: str, share: float, student: str, teacher: str) -> None:
    check_laws(text, int(share * len(text)), trained()[student], trained()[teacher])


@settings(max_examples=80, deadline=None)
@given(text=texts(), share=st.floats(0, 1), data=st.data())
def test_laws_hold_for_published_tokenizers(
    published: dict[str, SideTokenizer], text: str, share: float, data: st.DataObject
) -> None:
    names = st.sampled_from(sorted(published))
    check_laws(text, int(share * len(text)), published[data.draw(names)], published[data.draw(names)])


@settings(max_examples=60, deadline=None)
@given(text=texts(), name=st.sampled_from(NAMES))
def test_a_tokenizer_with_itself_gives_one_span_per_closing_token(text: str, name: str) -> None:
    batch = encoded(trained()[name], text, 0)
    table = spans_between(text, 0, batch, batch)
    assert len(table.student_starts) == int(batch.offsets.closes.values.sum())
    assert np.array_equal(table.student_spans.values, table.teacher_spans.values)


def test_a_decomposed_letter_is_not_aligned_with_its_bare_base(published: dict[str, SideTokenizer]) -> None:
    text = "e\u0301tude"
    table = spans_between(text, 0, *(encoded(published[name], text, 0) for name in ("gpt2", "qwen1.5-1.8b")))
    student = encoded(published["gpt2"], text, 0)
    first_end = student.offsets.ends[0][table.student_stops[0] - 1]
    assert first_end >= 2


def test_half_an_emoji_is_never_a_span(published: dict[str, SideTokenizer]) -> None:
    text = "a😀👩‍🚀b"
    for name in ("qwen1.5-1.8b", "tinyllama-1.1b"):
        student, teacher = (encoded(published[side], text, 0) for side in ("gpt2", name))
        table = spans_between(text, 0, student, teacher)
        pieces = [
            b"".join(
                published["gpt2"].vocabulary.byte_strings[token_id] or b""
                for token_id in student.ids[0][start:stop].tolist()
            ).decode()  # fails on half a character
            for start, stop in table.student_spans[0].tolist()
        ]
        assert "".join(pieces) == text
