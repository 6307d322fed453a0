"""Offsets for tokenizers that have none worth trusting: recovered from the pieces, or not at all.

Pieces and text are folded alike (compatibility decomposition, lower case, marks, white space and invisible characters
dropped). Where the folded pieces are a subsequence of the folded text, they are its longest common subsequence, and
there may be several ways to lay them in it. The leftmost and the rightmost way bound all others: a character both put
in the same place is there in every one. Only tokens whose characters are pinned down like this get a boundary; where
the pieces do not fit at all there is no answer, and the caller refuses the text.
    text "a b", pieces "a" "[UNK]": "a" can only be character 0 -> end 1, closes only if the next token is pinned too
    text "aba", pieces "[UNK]" "a": "a" may be character 0 or 2 -> no boundary, rather than a wrong one

N = tokens of one text.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DROPPED = frozenset({"Mn", "Mc", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"})


def recovered_offsets(
    text: str, surfaces: Sequence[bytes | None]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]] | None:
    """Lay the pieces of one text into it.

    Args:
        text: What was tokenized.
        surfaces: [N] bytes each token stands for; None for an unknown token, which may stand for anything.

    Returns:
        starts and ends [N] int32, the widest a token may reach, and closes [N] bool as ``closing_tokens`` means it,
        where the end is exact; None if the pieces are not in the text.
    """
    folded_text = [(part, place) for place, character in enumerate(text) for part in fold(character)]
    characters = _characters_of(surfaces)
    if characters is None:
        return None
    folded = [(part, index) for index, (_, character) in enumerate(characters) for part in fold(character)]
    places = _forced_places([part for part, _ in folded], [part for part, _ in folded_text])
    if places is None:
        return None

    # Place of each decoded character in the text; -1 where it vanished in the fold or is not pinned down.
    first_place = np.full(len(characters), -1, dtype=np.int64)
    last_place = np.full(len(characters), -1, dtype=np.int64)
    loose = np.zeros(len(characters), dtype=bool)
    for (_, index), place in zip(folded, places, strict=True):
        if place < 0:
            loose[index] = True
            continue
        if first_place[index] < 0:
            first_place[index] = folded_text[place][1]
        last_place[index] = folded_text[place][1]
    first_place[loose] = last_place[loose] = -1
    return _token_offsets(text, characters, first_place, last_place, len(surfaces))


def fold(character: str) -> str:
    """What is left of a character that normalisers may compose, decompose, lower or drop."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).lower())
    return "".join(part for part in decomposed if unicodedata.category(part) not in _DROPPED)


def _characters_of(surfaces: Sequence[bytes | None]) -> list[tuple[range, str]] | None:
    """The characters the pieces spell, each with the tokens that hold its bytes; None if it is no UTF-8.

    An unknown token breaks the text in two: no character reaches over it.
    """
    characters: list[tuple[range, str]] = []
    owners: list[int] = []
    pending = b""
    for token, surface in enumerate([*surfaces, None]):
        if surface is not None:
            pending += surface
            owners += [token] * len(surface)
            continue
        try:
            decoded = pending.decode()
        except UnicodeDecodeError:
            return None
        position = 0
        for character in decoded:
            size = len(character.encode())
            characters.append((range(owners[position], owners[position + size - 1] + 1), character))
            position += size
        pending, owners = b"", []
    return characters


def _forced_places(parts: Sequence[str], text_parts: Sequence[str]) -> list[int] | None:
    """Where each part must stand in the text; -1 where there is a choice; None if the parts are no subsequence."""
    leftmost = _greedy(parts, text_parts)
    if leftmost is None:
        return None
    backwards = _greedy(parts[::-1], text_parts[::-1])
    assert backwards is not None, "a subsequence read backwards is one too"
    last = len(text_parts) - 1
    return [left if left == last - right else -1 for left, right in zip(leftmost, backwards[::-1], strict=True)]


def _greedy(parts: Sequence[str], text_parts: Sequence[str]) -> list[int] | None:
    places: list[int] = []
    place = 0
    for part in parts:
        while place < len(text_parts) and text_parts[place] != part:
            place += 1
        if place == len(text_parts):
            return None
        places.append(place)
        place += 1
    return places


def _token_offsets(
    text: str,
    characters: list[tuple[range, str]],
    first_place: NDArray[np.int64],
    last_place: NDArray[np.int64],
    num_tokens: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Offsets of tokens from the places of their characters.

    A token closes where its last character, marks aside, is its own and pinned down, and so is the first character of
    the next token: what stands between the two and leaves no trace are marks of the first, or white space.
    """
    starts = np.full(num_tokens, len(text), dtype=np.int64)
    ends = np.zeros(num_tokens, dtype=np.int64)
    pinned_start = np.zeros(num_tokens, dtype=bool)
    pinned_end = np.zeros(num_tokens, dtype=bool)
    seen = np.zeros(num_tokens, dtype=bool)
    for index, (tokens, character) in enumerate(characters):
        pinned = bool(first_place[index] >= 0)
        is_mark = _is_mark(character)
        for token in tokens:
            if not seen[token]:
                pinned_start[token] = pinned and len(tokens) == 1
                seen[token] = True
            if not is_mark:
                pinned_end[token] = pinned and token == tokens[-1]
            if pinned:
                starts[token] = min(starts[token], first_place[index])
                ends[token] = max(ends[token], last_place[index] + 1)
    # A border that is not pinned down may be anywhere between the characters before and behind that are.
    highest = np.maximum.accumulate(ends)
    lowest = np.minimum.accumulate(starts[::-1])[::-1]
    starts = np.where(pinned_start, starts, np.concatenate(([0], highest))[:-1])
    ends = np.where(pinned_end, ends, np.append(lowest, len(text))[1:])
    closes = pinned_end.copy()
    closes[:-1] &= pinned_start[1:] & (starts[1:] >= ends[:-1])
    for token in np.flatnonzero(closes).tolist():
        limit = starts[token + 1] if token + 1 < num_tokens else len(text)
        while ends[token] < limit and _is_mark(text[ends[token]]):
            ends[token] += 1
    starts = np.minimum.accumulate(starts[::-1])[::-1]
    return starts.astype(np.int32), np.maximum.accumulate(ends).astype(np.int32), closes


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
