"""Which tokens close a span: the rules of docs/method.md, section 2, on raw offsets.

A token closes a span at its end only if it is the last token with that end and no later token starts before it:
byte-level and byte-fallback tokenizers cut one character into several tokens with equal or overlapping offsets.
    "😀!" as |b1|b2 b3|b4|!|, offsets (0,1) (0,1) (0,1) (1,2) -> closes: no, no, yes, yes
An end first moves right over characters that no token covers and that are combining marks or conjoining jamo: there a
normaliser composed them into the character before.
    "e◌́x" under NFC: "é" has the offset (0, 1), "x" (2, 3) -> the end of "é" is 2

B = texts, N = tokens of all texts, special tokens not among them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.ragged import Ragged, splits_of

_JAMO = range(0x1160, 0x1200)  # medial vowels and final consonants, which compose with what stands before them


@dataclass(frozen=True, eq=False)
class ClosedTokens:
    """Offsets put in order, and which tokens close.

    Attributes:
        starts: int32, not decreasing in a row: the least start of this token and all after it.
        ends: int32, not decreasing in a row, extended over uncovered marks: the greatest end up to this token.
        closes: bool, whether a span may end with the token, at its end.
        covered: bool, rows of characters: whether a token covers each.
    """

    starts: Ragged
    ends: Ragged
    closes: Ragged
    covered: Ragged


def closing_tokens(*, starts: Ragged, ends: Ragged, texts: Sequence[str]) -> ClosedTokens:
    """Apply the closing rule to a batch.

    Offsets that run backwards (a normaliser that reorders marks) are put in order first, so that "closes" says: all
    tokens up to here end at or before the boundary, and all after it start at or behind it.

    Args:
        starts: [N] first character of each token, in its text.
        ends: [N] one past its last character.
        texts: [B] the texts the offsets count in.
    """
    spaced = "\0".join([*texts, ""])  # one NUL after each text: it keeps texts apart and is never a mark
    bases = splits_of([len(text) + 1 for text in texts])
    shift = np.repeat(bases[:-1], ends.lengths)
    lowest = np.minimum.accumulate((starts.values + shift)[::-1])[::-1]
    highest = np.maximum.accumulate(ends.values + shift)

    covered = _covered(starts.values + shift, ends.values + shift, len(spaced))
    highest = _extended(highest, covered, spaced)

    closes = np.ones(len(highest), dtype=bool)
    closes[:-1] = (lowest[1:] >= highest[:-1]) & (highest[1:] > highest[:-1])
    inside = np.ones(len(spaced), dtype=bool)
    inside[bases[1:] - 1] = False
    return ClosedTokens(
        starts=starts.with_values((lowest - shift).astype(np.int32)),
        ends=ends.with_values((highest - shift).astype(np.int32)),
        closes=ends.with_values(closes),
        covered=Ragged.from_lengths(covered[inside], [len(text) for text in texts]),
    )


def _covered(starts: NDArray[np.int64], ends: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """[length] whether some token covers the character."""
    depth = np.bincount(starts, minlength=length + 1) - np.bincount(ends, minlength=length + 1)
    return np.cumsum(depth)[:length] > 0


def _extended(ends: NDArray[np.int64], covered: NDArray[np.bool_], text: str) -> NDArray[np.int64]:
    """Each end moved right over the uncovered marks that follow it."""
    uncovered = np.flatnonzero(~covered)
    characters = [text[index] for index in uncovered.tolist()]
    joins = {character: is_mark_or_jamo(character) for character in set(characters)}
    marks = uncovered[[joins[character] for character in characters]] if characters else uncovered
    if not len(marks):
        return ends
    positions = np.arange(len(text) + 1)
    positions[marks] = len(text)
    return np.minimum.accumulate(positions[::-1])[::-1][ends]


def is_mark_or_jamo(character: str) -> bool:
    """Whether a normaliser may compose ``character`` into the one before it."""
    return unicodedata.category(character).startswith("M") or ord(character) in _JAMO
