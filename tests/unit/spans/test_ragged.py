"""Laws of ragged arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sra_data.spans.ragged import Ragged, flat_ranges, splits_of

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6)


@given(ROWS)
def test_rows_come_back_as_they_were_put_in(rows: list[list[int]]) -> None:
    ragged = Ragged.from_list(rows, np.int32)
    assert ragged.values.dtype == np.int32
    assert ragged.splits.dtype == np.int64
    assert [row.tolist() for row in ragged] == rows
    assert [ragged[index].tolist() for index in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.rows.tolist() == [index for index, row in enumerate(rows) for _ in row]


def test_rows_of_pairs_keep_their_shape_even_when_empty() -> None:
    ragged = Ragged.from_list([[], [(0, 2), (3, 5)], np.zeros((0, 2), dtype=np.int64)], np.int32, (2,))
    assert [row.shape for row in ragged] == [(0, 2), (2, 2), (0, 2)]
    assert Ragged.from_list([], np.int32, (2,)).values.shape == (0, 2)


def test_a_row_is_a_view() -> None:
    ragged = Ragged.from_list([[1, 2], [3]], np.int32)
    ragged[1][0] = 7
    assert ragged.values.tolist() == [1, 2, 7]


def test_negative_rows_count_from_the_end_and_others_are_refused() -> None:
    ragged = Ragged.from_list([[1], [2]], np.int32)
    assert ragged[-1].tolist() == [2]
    with pytest.raises(IndexError, match="row 2 of 2"):
        ragged[2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6))
def test_flat_ranges_lists_every_index_of_every_range(ranges: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    lengths = np.array([length for _, length in ranges], dtype=np.int64)
    expected = [index for start, length in ranges for index in range(start, start + length)]
    assert flat_ranges(starts, lengths).tolist() == expected
    assert splits_of(lengths)[-1] == len(expected)
