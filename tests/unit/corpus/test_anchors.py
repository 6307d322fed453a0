"""Where some tokens of a text cannot be located, those behind them still are, and none of them is put wrong."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import TokenizerError
from sra_data.spans.alignment import align, segments_for
from sra_data.spans.closing import closing_tokens
from sra_data.spans.ragged import Ragged
from sra_data.spans.verification import SliceCheck, verified
from tests.tokenizer_zoo import train_byte_level_bpe, train_t5_like

# What a digit does to what stands behind it is not to be seen in any slice that begins behind the digit.
REWRITES = {
    "another character": normalizers.Replace(Regex(r"(?<=[0-9])\."), ","),
    "more characters": normalizers.Replace(Regex(r"(?<=[0-9])\."), " point "),
    "none": normalizers.Replace(Regex(r"(?<=[0-9])\."), ""),
}
SENTENCE = "Version 3.14 is out, and the quick brown fox jumps over 12 lazy dogs; then 2.71 more of them come by."


@cache
def side_of(rewrites: str) -> SideTokenizer:
    """One token a character, behind a normaliser that looks back."""
    alphabet = ["<unk>", "</s>", *map(chr, range(32, 127)), "\n", "é"]
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(alphabet)}, unk_token="<unk>"))
    backend.normalizer = REWRITES[rewrites]
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    return SideTokenizer(tokenizer, rewrites)


def closing(side: SideTokenizer, text: str, **options) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """(token, end) of what closes, and what was counted."""
    batch = side.encode([text], response_ranges=[[(0, len(text))]], is_chat=False, **options)
    found = np.flatnonzero(batch.offsets.closes[0])
    return list(zip(found.tolist(), batch.offsets.ends[0][found].tolist(), strict=True)), dict(batch.counts)


def check(side: SideTokenizer, text: str, found: list[tuple[int, int]]) -> None:
    """The normaliser looks back and never ahead: so what stands before an end, rewritten, is what the pieces spell."""
    backend = side.tokenizer.backend_tokenizer
    pieces = backend.encode(text, add_special_tokens=False).tokens
    for token, end in found:
        assert backend.normalizer.normalize_str(text[:end]) == "".join(pieces[: token + 1]), (token, end)


@pytest.mark.parametrize("rewrites", REWRITES)
def test_what_stands_behind_a_token_that_cannot_be_located_is_located_and_counted(rewrites: str) -> None:
    side = side_of(rewrites)
    found, counts = closing(side, SENTENCE)
    check(side, SENTENCE, found)
    assert counts == {"located_in_parts": 1}
    ends = {end for _, end in found}
    missing = set(range(1, len(SENTENCE) + 1)) - ends
    assert len(missing) <= 4
    assert all(min(abs(place - SENTENCE.index(number)) for number in (".14", ".71")) <= 2 for place in missing)
    for batch_text in ("Nothing to rewrite here.", "3", ""):
        assert closing(side, batch_text)[1] == {}


@pytest.mark.parametrize("rewrites", REWRITES)
def test_spans_behind_the_gap_are_kept(rewrites: str) -> None:
    one, other = side_of(rewrites), SideTokenizer(train_byte_level_bpe(), "bpe")
    text = " ".join([SENTENCE, SENTENCE[::-1], SENTENCE.upper()])
    batches = [side.encode([text], response_ranges=[[(0, len(text))]], is_chat=False) for side in (one, other)]
    ranges = [np.array([(0, len(text))])]
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    table = align(student=batches[0].offsets, teacher=batches[1].offsets, segments=segments, student_texts=[text])
    reference = set(batches[1].offsets.ends[0][batches[1].offsets.closes[0]].tolist())  # the other cuts characters
    ends = batches[0].offsets.ends[0][table.student_stops - 1].tolist()
    assert set(ends) <= reference
    assert len(ends) >= 0.95 * len(reference)
    assert ends[-1] == len(text)
    assert ends == batches[1].offsets.ends[0][table.teacher_stops - 1].tolist()


PARTS = ("3.14", "2.", " fox ", "the dog ", "abab", "aaaaaaaa", " ", "\n\n", "é")


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.one_of(st.sampled_from(PARTS), st.text("ab3. ", max_size=8)), max_size=14),
    rewrites=st.sampled_from(sorted(REWRITES)),
)
def test_no_boundary_is_wrong_whatever_repeats(parts: list[str], rewrites: str) -> None:
    side, text = side_of(rewrites), "".join(parts)
    found, counts = closing(side, text, skip_unlocatable=True)
    check(side, text, found)
    ends = [end for _, end in found]
    assert ends == sorted(set(ends))
    if not counts:
        assert len(found) in (0, len(text)) or "." in text


def test_offsets_that_are_wrong_in_words_that_repeat_are_not_believed() -> None:
    """Which of the four a tokenizer left out is not to be seen; what it says of the others may be one place wrong."""
    words, end = "fox dog ", "The quick one jumps."
    text = f"a#{4 * words}#{end}"
    pieces = [
        b"a",
        b"?",
        *(bytes([byte]) for byte in (3 * words).encode()),
        b"?",
        *(bytes([byte]) for byte in end.encode()),
    ]
    places = [0, 1, *range(2 + len(words), 2 + 4 * len(words)), *range(2 + 4 * len(words), len(text))]
    starts, ends = (Ragged.from_list([[place + one for place in places]], np.int32) for one in (0, 1))
    closed = closing_tokens(starts=starts, ends=ends, texts=[text])
    found = verified(
        text,
        starts=closed.starts[0],
        ends=closed.ends[0],
        closes=closed.closes[0],
        covered=closed.covered[0],
        surfaces=pieces,
        check=SliceCheck(None),
    )
    assert found is not None
    assert found.num_gaps == 1
    assert found.ends[found.closes].tolist() == [1, *range(len(text) - len(end) + 1, len(text) + 1)]


def test_a_text_that_repeats_itself_has_no_anchor_and_is_refused_as_before() -> None:
    side, text = side_of("more characters"), "1.1.1.1.1.1.1.1.1."
    with pytest.raises(TokenizerError, match="cannot be matched to the characters of this text"):
        closing(side, text)
    found, counts = closing(side, text, skip_unlocatable=True)
    assert (found, counts) == ([], {})


def test_a_t5_like_tokenizer_needs_no_anchor_for_white_space() -> None:
    text = "Two  spaces.\n\nA paragraph,\tand a tab.\r\n  The end."
    assert closing(SideTokenizer(train_t5_like(), "t5"), text)[1] == {"located_by_offsets": 1}
