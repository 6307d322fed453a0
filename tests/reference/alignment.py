"""The spans of method.md section 2, worked out slowly: characters one by one, sets and loops, one example at a time.

Shares nothing with the implementation, not even its array type. Tokens are (start, end) pairs or, where more is known,
``Token``s.
"""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token: the characters it covers, whether a span may end with it, whether it is no text."""

    start: int
    end: int
    closes: bool
    is_special: bool = False


Span = tuple[int, int, int, int]  # student start, stop, teacher start, stop


def tokens_by_rule(text: str, offsets: list[tuple[int, int]]) -> list[Token]:
    """The closing rule, taken literally, on raw offsets that run forwards."""
    covered = {place for start, end in offsets for place in range(start, end)}
    ends = []
    for _, end in offsets:
        while end < len(text) and end not in covered and _joins(text[end]):
            end += 1
        ends.append(end)
    tokens = []
    for index, (start, _) in enumerate(offsets):
        later = range(index + 1, len(offsets))
        is_last_with_end = all(ends[other] != ends[index] for other in later)
        next_starts_inside = index + 1 < len(offsets) and offsets[index + 1][0] < ends[index]
        tokens.append(Token(start, ends[index], is_last_with_end and not next_starts_inside))
    return tokens


def tokens_by_bytes(text: str, pieces: list[bytes]) -> list[Token] | None:
    """What each piece covers when the pieces spell the text (with one space in front, if need be); None if not."""
    written = text.encode()
    extra = 0
    if b"".join(pieces) == b" " + written:
        extra = 1
    elif b"".join(pieces) != written:
        return None
    owner = [place for place, character in enumerate(text) for _ in character.encode()]
    tokens, done = [], -extra
    for piece in pieces:
        bytes_of_piece = range(max(done, 0), max(done + len(piece), 0))
        done += len(piece)
        if not bytes_of_piece:
            tokens.append(Token(0, 1, False))
            continue
        is_whole = bytes_of_piece[-1] + 1 == len(owner) or owner[bytes_of_piece[-1] + 1] != owner[bytes_of_piece[-1]]
        tokens.append(Token(owner[bytes_of_piece[0]], owner[bytes_of_piece[-1]] + 1, is_whole))
    return tokens


def spans(
    *,
    student: list[Token],
    teacher: list[Token],
    pairs: dict[int, int],
    student_range: tuple[int, int],
) -> list[Span]:
    """Spans of one response.

    Args:
        student: The student's tokens.
        teacher: The teacher's.
        pairs: The teacher's character for each of the student's characters that has one, increasing.
        student_range: The student's characters of the response.
    """
    found: list[Span] = []
    place = student_range[0]
    while place < student_range[1]:
        if place not in pairs:
            place += 1
            continue
        stop = place + 1  # a run of characters both sides read one after the other
        while stop < student_range[1] and pairs.get(stop) == pairs[stop - 1] + 1:
            stop += 1
        found += _spans_of_run(student, teacher, place, stop, pairs[place] - place)
        place = stop
    return found


def _spans_of_run(student: list[Token], teacher: list[Token], begin: int, stop: int, shift: int) -> list[Span]:
    straddlers = [token.end - begin for token in student if _straddles(token, begin)]
    straddlers += [token.end - begin - shift for token in teacher if _straddles(token, begin + shift)]
    least = max(straddlers, default=0)
    found: list[Span] = []
    last_s = _tokens_before(student, begin) if not straddlers else None
    last_t = _tokens_before(teacher, begin + shift)
    for place in range(begin + 1, stop + 1):
        s_token, t_token = _closing(student, place), _closing(teacher, place + shift)
        if s_token is None or t_token is None or place - begin < least:
            continue
        if last_s is not None:
            found.append((last_s, s_token + 1, last_t, t_token + 1))
        last_s, last_t = s_token + 1, t_token + 1
    return found


def _closing(tokens: list[Token], place: int) -> int | None:
    for index, token in enumerate(tokens):
        if token.closes and not token.is_special and token.end == place:
            return index
    return None


def _straddles(token: Token, place: int) -> bool:
    return not token.is_special and token.start < place < token.end


def _tokens_before(tokens: list[Token], place: int) -> int:
    """Index of the first token of text that covers something at or behind ``place``."""
    return next(
        (index for index, token in enumerate(tokens) if not token.is_special and token.end > place), len(tokens)
    )


def _joins(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def longest_common_subsequence(student: str, teacher: str) -> int:
    """Its length, by the textbook table."""
    row = [0] * (len(teacher) + 1)
    for character in student:
        last = 0
        for place, other in enumerate(teacher, start=1):
            last, row[place] = row[place], last + 1 if character == other else max(row[place], row[place - 1])
    return row[-1]
