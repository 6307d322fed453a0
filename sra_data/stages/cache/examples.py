"""What a teacher is given of the shards: the ids of its side, with the positions or the spans that are kept.

Legend: N tokens, P positions, K spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.schema import SideRow, response_positions
from sra_data.shards.store import FolderReader, PairReader
from sra_data.teacher.capture import Example

COLUMNS = ("ids", "response_spans")


class ExampleReader:
    """The examples of a side by their row numbers.

    Attributes:
        side: the teacher's.
        pair: the alignment whose spans are kept, seen from its student; None where positions are.
    """

    def __init__(self, side: FolderReader, pair: PairReader | None = None) -> None:
        self.side = side
        self.pair = pair

    @property
    def by_position(self) -> ExampleReader:
        """The same examples with their positions."""
        return ExampleReader(self.side)

    @property
    def num_rows(self) -> NDArray[np.int32]:
        """[examples] rows of each example's pages: its positions, or its spans."""
        return self.side.index.num_positions if self.pair is None else self.pair.index.num_spans

    @cached_property
    def num_tokens(self) -> NDArray[np.int32]:
        """[examples] tokens the teacher reads: none where there is nothing to keep."""
        found: NDArray[np.int32] = np.where(self.num_rows > 0, self.side.index.num_tokens, 0)
        return found

    def read(self, numbers: Sequence[int] | NDArray[Any]) -> list[Example]:
        """Examples by row number, in the order asked.

        Raises:
            ShardError: If a value is damaged.
        """
        rows: list[SideRow] = self.side.read(numbers, COLUMNS)
        if self.pair is None:
            return [Example(row.id, row.ids, response_positions(row.response_spans)) for row in rows]
        spans = self.pair.read(numbers)
        return [_example_of_spans(row, one.teacher_spans) for row, one in zip(rows, spans, strict=True)]


def _example_of_spans(row: SideRow, spans: NDArray[np.int32]) -> Example:
    """A row with the tokens of its spans [K, 2] as positions, spans being disjoint and in order."""
    lengths = spans[:, 1] - spans[:, 0]
    span_ids = np.repeat(np.arange(len(spans)), lengths)
    within = np.arange(len(span_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Example(row.id, row.ids, (spans[span_ids, 0] + within).astype(np.int32), span_ids)
