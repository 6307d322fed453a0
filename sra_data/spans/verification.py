"""The slicing check: whether what the offsets cut out of the text is what the pieces stand for.

Offsets that went through a normaliser can be wrong: marks reordered, two characters replaced by one, white space
trimmed. So the text between two closing ends is normalised and compared with the bytes of the pieces between them. An
end that fails moves right over characters no token covers, while that mends it; else it closes nothing and its tokens
are judged together with the next ones.

Where they never come out right, the text is taken up again further on, at an anchor: a stretch that occurs once in what
is left of the text and that the pieces at that place spell, or all of its end. Nothing in between closes. A text whose
last tokens never come out right has no usable offsets.

What stands only in a text's surroundings is allowed for: the space some tokenizers put in front, and the white space
others skip. To a tokenizer that reads any run of white space as one space (T5's), such a run and a space are the same.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.vocabulary import METASPACE

MAX_PENDING_CHARACTERS = 4096
ANCHOR_CHARACTERS = (12, 48)  # an anchor has the first number, and more up to the second until it occurs once
MAX_ANCHORS = 64  # in one text
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


@dataclass(frozen=True, eq=False)
class Verified:
    """Offsets of one text of which every closing end has been checked.

    Attributes:
        starts: [N] int32; ends [N] int32; closes [N] bool.
        num_gaps: Places at which tokens could not be located, and the text was taken up again behind them.
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    closes: NDArray[np.bool_]
    num_gaps: int


def verified(
    text: str,
    *,
    starts: NDArray[np.int32],
    ends: NDArray[np.int32],
    closes: NDArray[np.bool_],
    covered: NDArray[np.bool_],
    surfaces: Sequence[Surface],
    check: SliceCheck,
) -> Verified | None:
    """Check a text's offsets; None if they cannot be used.

    Args:
        text: What was tokenized.
        starts: [N] from ``closing_tokens``.
        ends: [N] likewise.
        closes: [N] likewise.
        covered: [characters] whether a token covers the character.
        surfaces: [N] what each token's piece stands for.
        check: The tokenizer's slicing check.
    """
    walk = _Walk(text, starts.copy(), ends.copy(), closes.copy(), covered, surfaces, check)
    while not walk.goes_to_the_end():
        if walk.num_gaps == MAX_ANCHORS or not walk.take_up_again():
            return None
    last = np.maximum.accumulate(walk.ends) if len(ends) else walk.ends
    return Verified(walk.starts, last, walk.closes, walk.num_gaps)


class _Walk:
    """One text, checked from its first token to its last.

    Attributes:
        starts, ends, closes: [N], what is found.
        num_gaps: How often it was taken up again.
    """

    def __init__(
        self,
        text: str,
        starts: NDArray[np.int32],
        ends: NDArray[np.int32],
        closes: NDArray[np.bool_],
        covered: NDArray[np.bool_],
        surfaces: Sequence[Surface],
        check: SliceCheck,
    ) -> None:
        self.starts, self.ends, self.closes = starts, ends, closes
        self.num_gaps = 0
        self._text, self._covered, self._surfaces, self._check = text, covered, surfaces, check
        self._said_starts, self._said_ends = starts.tolist(), ends.tolist()
        self._closing = np.flatnonzero(closes).tolist()
        # What is checked next: the first token without a checked end, and the character and closing token it may be at.
        self._group = self._begin = self._next = 0

    def goes_to_the_end(self) -> bool:
        """Go on until the text is over, or its tokens cannot be located."""
        failed, at_start = False, self._group == 0
        for index in range(self._next, len(self._closing)):
            token = self._closing[index]
            pieces = self._surfaces[self._group : token + 1]
            if all(isinstance(piece, bytes) for piece in pieces):
                stop = self._agreeing(self._begin, self._group, token, at_start)
                at_start = False
            else:
                # No bytes to compare: an unknown or special token is located by what stands around it.
                end = self._said_ends[token]
                if failed or not _holds_literally(self._text[self._begin : end], pieces):
                    return False
                at_start = isinstance(pieces[-1], str)
                stop = end if at_start else self._composed(token)
            if stop is None:
                self.closes[token], failed = False, True
                if self._said_ends[token] - self._begin > MAX_PENDING_CHARACTERS:
                    return False
                continue
            if failed:
                self.starts[self._group : token + 1], self.ends[self._group : token + 1] = self._begin, stop
            self.ends[token] = stop
            self._begin, self._group, self._next, failed = stop, token + 1, index + 1, False
        return self._group == len(self.ends)

    def take_up_again(self) -> bool:
        """Go to the next anchor; False where there is none."""
        for index in range(self._next + 1, len(self._closing)):
            token = self._closing[index - 1] + 1
            place = max(self._begin, self._said_ends[token - 1])
            if not self._is_anchor(place, token, index):
                continue
            gap = slice(self._group, token)
            self.starts[gap], self.ends[gap], self.closes[gap] = self._begin, place, False
            self.closes[token:] = False
            self.closes[self._closing[index:]] = True
            self._begin, self._group, self._next = place, token, index
            self.num_gaps += 1
            return True
        return False

    def _is_anchor(self, place: int, token: int, index: int) -> bool:
        """Whether what stands at a place can be nothing but the pieces from a token on."""
        begin, group = place, token
        least, most = ANCHOR_CHARACTERS
        for closing in self._closing[index:]:
            if not all(isinstance(piece, bytes) for piece in self._surfaces[group : closing + 1]):
                return False
            stop = self._agreeing(begin, group, closing, at_start=False)
            if stop is None:
                return False
            begin, group = stop, closing + 1
            stretch = self._text[place:stop].strip()
            if len(stretch) >= least:
                first = self._text.find(stretch, self._begin)
                if self._text.find(stretch, first + 1) < 0:
                    return True
            if len(stretch) > most:
                return False
        return group == len(self.ends) and not self._text[begin:].strip()

    def _agreeing(self, begin: int, group: int, token: int, at_start: bool) -> int | None:
        """The first end of some tokens, from what is said on, at which the slice is what their pieces say."""
        surface = b"".join(piece for piece in self._surfaces[group : token + 1] if isinstance(piece, bytes))
        end, next_start = self._said_ends[token], self._start_behind(token)
        return _agreeing_end(self._text, begin, end, next_start, self._covered, surface, self._check, at_start)

    def _composed(self, token: int) -> int:
        end, next_start = self._said_ends[token], self._start_behind(token)
        return _composed_end(self._text, self._begin, end, next_start, self._covered, self._check)

    def _start_behind(self, token: int) -> int:
        """Where the next token begins, or the text ends."""
        return self._said_starts[token + 1] if token + 1 < len(self._said_starts) else len(self._text)


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
