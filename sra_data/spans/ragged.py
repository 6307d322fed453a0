"""Ragged arrays: rows of unequal length, kept as one flat array and its splits.

A batch of token ids, offsets or spans is ragged. Kept flat, a whole batch goes through numpy in one pass; a list of
small arrays would cost a Python call per row and operation. Rows are views, never copies.

B = rows, N = all values of all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length.

    Attributes:
        values: [N, ...], the rows one after the other.
        splits: [B + 1] int64, row i is ``values[splits[i]:splits[i + 1]]``.
    """

    values: Array
    splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __getitem__(self, row: int) -> Array:
        """Row ``row`` as a view (negative rows count from the end)."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.splits[row] : self.splits[row + 1]]

    def __iter__(self) -> Iterator[Array]:
        for start, stop in zip(self.splits[:-1].tolist(), self.splits[1:].tolist(), strict=True):
            yield self.values[start:stop]

    def slice(self, start: int, stop: int) -> "Ragged":
        """Rows [start, stop) as views."""
        first = self.splits[start]
        return Ragged(self.values[first : self.splits[stop]], self.splits[start : stop + 1] - first)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[B] int64, values of each row."""
        return np.diff(self.splits)

    @property
    def rows(self) -> NDArray[np.int64]:
        """[N] int64, the row each value belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def with_values(self, values: Array) -> "Ragged":
        """The same rows with other values ([N, ...])."""
        assert len(values) == self.splits[-1], "as many values as before"
        return Ragged(values, self.splits)

    @classmethod
    def from_lengths(cls, values: Array, lengths: Sequence[int] | NDArray[np.integer]) -> "Ragged":
        """Rows cut from ``values`` [N, ...] by their lengths [B]."""
        splits = splits_of(lengths)
        assert splits[-1] == len(values), "the lengths add up to the number of values"
        return cls(values, splits)

    @classmethod
    def from_list(cls, rows: Sequence[Any], dtype: DTypeLike, row_shape: tuple[int, ...] = ()) -> "Ragged":
        """Rows from a list of array-likes, each [n_i, *row_shape]; empty rows and an empty list are fine."""
        lengths = list(map(len, rows))
        filled = [row for row in rows if len(row)] if 0 in lengths else rows
        if set(map(type, filled)) <= {np.ndarray}:
            values = np.concatenate([np.zeros((0, *row_shape), dtype=dtype), *filled]).astype(dtype, copy=False)
        else:  # one conversion for all rows
            values = np.array([value for row in filled for value in row], dtype=dtype).reshape(-1, *row_shape)
        assert values.shape[1:] == row_shape, "every row has the shape asked for"
        return cls.from_lengths(values, lengths)


def splits_of(lengths: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """[B + 1] int64: where rows of these lengths [B] begin and end in the flat array."""
    splits = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.asarray(lengths, dtype=np.int64), out=splits[1:])
    return splits


def flat_ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Every index of the ranges [start, start + length), one after the other.

    >>> flat_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    splits = splits_of(lengths)
    shifts = np.repeat(np.asarray(starts, dtype=np.int64) - splits[:-1], lengths)
    return np.arange(splits[-1], dtype=np.int64) + shifts
