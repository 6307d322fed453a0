"""Where words begin and end, for spans no smaller than a word.

A word's edge is where a run of word characters (letters, digits, marks, "_"), of white space, or of other characters
begins or ends. In scripts written without spaces every character is a word of its own: a run of them would be one span.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.ragged import splits_of

_WORD, _SPACE, _OTHER, _ALONE, _MARK = range(5)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),
    (0x3040, 0x312F),  # Kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def at_word_edge(*, texts: Sequence[str], rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the boundary before character ``positions[i]`` of text ``rows[i]`` is a word's edge.

    Args:
        texts: [B].
        rows: [n] index of a text.
        positions: [n] from 0 to the text's length; both ends of a text are edges.
    """
    spaced = "\0" + "\0".join([*texts, ""])  # NUL before and after each text, where every boundary is an edge
    flat = np.frombuffer(spaced.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    splits = splits_of([len(text) + 1 for text in texts])
    after = splits[rows] + positions + 1
    kinds = _kinds(np.stack([flat[after - 1], flat[after]]))
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    at_end = (positions == 0) | (positions == lengths[rows])
    # A mark belongs to what stands before it, and counts as a word character for what follows.
    attached = (kinds[1] == _MARK) & (kinds[0] != _SPACE)
    before = np.where(kinds[0] == _MARK, _WORD, kinds[0])
    return at_end | (~attached & ((before != kinds[1]) | (before == _ALONE)))


def _kinds(codes: NDArray[np.uint32]) -> NDArray[np.int8]:
    unique, inverse = np.unique(codes, return_inverse=True)
    kinds = np.array([_kind(chr(code)) for code in unique.tolist()], dtype=np.int8)
    return kinds[inverse.reshape(codes.shape)]


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if unicodedata.category(character).startswith("M"):
        return _MARK
    if not (character.isalnum() or character == "_"):
        return _OTHER
    return _ALONE if any(first <= ord(character) <= last for first, last in _UNSPACED) else _WORD
