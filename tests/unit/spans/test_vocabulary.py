"""What ids stand for, and which two tokenizers share."""

import json
from pathlib import Path

import numpy as np
import pytest

from sra_data.errors import TokenizerError
from sra_data.spans.vocabulary import Spelling, Vocabulary, shared_vocabulary, token_bytes
from tests.tokenizer_zoo import (
    train_byte_level_bpe,
    train_character_level,
    train_sentencepiece_bpe,
    train_unigram,
    train_wordpiece,
)


def vocabulary(*pieces: str | None) -> Vocabulary:
    return Vocabulary(list(pieces), [None if piece is None else piece.encode() for piece in pieces])


def test_byte_level_pieces_stand_for_the_bytes_of_their_alphabet() -> None:
    spelling = Spelling(byte_level=True)
    assert spelling.bytes_of("ĠHello") == b" Hello"
    assert spelling.bytes_of("Ã©") == "é".encode()
    assert spelling.bytes_of("ĊĀ") == b"\n\0"
    assert spelling.bytes_of("中") is None


def test_sentencepiece_pieces_keep_their_leading_space_and_their_bytes() -> None:
    spelling = Spelling(space="▁", byte_fallback=True)
    assert spelling.bytes_of("▁Hello") == b" Hello"
    assert spelling.bytes_of("<0x0A>") == b"\n"
    assert spelling.bytes_of("<0xe2>") == b"\xe2"
    assert Spelling(space="▁").bytes_of("<0x0A>") == b"<0x0A>"


def test_marks_of_word_pieces_are_no_text() -> None:
    assert Spelling(continuing_prefix="##").bytes_of("##ing") == b"ing"
    assert Spelling(word_suffix="</w>").bytes_of("ing</w>") == b"ing"
    assert Spelling(latin_1=True).bytes_of("\xe9") == b"\xe9"


@pytest.mark.parametrize("train", [train_byte_level_bpe, train_unigram, train_sentencepiece_bpe, train_character_level])
def test_special_and_unknown_tokens_stand_for_nothing_and_all_others_for_something(train) -> None:
    tokenizer = train()
    byte_strings = token_bytes(tokenizer.backend_tokenizer.to_str())
    assert len(byte_strings) == len(tokenizer)
    without = {token_id for token_id, piece in enumerate(byte_strings) if piece is None}
    assert without == set(tokenizer.all_special_ids)


def test_added_tokens_that_are_text_stand_for_their_own_characters() -> None:
    tokenizer = train_byte_level_bpe()
    tokenizer.add_tokens(["  indent"])
    assert token_bytes(json.loads(tokenizer.backend_tokenizer.to_str()))[-1] == b"  indent"


def test_word_piece_reads_its_prefix_from_the_model() -> None:
    tokenizer = train_wordpiece()
    byte_strings = token_bytes(tokenizer.backend_tokenizer.to_str())
    assert byte_strings[tokenizer.convert_tokens_to_ids("##o")] == b"o"


def test_lowest_ids_pair_and_every_other_id_of_the_string_maps_to_them() -> None:
    shared = shared_vocabulary(student=vocabulary("b", "a", "b"), teacher=vocabulary("a", None, "b", "a"))
    assert shared.student_ids.tolist() == [0, 1]
    assert shared.teacher_ids.tolist() == [2, 0]
    assert shared.student_of_teacher.tolist() == [1, -1, 0, 1]
    assert shared.teacher_of_student.tolist() == [2, 0, 2]


def test_swapping_the_sides_swaps_the_pairs() -> None:
    left = Vocabulary.from_tokenizer_json(train_byte_level_bpe().backend_tokenizer.to_str())
    right = Vocabulary.from_tokenizer_json(train_unigram().backend_tokenizer.to_str())
    forth, back = shared_vocabulary(student=left, teacher=right), shared_vocabulary(student=right, teacher=left)
    pairs = set(zip(forth.student_ids.tolist(), forth.teacher_ids.tolist(), strict=True))
    assert pairs == set(zip(back.teacher_ids.tolist(), back.student_ids.tolist(), strict=True))
    assert all(left.byte_strings[student] == right.byte_strings[teacher] for student, teacher in pairs)
    assert np.array_equal(forth.student_of_teacher, back.teacher_of_student)


def test_exact_pairs_raw_strings() -> None:
    student = Vocabulary(["Ġa", "b"], [b" a", b"b"])
    teacher = Vocabulary(["▁a", "b"], [b" a", b"b"])
    assert len(shared_vocabulary(student=student, teacher=teacher)) == 2
    exact = shared_vocabulary(student=student, teacher=teacher, match="exact")
    assert (exact.student_ids.tolist(), exact.teacher_ids.tolist()) == ([1], [1])


def test_end_of_sequence_ids_pair_by_role() -> None:
    shared = shared_vocabulary(student=vocabulary("a", "b", None), teacher=vocabulary("b", None, "a"))
    with_end = shared.with_end_of_sequence(student_id=2, teacher_id=1)
    assert with_end.student_ids.tolist() == [0, 1, 2]
    assert with_end.teacher_ids.tolist() == [2, 0, 1]
    assert with_end.student_of_teacher.tolist() == [1, 2, 0]
    assert with_end.teacher_of_student.tolist() == [2, 0, 1]
    assert len(shared) == 2, "the original stays"


def test_end_of_sequence_takes_an_id_away_from_an_older_pair() -> None:
    shared = shared_vocabulary(student=vocabulary("a", "b"), teacher=vocabulary("a", "b", "a"))
    with_end = shared.with_end_of_sequence(student_id=0, teacher_id=3)
    assert list(zip(with_end.student_ids.tolist(), with_end.teacher_ids.tolist(), strict=True)) == [(0, 3), (1, 1)]
    assert with_end.student_of_teacher.tolist() == [-1, 1, -1, 0]
    assert with_end.teacher_of_student.tolist() == [3, 1]


def test_coverage_counts_tokens_with_a_counterpart() -> None:
    shared = shared_vocabulary(student=vocabulary("a", "x"), teacher=vocabulary("y", "a", "a"))
    covered = shared.covered(student_counts=np.array([5, 7]), teacher_counts=np.array([1, 2, 3, 9]))
    assert covered == (5, 5)


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="a Strange model without a vocabulary; save"):
        token_bytes({"model": {"type": "Strange"}, "added_tokens": []})


@pytest.mark.parametrize(
    ("student", "teacher", "count"), [("gpt2", "tinyllama-1.1b", 18_207), ("qwen1.5-1.8b", "tinyllama-1.1b", 26_342)]
)
def test_published_tokenizers_share_as_many_strings_as_known(
    shared_folder: Path, student: str, teacher: str, count: int
) -> None:
    from transformers import AutoTokenizer

    sides = [
        Vocabulary.from_tokenizer_json(
            AutoTokenizer.from_pretrained(shared_folder / "tokenizers" / name).backend_tokenizer.to_str()
        )
        for name in (student, teacher)
    ]
    assert len(shared_vocabulary(student=sides[0], teacher=sides[1])) == count
