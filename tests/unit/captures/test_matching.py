"""Rows are matched by token ids alone: whole prefixes, and only where something is said at the last position."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sra_data.captures.files import CapturedRow
from sra_data.captures.matching import CUT, NOT_THERE, Matches, prefix_hashes

texts = st.lists(st.integers(0, 5), min_size=1, max_size=7)


def captured(rows: list[list[int]], *, lacking: int) -> list[CapturedRow]:
    return [
        CapturedRow(number, f"row {number}", np.array(ids, np.int64), len(ids) - lacking)
        for number, ids in enumerate(rows)
    ]


@given(asked=st.lists(texts, min_size=1, max_size=8), rows=st.lists(texts, max_size=8), lacking=st.integers(0, 1))
def test_a_match_is_the_first_row_that_begins_so_and_says_enough(
    asked: list[list[int]], rows: list[list[int]], lacking: int
) -> None:
    matches = Matches(np.array([prefix_hashes(np.array(ids))[-1] for ids in asked], np.uint64))
    matches.look_at(captured(rows, lacking=lacking))
    for ids in asked:
        begin = [number for number, row in enumerate(rows) if row[: len(ids)] == ids]
        enough = [number for number in begin if len(rows[number]) - lacking >= len(ids)]
        wanted = enough[0] if enough else CUT if begin else NOT_THERE
        assert matches.row_of(np.array(ids)) == wanted
    assert matches.num_captured == len(rows)


def test_equal_ids_in_another_order_are_another_text() -> None:
    assert prefix_hashes(np.array([1, 2]))[-1] != prefix_hashes(np.array([2, 1]))[-1]
    assert prefix_hashes(np.array([0]))[-1] != prefix_hashes(np.array([0, 0]))[-1]
