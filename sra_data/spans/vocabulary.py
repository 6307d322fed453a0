"""What every id of a tokenizer stands for, in bytes, and which ids two tokenizers share.

Bytes are read from the vocabulary piece itself: the byte-level alphabet, "▁" for a space, ``<0x0A>`` for that byte,
"##" for a piece that continues a word, "</w>" for one that ends it. Never from ``decode()``, which drops the leading
space of SentencePiece pieces and would pair 4,459 of 9,709 strings of GPT-2 and TinyLlama wrongly.

Reads the content of a ``tokenizer.json``, so that no tokenizer has to be loaded; special tokens and the unknown token
stand for no bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import TokenizerError

METASPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer writes bytes as pieces.

    Attributes:
        byte_level: Pieces are written in GPT-2's alphabet of 256 printable characters, one a byte.
        space: The character that stands for a space ("" where none does).
        byte_fallback: ``<0x0A>`` stands for one byte.
        continuing_prefix: Marks a piece inside a word ("##"); not part of the text.
        word_suffix: Marks a piece that ends a word ("</w>"); not part of the text.
        latin_1: Each character of a piece is one byte (ByT5).
    """

    byte_level: bool = False
    space: str = ""
    byte_fallback: bool = False
    continuing_prefix: str = ""
    word_suffix: str = ""
    latin_1: bool = False

    def bytes_of(self, piece: str) -> bytes | None:
        """The bytes ``piece`` stands for; None where the spelling cannot say."""
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if self.continuing_prefix:
            piece = piece.removeprefix(self.continuing_prefix)
        if self.word_suffix:
            piece = piece.removesuffix(self.word_suffix)
        if self.latin_1:
            return piece.encode("latin-1") if all(character < "\u0100" for character in piece) else None
        if self.byte_level:
            return _from_byte_alphabet(piece)
        return (piece.replace(self.space, " ") if self.space else piece).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The pieces of one tokenizer by id, special tokens and the unknown token left out.

    Attributes:
        pieces: [V] the raw string of each id, None where it has none or is special.
        byte_strings: [V] the bytes each id stands for, None likewise.
    """

    pieces: list[str | None]
    byte_strings: list[bytes | None]

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def from_tokenizer_json(cls, tokenizer_json: Mapping[str, Any] | str) -> "Vocabulary":
        """Read the content of a ``tokenizer.json`` (its text, or the object it holds).

        Raises:
            TokenizerError: If the model in it has no vocabulary of a known form.
        """
        content = json.loads(tokenizer_json) if isinstance(tokenizer_json, str) else tokenizer_json
        pieces, unknown = _model_pieces(content["model"])
        added = content.get("added_tokens") or []
        return cls.from_pieces(
            pieces,
            spelling=spelling_of(content),
            literal={token["id"]: token["content"] for token in added if not token["special"]},
            excluded={token["id"] for token in added if token["special"]} | unknown,
        )

    @classmethod
    def from_pieces(
        cls, pieces: Mapping[int, str], *, spelling: Spelling, literal: Mapping[int, str], excluded: set[int]
    ) -> "Vocabulary":
        """From pieces by id; ``literal`` ids are added tokens, which stand for their own text."""
        size = max((*pieces, *literal, *excluded), default=-1) + 1
        strings: list[str | None] = [None] * size
        byte_strings: list[bytes | None] = [None] * size
        for token_id, piece in {**pieces, **literal}.items():
            if token_id in excluded:
                continue
            strings[token_id] = piece
            byte_strings[token_id] = piece.encode() if token_id in literal else spelling.bytes_of(piece)
        return cls(strings, byte_strings)


@dataclass(frozen=True, eq=False)
class SharedVocabulary:
    """Pairs of ids that stand for the same bytes (or the same raw string).

    Attributes:
        student_ids: [n] int32, ascending; one representative, the lowest id, for each string.
        teacher_ids: [n] int32, the counterpart of each.
        student_of_teacher: [V_teacher] int32, for EVERY teacher id with a counterpart the student's representative,
            else -1; several teacher ids of one string name the same one.
        teacher_of_student: [V_student] int32, likewise.
    """

    student_ids: NDArray[np.int32]
    teacher_ids: NDArray[np.int32]
    student_of_teacher: NDArray[np.int32]
    teacher_of_student: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.student_ids)

    def covered(self, *, student_counts: NDArray[np.integer], teacher_counts: NDArray[np.integer]) -> tuple[int, int]:
        """Tokens of a corpus whose id has a counterpart: (student's, teacher's).

        Args:
            student_counts: [>= V_student] how often the corpus holds each student id.
            teacher_counts: [>= V_teacher] likewise.
        """
        student = student_counts[: len(self.teacher_of_student)][self.teacher_of_student >= 0]
        teacher = teacher_counts[: len(self.student_of_teacher)][self.student_of_teacher >= 0]
        return int(student.sum()), int(teacher.sum())

    def with_end_of_sequence(self, *, student_id: int, teacher_id: int) -> "SharedVocabulary":
        """The same pairs plus the two end-of-sequence ids, a pair by role (docs/method.md, section 6).

        A pair that either id belonged to before, as bytes, gives way to it.
        """
        student_of_teacher = _grown(self.student_of_teacher, teacher_id)
        teacher_of_student = _grown(self.teacher_of_student, student_id)
        old_teachers = student_of_teacher == student_id
        old_students = teacher_of_student == teacher_id
        student_of_teacher[old_teachers] = -1
        teacher_of_student[old_students] = -1
        keep = (self.student_ids != student_id) & (self.teacher_ids != teacher_id)
        # A string that loses its representative on one side is no longer shared at all.
        student_of_teacher[np.isin(student_of_teacher, self.student_ids[~keep])] = -1
        teacher_of_student[np.isin(teacher_of_student, self.teacher_ids[~keep])] = -1
        student_of_teacher[teacher_id] = student_id
        teacher_of_student[student_id] = teacher_id
        students = np.append(self.student_ids[keep], np.int32(student_id))
        teachers = np.append(self.teacher_ids[keep], np.int32(teacher_id))
        order = np.argsort(students, kind="stable")
        return SharedVocabulary(students[order], teachers[order], student_of_teacher, teacher_of_student)


def token_bytes(tokenizer_json: Mapping[str, Any] | str) -> list[bytes | None]:
    """The bytes each id of a ``tokenizer.json`` stands for; None for special and unknown tokens. See ``Vocabulary``."""
    return Vocabulary.from_tokenizer_json(tokenizer_json).byte_strings


def shared_vocabulary(
    *, student: Vocabulary, teacher: Vocabulary, match: Literal["bytes", "exact"] = "bytes"
) -> SharedVocabulary:
    """Pair the ids of two tokenizers that stand for the same string.

    Source: docs/method.md, section 6.

    Args:
        student: Its ids' pieces.
        teacher: Likewise.
        match: "bytes" pairs equal bytes; "exact" pairs equal raw strings, as published.
    """
    keys = {"bytes": lambda side: side.byte_strings, "exact": lambda side: side.pieces}[match]
    student_keys: Sequence[Any] = keys(student)
    teacher_keys: Sequence[Any] = keys(teacher)
    lowest_student, lowest_teacher = _lowest_ids(student_keys), _lowest_ids(teacher_keys)
    pairs = sorted((token_id, lowest_teacher[key]) for key, token_id in lowest_student.items() if key in lowest_teacher)
    table = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    return SharedVocabulary(
        student_ids=np.ascontiguousarray(table[:, 0]),
        teacher_ids=np.ascontiguousarray(table[:, 1]),
        student_of_teacher=np.array([lowest_student.get(key, -1) for key in teacher_keys], dtype=np.int32),
        teacher_of_student=np.array([lowest_teacher.get(key, -1) for key in student_keys], dtype=np.int32),
    )


def spelling_of(content: Mapping[str, Any]) -> Spelling:
    """How the tokenizer of a parsed ``tokenizer.json`` writes bytes as pieces."""
    model = content["model"]
    steps = [step for name in ("normalizer", "pre_tokenizer", "decoder") for step in _steps(content.get(name))]
    types = {step["type"] for step in steps}
    spaces = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    spaces += [
        METASPACE
        for step in steps
        if step["type"] == "Replace" and METASPACE in (step["content"], step["pattern"].get("String"))
    ]
    return Spelling(
        byte_level="ByteLevel" in types,
        space=spaces[0] if spaces else "",
        byte_fallback=bool(model.get("byte_fallback")) or "ByteFallback" in types,
        continuing_prefix=model.get("continuing_subword_prefix") or "",
        word_suffix=model.get("end_of_word_suffix") or "",
    )


def _steps(node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Every step of a normaliser, pre-tokenizer or decoder, sequences taken apart."""
    if node is None:
        return
    yield node
    for name in ("normalizers", "pretokenizers", "decoders"):
        for child in node.get(name) or ():
            yield from _steps(child)


def _model_pieces(model: Mapping[str, Any]) -> tuple[dict[int, str], set[int]]:
    """Pieces by id, and the ids of the unknown token."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: [[piece, score], ...]
        unknown = set() if model.get("unk_id") is None else {int(model["unk_id"])}
        return {token_id: entry[0] for token_id, entry in enumerate(vocabulary)}, unknown
    if not isinstance(vocabulary, Mapping):
        raise TokenizerError(
            f"tokenizer.json: a {model.get('type')} model without a vocabulary; save the tokenizer again"
        )
    unknown_piece = model.get("unk_token")
    unknown = {vocabulary[unknown_piece]} if unknown_piece in vocabulary else set()
    return {token_id: piece for piece, token_id in vocabulary.items()}, unknown


def _lowest_ids(keys: Sequence[Any]) -> dict[Any, int]:
    lowest: dict[Any, int] = {}
    for token_id, key in enumerate(keys):
        if key:  # None stands for nothing, and so does the empty string
            lowest.setdefault(key, token_id)
    return lowest


def _grown(table: NDArray[np.int32], index: int) -> NDArray[np.int32]:
    """A copy of ``table`` that reaches at least to ``index``, filled with -1."""
    grown = np.full(max(len(table), index + 1), -1, dtype=np.int32)
    grown[: len(table)] = table
    return grown


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's alphabet, to Latin-1: printable characters stand for themselves, U+0100 onwards for the other bytes.

    Characters below U+0100 that are not of the alphabet map beyond Latin-1, so that encoding them fails.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return dict.fromkeys(others, "\uffff") | {256 + rank: chr(byte) for rank, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _from_byte_alphabet(piece: str) -> bytes | None:
    try:
        return piece.translate(_BYTE_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return None  # not written in the alphabet, so no text can produce it
