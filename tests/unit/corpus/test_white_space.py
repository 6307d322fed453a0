"""Tokenizers to which a run of white space is one space lose none of a text's boundaries by it."""

from __future__ import annotations

import numpy as np

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.spans.alignment import align, segments_for
from tests.tokenizer_zoo import ZOO_TEXTS, train_byte_level_bpe, train_t5_like, train_unigram

TEXTS = [
    "Two  spaces, three   and a tab\tbetween words.",
    "A paragraph.\n\nAnother one,\n  indented.\r\n\r\nThe end.  ",
    "\n\nleading and trailing \n",
    *(text.replace(" ", "\n\n", 3).replace(". ", ".  ") for text in ZOO_TEXTS),
]


def ends_by_walking(side: SideTokenizer, text: str) -> set[int]:
    """Where tokens end, by a walk of its own: a word's mark takes all white space, any other character itself.

    Empty from the first character on that the pieces do not spell: bytes of a character, unknown pieces.
    """
    ends, place = set(), 0
    for piece in side.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens:
        for character in piece if not piece.startswith("<") else "\0":
            if character == "\u2581":
                while place < len(text) and text[place].isspace():
                    place += 1
            elif place < len(text) and text[place] == character:
                place += 1
            else:
                return ends
        if piece != "\u2581":  # the border before a word is where the other side has none
            ends.add(place)
    return ends


def spans_between(text: str, one: SideTokenizer, other: SideTokenizer) -> set[int]:
    """Ends of the spans."""
    batches = [side.encode([text], response_ranges=[[(0, len(text))]], is_chat=False) for side in (one, other)]
    ranges = [np.array([(0, len(text))])]
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    table = align(student=batches[0].offsets, teacher=batches[1].offsets, segments=segments, student_texts=[text])
    return {int(batches[0].offsets.ends[0][stop - 1]) for _, stop in table.student_spans[0].tolist()}


def test_a_run_of_white_space_costs_a_t5_like_tokenizer_no_span() -> None:
    t5, bpe = SideTokenizer(train_t5_like(), "t5"), SideTokenizer(train_byte_level_bpe(), "bpe")
    found = expected = 0
    for text in TEXTS:
        walked = ends_by_walking(t5, text)
        batch = bpe.encode([text], response_ranges=[[(0, len(text))]], is_chat=False)
        closing = set(batch.offsets.ends[0][batch.offsets.closes[0]].tolist())
        reference = walked & closing
        spans = spans_between(text, bpe, t5)
        if reference:
            assert {end for end in spans if end <= max(walked)} <= reference  # and none is wrong
        found, expected = found + len(spans & reference), expected + len(reference)
    assert expected > 100
    assert found >= 0.95 * expected


def test_texts_are_counted_by_how_their_tokens_were_located() -> None:
    t5, unigram = SideTokenizer(train_t5_like(), "t5"), SideTokenizer(train_unigram(), "unigram")
    texts = ["one two", "one  two\n\nthree"]
    ranges = [[(0, len(text))] for text in texts]
    assert unigram.encode(texts, response_ranges=ranges, is_chat=False).counts == {}
    assert t5.encode(texts, response_ranges=ranges, is_chat=False).counts == {"located_by_offsets": 1}


def test_a_tokenizer_that_keeps_white_space_is_held_to_it() -> None:
    assert SideTokenizer(train_t5_like(), "t5")._reader._collapses_white_space()
    for train in (train_unigram, train_byte_level_bpe):
        assert not SideTokenizer(train(), "keeps")._reader._collapses_white_space()
