"""From the bytes of the pieces to the characters of the text, exactly and for a whole batch at once.

Most tokenizers write the text down unchanged: the bytes their pieces stand for, one after the other, ARE the text
(with one space in front for those that add it). Where that holds, and it is checked byte by byte, the characters of
every token follow from a running sum of piece lengths; nothing a tokenizer says about offsets has to be believed, and
the Python list of offset pairs, which costs a tenth of the tokenizing, is never built.
    "né" = 6E C3 A9 as pieces 6E C3 | A9 -> byte ends 2, 3 -> characters [0, 2), [1, 2): the first closes nothing

B = texts, N = tokens of all texts, L = UTF-8 bytes of all texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.ragged import Ragged, splits_of

_NEVER_IN_UTF_8 = b"\xff"
_WORD = 8  # bytes compared at a time
# Ones over the first n bytes of a little-endian word, n from 0 to 8.
_MASKS = np.array([256**length - 1 for length in range(_WORD + 1)], dtype=np.uint64)
Index = NDArray[np.int64]


class PieceTable:
    """The bytes each id stands for, laid out for comparing a batch at once.

    Ids that stand for no bytes get a byte no text holds, so that a text with such an id never passes for exact.

    Attributes:
        lengths: [V] int64, bytes of each piece.
        heads: [V] uint64, the first eight bytes of each piece, zeros behind shorter ones.
        head_masks: [V] uint64, ones where ``heads`` holds bytes of the piece.
        words: uint64, every piece padded with zeros to whole words, one after the other.
        first_words: [V] int64, where each begins in ``words``.
    """

    def __init__(self, byte_strings: Sequence[bytes | None]) -> None:
        """``byte_strings``: [V], None or empty where an id stands for no bytes."""
        pieces = [piece or _NEVER_IN_UTF_8 for piece in byte_strings]
        self.lengths: Index = np.array([len(piece) for piece in pieces], dtype=np.int64)
        padded = b"".join([piece.ljust(-(-len(piece) // _WORD) * _WORD, b"\0") for piece in pieces])
        self.words: NDArray[np.uint64] = np.frombuffer(padded, dtype="<u8").astype(np.uint64)
        self.first_words: Index = splits_of((self.lengths + _WORD - 1) // _WORD)[:-1]
        self.heads: NDArray[np.uint64] = self.words[self.first_words]
        self.head_masks: NDArray[np.uint64] = _MASKS[np.minimum(self.lengths, _WORD)]


@dataclass(frozen=True, eq=False)
class CharacterOffsets:
    """What each token covers, in characters; true only in the texts marked exact.

    Attributes:
        starts: int32, the character the token's first byte belongs to.
        ends: int32, one past the character its last byte belongs to.
        closes: bool, the token ends with a whole character.
        exact: [B] bool, the pieces' bytes are the text's. Rows that are not hold no usable offsets.
    """

    starts: Ragged
    ends: Ragged
    closes: Ragged
    exact: NDArray[np.bool_]


def offsets_from_pieces(*, ids: Ragged, pieces: PieceTable, texts: Sequence[str]) -> CharacterOffsets:
    """Characters of every token from the lengths of the pieces.

    Args:
        ids: [B] rows, the ids of each text's tokens.
        pieces: The tokenizer's vocabulary.
        texts: [B] what was tokenized; encodable as UTF-8.
    """
    # ``take`` and 64-bit indices throughout: on this path plain indexing would cost half as much again.
    flat_ids = ids.values.astype(np.int64)
    token_lengths = pieces.lengths.take(flat_ids)
    stops = np.cumsum(token_lengths)
    borders = np.concatenate(([0], stops))[ids.splits]
    encoded = [text.encode() for text in texts]
    prepended = np.diff(borders) == np.array([len(text) for text in encoded], dtype=np.int64) + 1
    for row in np.flatnonzero(prepended).tolist():
        encoded[row] = b" " + encoded[row]

    # Byte positions of all texts laid end to end; tokens that run past their text are cut to it, the text not exact.
    text_splits = splits_of([len(text) for text in encoded])
    joined = np.frombuffer(b"".join([*encoded, bytes(2 * _WORD)]), dtype=np.uint8)
    fits = np.diff(borders) == np.diff(text_splits)
    if not fits.all():
        stops += np.repeat(text_splits[:-1] - borders[:-1], ids.lengths)
        np.clip(stops, None, np.repeat(text_splits[1:], ids.lengths), out=stops)
    begins = np.empty_like(stops)
    begins[1:] = stops[:-1]
    occupied = ids.lengths > 0
    begins[ids.splits[:-1][occupied]] = text_splits[:-1][occupied]

    exact = fits.copy()
    exact[np.searchsorted(ids.splits, _misspelt(flat_ids, begins, token_lengths, pieces, joined), side="right") - 1] = (
        False
    )
    base = splits_of([len(text) for text in texts])[:-1] + np.cumsum(prepended) - prepended
    starts, ends, closes = _to_characters(begins, stops, np.repeat(base, ids.lengths), joined)
    if prepended.any():
        # The space in front is no character of the text: a token of nothing else gets the first one, as tokenizers say.
        shift = np.repeat(prepended, ids.lengths)
        closes &= ends > shift
        starts, ends = np.maximum(starts - shift, 0), np.maximum(ends - shift, 1)
    return CharacterOffsets(
        starts=ids.with_values(starts.astype(np.int32)),
        ends=ids.with_values(ends.astype(np.int32)),
        closes=ids.with_values(closes),
        exact=exact,
    )


def _misspelt(ids: Index, begins: Index, token_lengths: Index, pieces: PieceTable, joined: NDArray[np.uint8]) -> Index:
    """Tokens whose bytes are not those at ``begins`` [N] of the texts: eight bytes of every token at a time."""
    words = np.ndarray(len(joined) - _WORD + 1, dtype="<u8", buffer=joined, strides=(1,))  # from every position
    found = words.take(begins)
    found &= pieces.head_masks.take(ids)
    wrong = [np.flatnonzero(found != pieces.heads.take(ids))]
    tokens = np.flatnonzero(token_lengths > _WORD)
    left, places, piece_words = token_lengths[tokens], begins[tokens], pieces.first_words[ids[tokens]]
    while len(tokens):
        left, places, piece_words = left - _WORD, places + _WORD, piece_words + 1
        np.minimum(places, len(words) - 1, out=places)  # past the end only in a text that does not fit anyway
        found = words.take(places) & _MASKS.take(np.minimum(left, _WORD))
        wrong.append(tokens[found != pieces.words[piece_words]])
        longer = left > _WORD
        tokens, left, places, piece_words = tokens[longer], left[longer], places[longer], piece_words[longer]
    return np.concatenate(wrong)


def _to_characters(
    begins: Index, stops: Index, base: Index, joined: NDArray[np.uint8]
) -> tuple[Index, Index, NDArray[np.bool_]]:
    """Byte ranges [begins, stops) [N] to characters, counted from each token's ``base``."""
    is_lead = (joined & 0xC0) != 0x80  # every byte but the second to fourth of a character; the padding is too
    character = np.cumsum(is_lead, dtype=np.int32)  # [L] characters begun up to this byte
    last = np.maximum(stops - 1, begins)
    return character.take(begins) - 1 - base, character.take(last) - base, is_lead.take(stops)
