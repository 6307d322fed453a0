"""What the stage did, in numbers that add up: counted per batch, kept in receipts, added for the summary.

A side counts its tokens, an alignment its spans. Counts of an alignment are over examples that are ``ok`` on both
sides; characters and tokens are those of the responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.alignment import SpanTable, TokenOffsets
from sra_data.spans.ragged import Ragged

if TYPE_CHECKING:  # who only adds up counts waits for no tokenizer
    from sra_data.stages.align.batches import SideBatch

LARGEST_SHOWN = 5  # tokens of one side in the n:m histogram; more are counted as "5+"


class Sums:
    """Numbers and counters that add up, whatever they count."""

    def add(self, other: Self) -> None:
        """Add another's sums to these."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a receipt."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{name: Counter(item) if isinstance(item, dict) else item for name, item in value.items()})

    @classmethod
    def total(cls, notes: Sequence[dict[str, Any]]) -> Self:
        """The sums over the notes of some receipts."""
        found = cls()
        for note in notes:
            found.add(cls.from_json(note))
        return found


@dataclass
class SideCounts(Sums):
    """Of one side.

    Attributes:
        statuses: Examples by status.
        cut: Examples by what was cut or could not be used whole.
        tokens: All tokens, prompts too.
        response_tokens: Those of the responses.
        labels: Tokens to learn.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    response_tokens: int = 0
    labels: int = 0

    def add_batch(self, batch: SideBatch) -> None:
        """Count a batch that was cut."""
        self.statuses.update(batch.statuses)
        self.cut.update(batch.cut)
        self.tokens += len(batch.ids.values)
        self.response_tokens += int(np.diff(batch.response_spans.values, axis=1).sum())
        self.labels += int(np.diff(batch.label_spans.values, axis=1).sum())


@dataclass
class PairCounts(Sums):
    """Of one alignment; left and right as in its name.

    Attributes:
        statuses: Examples by status.
        spans: K in all; `merged_spans` went into a neighbour because of max_spans.
        without_spans: Examples that share no boundary at all.
        left_tokens: Tokens of the responses on the left side; right_tokens likewise.
        left_shared: Those whose id is in the shared vocabulary; right_shared likewise.
        characters: Of the responses, as the left side reads them; `covered` of them lie in spans.
        sizes: Spans by "left tokens:right tokens".
    """

    statuses: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    spans: int = 0
    merged_spans: int = 0
    without_spans: int = 0
    left_tokens: int = 0
    right_tokens: int = 0
    left_shared: int = 0
    right_shared: int = 0
    characters: int = 0
    covered: int = 0

    def add_batch(self, *, statuses: Sequence[str], table: SpanTable, left: SideBatch) -> None:
        """Count the spans of a batch; the table's student is the left side."""
        is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
        self.statuses.update(statuses)
        counts = np.diff(table.splits)
        self.spans += int(counts.sum())
        self.merged_spans += table.merged_spans
        self.without_spans += int((is_ok & (counts == 0)).sum())
        self._add_sizes(table)
        kept = left.ranges.values[is_ok[left.ranges.rows]]
        self.characters += int((kept[:, 1] - kept[:, 0]).sum())
        self.covered += _covered_characters(table, left.offsets)

    def _add_sizes(self, table: SpanTable) -> None:
        left = np.minimum(table.student_stops - table.student_starts, LARGEST_SHOWN)
        right = np.minimum(table.teacher_stops - table.teacher_starts, LARGEST_SHOWN)
        cells = np.bincount(left * (LARGEST_SHOWN + 1) + right, minlength=(LARGEST_SHOWN + 1) ** 2)
        for cell in np.flatnonzero(cells).tolist():
            n, m = divmod(cell, LARGEST_SHOWN + 1)
            self.sizes[f"{_shown(n)}:{_shown(m)}"] += int(cells[cell])

    def add_tokens(self, name: str, batch: SideBatch, shared: NDArray[np.int32], statuses: Sequence[str]) -> None:
        """Count one side's tokens of the responses of examples that are ok, and those the other side has too.

        Args:
            name: "left" or "right".
            batch: of that side.
            shared: [ids] the other side's id of the same bytes, -1 without one.
            statuses: of the pair.
        """
        is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
        chosen = batch.ids.values[_inside(batch.ids, batch.response_spans, is_ok)]
        known = chosen[chosen < len(shared)]
        setattr(self, f"{name}_tokens", getattr(self, f"{name}_tokens") + len(chosen))
        setattr(self, f"{name}_shared", getattr(self, f"{name}_shared") + int((shared[known] >= 0).sum()))


def _shown(count: int) -> str:
    return f"{count}+" if count == LARGEST_SHOWN else str(count)


def _inside(ids: Ragged, spans: Ragged, is_ok: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens of a batch lie in the given token spans [sum R, 2] of those rows that are ok."""
    edges = (spans.values + np.repeat(ids.splits[:-1], spans.lengths)[:, None])[is_ok[spans.rows]]
    marks = np.bincount(edges[:, 0], minlength=len(ids.values) + 1)
    marks -= np.bincount(edges[:, 1], minlength=len(ids.values) + 1)
    return np.cumsum(marks[:-1]) > 0


def _covered_characters(table: SpanTable, left: TokenOffsets) -> int:
    """Characters of all spans: from the end of the token before a span (or its start) to the span's end."""
    if not len(table.student_starts):
        return 0
    shift = np.repeat(left.ends.splits[:-1], np.diff(table.splits))
    first, last = table.student_starts + shift, table.student_stops + shift - 1
    before = np.maximum(first - 1, 0)
    touches = (table.student_starts > 0) & ~left.is_special.values[before]
    begin = np.where(touches, left.ends.values[before], left.starts.values[first])
    return int((left.ends.values[last].astype(np.int64) - begin).sum())
