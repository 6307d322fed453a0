"""The slicing check: whether what the offsets cut out of the text is what the pieces stand for.

Offsets that went through a normaliser can be wrong: marks reordered, two characters replaced by one, white space
trimmed. So the text between two closing ends is normalised and compared with the bytes of the pieces between them. An
end that fails moves right over characters no token covers, while that mends it; else it closes nothing and its tokens
are judged together with the next ones. A text whose last tokens never come out right has no usable offsets.

What stands only in a text's surroundings is allowed for: the space some tokenizers put in front, and the white space
others skip. To a tokenizer that reads any run of white space as one space (T5's), such a run and a space are the same.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.vocabulary import METASPACE

MAX_PENDING_CHARACTERS = 4096
_CACHED_SLICES = 200_000
_WHITE_SPACE = re.compile(rb"[ \t\n\r\f\v]+")
_BYTE_NAME = re.compile(rb"<0x([0-9A-F]{2})>")

Normalise = Callable[[str], str]
Surface = bytes | str | None  # what a piece stands for; a string for a special token, taken literally; None unknown


class SliceCheck:
    """Normalises slices as the tokenizer would inside a text, and remembers them."""

    def __init__(self, normalise: Normalise | None, *, collapses: Callable[[], bool] = lambda: False) -> None:
        """``normalise`` maps a whole text; None where the tokenizer takes texts as they are.

        ``collapses`` says, when it is asked for the first time, whether the tokenizer reads a run of white space as one
        space.
        """
        self._normalise = normalise
        self._collapses = collapses
        self._cache: dict[str, str] = {}
        self._before = normalise("x").removesuffix("x") if normalise else ""

    def normalised(self, characters: str) -> str:
        """``characters`` as they come out in the middle of a text, spaces written as spaces."""
        found = self._cache.get(characters)
        if found is None:
            if len(self._cache) >= _CACHED_SLICES:
                self._cache.clear()
            found = self._cache[characters] = self._in_context(characters).replace(METASPACE, " ")
        return found

    def _in_context(self, characters: str) -> str:
        if self._normalise is None:
            return characters
        # Between two letters nothing is stripped or put in front as it is at the ends of a text.
        framed = self._normalise(f"x{characters}x")
        if framed.startswith(self._before + "x") and framed.endswith("x") and len(framed) > len(self._before) + 1:
            return framed[len(self._before) + 1 : -1]
        return self._normalise(characters)

    def agrees(self, characters: str, surface: bytes, *, at_start: bool) -> bool:
        """Whether ``characters`` of the text are what pieces of the bytes ``surface`` stand for.

        ``at_start`` is where the text, or what follows a special token, begins: there one space may have been added.
        """
        normalised = self.normalised(characters)
        read = normalised.encode("utf-8", "surrogatepass").replace(METASPACE.encode(), b" ")
        written = surface.replace(METASPACE.encode(), b" ")
        if read == written or (at_start and b" " + read == written):
            return True
        if b"<0x" in read:  # a text may spell the name of a byte, and Unigram models take it for the byte
            read = _BYTE_NAME.sub(lambda match: bytes([int(match[1], 16)]), read)
            return read == written or (at_start and b" " + read == written)
        if self._collapses() and _collapsed(read) == _collapsed(written):
            return True
        bare = written.strip()
        return bool(bare) and (at_start or bare == written) and normalised.strip().encode() == bare


def _collapsed(characters: bytes) -> bytes:
    """Every run of white space as one space; Unicode's own kinds of it are spaces to nobody but the normaliser."""
    return _WHITE_SPACE.sub(b" ", characters)


def verified(
    text: str,
    *,
    starts: NDArray[np.int32],
    ends: NDArray[np.int32],
    closes: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    surfaces: Sequence[Surface],
    check: SliceCheck,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]] | None:
    """Offsets of one text of which every closing end has been checked; None if they cannot be used.

    Args:
        text: What was tokenized.
        starts: [N] from ``closing_tokens``.
        ends: [N] likewise.
        closes: [N] likewise.
        covered: [characters] whether a token covers the character.
        surfaces: [N] what each token's piece stands for.
        check: The tokenizer's slicing check.

    Returns:
        starts, ends and closes, each [N].
    """
    starts, ends, closes = starts.copy(), ends.copy(), closes.copy()
    begin, group, failed, at_start = 0, 0, False, True
    start_list, end_list = starts.tolist(), ends.tolist()
    for token in np.flatnonzero(closes).tolist():
        pieces = surfaces[group : token + 1]
        end = end_list[token]
        next_start = start_list[token + 1] if token + 1 < len(start_list) else len(text)
        if all(isinstance(piece, bytes) for piece in pieces):
            surface = b"".join(piece for piece in pieces if isinstance(piece, bytes))
            stop: int | None = _agreeing_end(text, begin, end, next_start, covered, surface, check, at_start)
            at_start = False
        else:
            # No bytes to compare: an unknown or special token is located by what stands around it.
            if failed or not _holds_literally(text[begin:end], pieces):
                return None
            at_start = isinstance(pieces[-1], str)
            stop = end if at_start else _composed_end(text, begin, end, next_start, covered, check)
        if stop is None:
            closes[token], failed = False, True
            if end - begin > MAX_PENDING_CHARACTERS:
                return None
            continue
        if failed:
            starts[group : token + 1], ends[group : token + 1] = begin, stop
        ends[token] = stop
        begin, group, failed = stop, token + 1, False
    if group < len(ends):
        return None
    return starts, np.maximum.accumulate(ends) if len(ends) else ends, closes


def _agreeing_end(
    text: str,
    begin: int,
    end: int,
    next_start: int,
    covered: NDArray[np.bool_],
    surface: bytes,
    check: SliceCheck,
    at_start: bool,
) -> int | None:
    """The first end from ``end`` on, over uncovered characters only, at which the slice is what the pieces say."""
    while not check.agrees(text[begin:end], surface, at_start=at_start):
        if end >= next_start or covered[end]:
            return None
        end += 1
    return end


def _composed_end(
    text: str, begin: int, end: int, next_start: int, covered: NDArray[np.bool_], check: SliceCheck
) -> int:
    """The end of an unknown piece, moved over uncovered characters that the normaliser composed into it."""
    while end < next_start and not covered[end]:
        apart = check.normalised(text[begin:end]) + check.normalised(text[end])
        if check.normalised(text[begin : end + 1]) == apart:
            break
        end += 1
    return end


def _holds_literally(characters: str, pieces: Sequence[Surface]) -> bool:
    return all(piece in characters for piece in pieces if isinstance(piece, str))
