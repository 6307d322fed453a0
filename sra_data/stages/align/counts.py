"""What an alignment did, in numbers that add up: counted per batch, kept in receipts, added for the summary.

Counts are over examples that are ``ok`` on both sides; characters and tokens are those of the responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.spans.alignment import SpanTable, TokenOffsets
from sra_data.spans.ragged import Ragged
from sra_data.spans.vocabulary import SharedVocabulary

LARGEST_SHOWN = 5  # tokens of one side in the n:m histogram; more are counted as "5+"


@dataclass
class AlignCounts:
    """Sums over examples.

    Attributes:
        statuses: Examples by status.
        cut: Examples by what was cut or could not be used whole.
        spans: K in all; `merged_spans` went into a neighbour because of max_spans.
        without_spans: Examples that share no boundary at all.
        student_tokens: Tokens of the responses on the student's side; teacher_tokens likewise.
        student_shared: Those whose id is in the shared vocabulary; teacher_shared likewise.
        total_tokens: All tokens of both sides, prompts too.
        characters: Of the responses, as the teacher reads them; `covered` of them lie in spans.
        sizes: Spans by "student tokens:teacher tokens".
    """

    statuses: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    spans: int = 0
    merged_spans: int = 0
    without_spans: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    student_shared: int = 0
    teacher_shared: int = 0
    total_tokens: int = 0
    characters: int = 0
    covered: int = 0

    def add(self, other: AlignCounts) -> None:
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
    def from_json(cls, value: dict[str, Any]) -> AlignCounts:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {
            name: Counter(item) if isinstance(item, dict) else item for name, item in value.items()
        }
        return cls(**fields)

    def add_batch(
        self,
        *,
        statuses: Sequence[str],
        table: SpanTable,
        teacher: TokenOffsets,
        teacher_ranges: Sequence[NDArray[np.int32]],
    ) -> None:
        """Count the spans of a batch; `statuses` are the examples', `teacher_ranges` their responses [R, 2]."""
        is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
        self.statuses.update(statuses)
        counts = np.diff(table.splits)
        self.spans += int(counts.sum())
        self.merged_spans += table.merged_spans
        self.without_spans += int((is_ok & (counts == 0)).sum())
        self._add_sizes(table)
        kept = [ranges for status, ranges in zip(statuses, teacher_ranges, strict=True) if status == "ok"]
        if kept:
            begin, end = np.concatenate(kept).T
            self.characters += int((end - begin).sum())
        self.covered += _covered_characters(table, teacher)

    def _add_sizes(self, table: SpanTable) -> None:
        student = np.minimum(table.student_stops - table.student_starts, LARGEST_SHOWN)
        teacher = np.minimum(table.teacher_stops - table.teacher_starts, LARGEST_SHOWN)
        cells = np.bincount(student * (LARGEST_SHOWN + 1) + teacher, minlength=(LARGEST_SHOWN + 1) ** 2)
        for cell in np.flatnonzero(cells).tolist():
            n, m = divmod(cell, LARGEST_SHOWN + 1)
            self.sizes[f"{_shown(n)}:{_shown(m)}"] += int(cells[cell])

    def add_tokens(
        self,
        *,
        student_ids: Ragged,
        teacher_ids: Ragged,
        student_spans: Ragged,
        teacher_spans: Ragged,
        statuses: Sequence[str],
        vocabulary: SharedVocabulary,
    ) -> None:
        """Count the tokens of the responses of examples that are ok, and those whose id the other side has too."""
        is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
        self.total_tokens += len(student_ids.values) + len(teacher_ids.values)
        for ids, spans, shared, name in (
            (student_ids, student_spans, vocabulary.teacher_of_student, "student"),
            (teacher_ids, teacher_spans, vocabulary.student_of_teacher, "teacher"),
        ):
            chosen = ids.values[_inside(ids, spans, is_ok)]
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


def _covered_characters(table: SpanTable, teacher: TokenOffsets) -> int:
    """Characters of all spans: from the end of the token before a span (or its start) to the span's end."""
    if not len(table.teacher_starts):
        return 0
    shift = np.repeat(teacher.ends.splits[:-1], np.diff(table.splits))
    first, last = table.teacher_starts + shift, table.teacher_stops + shift - 1
    before = np.maximum(first - 1, 0)
    touches = (table.teacher_starts > 0) & ~teacher.is_special.values[before]
    begin = np.where(touches, teacher.ends.values[before], teacher.starts.values[first])
    return int((teacher.ends.values[last].astype(np.int64) - begin).sum())
