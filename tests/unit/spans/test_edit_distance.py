"""Nearest strings and warped paths: what the plainest loops find, and a worked example."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.spans.edit_distance import nearest_ids, warped_pairs
from sra_data.spans.vocabulary import Vocabulary
from tests.reference import edit_distance as slow

STRINGS = st.lists(
    st.one_of(st.none(), st.binary(max_size=6).map(lambda one: bytes(b % 3 + 97 for b in one))), max_size=12
)
PIECES = st.lists(st.sampled_from([b"", b"a", b"b", b"ab", b"abc", b"bca", b"\xc3", b"cc"]), max_size=9)


def vocabulary(strings) -> Vocabulary:
    return Vocabulary([None if one is None else one.decode("latin-1") for one in strings], list(strings))


@settings(max_examples=150, deadline=None)
@given(source=STRINGS, target=STRINGS)
def test_the_nearest_ids_are_those_of_all_pairs(source, target) -> None:
    found = nearest_ids(source=vocabulary(source), target=vocabulary(target))
    assert found.tolist() == slow.nearest(source, target)


def test_equal_strings_come_first_and_the_lowest_id_stands_for_them() -> None:
    target = [None, b"cats", b"cat", b"dog", b"cat", b"\xff\xfe"]
    source = [b"cat", b"cots", b"dogs", None, b"", b"\xff"]
    assert nearest_ids(source=vocabulary(source), target=vocabulary(target)).tolist() == [2, 1, 3, -1, -1, 5]


@settings(max_examples=150, deadline=None)
@given(one=PIECES, other=PIECES)
def test_pairs_are_those_of_a_path_found_one_step_at_a_time(one, other) -> None:
    assert [tuple(pair) for pair in warped_pairs(one, other).tolist()] == slow.alone(slow.warped_path(one, other))


def test_the_worked_example() -> None:
    """The path runs (0, 0) (1, 1) (2, 1) (3, 2): "like" and "ly" both stand for "likely", the ends for each other."""
    student, teacher = [b"un", b"like", b"ly", b"\xff" * 9], [b"un", b"likely", b"\xff" * 9]
    assert warped_pairs(student, teacher).tolist() == [[0, 0], [3, 2]]


def test_a_sequence_beside_itself_pairs_every_token() -> None:
    words = [b"the", b" cat", b" sat", b"."]
    assert warped_pairs(words, words).tolist() == [[place, place] for place in range(4)]
