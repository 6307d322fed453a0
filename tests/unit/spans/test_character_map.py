"""Pieces that spell a text are believed; pieces that differ from it in any byte, however long they are, are not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.spans.character_map import CharacterOffsets, PieceTable, offsets_from_pieces
from sra_data.spans.ragged import Ragged
from tests.reference import alignment as reference


def located(rows: list[tuple[str, list[bytes]]]) -> CharacterOffsets:
    """Every piece of every text under an id of its own."""
    pieces = [piece for _, own in rows for piece in own]
    ids = Ragged.from_lengths(np.arange(len(pieces), dtype=np.int32), [len(own) for _, own in rows])
    return offsets_from_pieces(ids=ids, pieces=PieceTable(pieces), texts=[text for text, _ in rows])


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text and its bytes in pieces of any length."""
    text = draw(st.text("abcdefgh é😀", min_size=1, max_size=60))
    written = text.encode()
    inner = draw(st.sets(st.integers(1, max(len(written) - 1, 1)), max_size=5))
    places = sorted({0, len(written)} | {place for place in inner if place < len(written)})
    return text, [written[start:stop] for start, stop in pairwise(places)]


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(cut_texts(), min_size=1, max_size=3), data=st.data())
def test_a_text_is_exact_only_if_every_byte_of_every_piece_is_its_own(
    rows: list[tuple[str, list[bytes]]], data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(rows) - 1))
    text, pieces = rows[row]
    place = data.draw(st.integers(0, len(text.encode()) - 1))
    changed = bytearray(b"".join(pieces))
    changed[place] ^= data.draw(st.sampled_from([1, 0x20, 0x80]))
    stops = np.cumsum([len(piece) for piece in pieces]).tolist()
    other = [bytes(changed[start:stop]) for start, stop in pairwise([0, *stops])]
    found = located([*rows[:row], (text, other), *rows[row + 1 :]])
    assert found.exact.tolist() == [number != row for number in range(len(rows))]
    for number, (own_text, own) in enumerate(rows):
        if number != row:
            expected = reference.tokens_by_bytes(own_text, own)
            assert expected is not None
            assert found.ends[number].tolist() == [token.end for token in expected]


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 24, 40])
def test_a_long_piece_is_compared_to_its_last_byte(length: int) -> None:
    piece = bytes(range(97, 123)) * 2
    text = piece[:length].decode()
    assert located([(text, [piece[:length]])]).exact.all()
    for place in range(length):
        wrong = piece[:place] + b"~" + piece[place + 1 : length]
        assert not located([(text, [wrong])]).exact.any(), place
