"""Batches counted into the sums of counts.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.images import StoredImages
from sra_data.shards.schema import OK
from sra_data.spans.alignment import Segments, SpanTable
from sra_data.spans.covering import covered_characters, stretches_of
from sra_data.spans.ragged import Ragged
from sra_data.spans.vocabulary import SharedVocabulary
from sra_data.stages.align.batches import SideBatch
from sra_data.stages.align.counts import LARGEST_SHOWN, PairCounts, SideCounts


def count_side(counts: SideCounts, batch: SideBatch) -> None:
    """Count a batch that was cut."""
    counts.statuses.update(batch.statuses)
    counts.cut.update(batch.cut)
    counts.tokens += len(batch.ids.values)
    counts.response_tokens += int(np.diff(batch.response_spans.values, axis=1).sum())
    counts.labels += int(np.diff(batch.label_spans.values, axis=1).sum())


def count_pair(
    counts: PairCounts,
    *,
    statuses: Sequence[str],
    table: SpanTable,
    segments: Segments,
    left: SideBatch,
    right: SideBatch,
    vocabulary: SharedVocabulary,
    images: StoredImages,
) -> None:
    """Count a batch that was lined up.

    Args:
        counts: The sums.
        statuses: [B] of the pair.
        table: Its spans; the table's student is the left side.
        segments: Where they lie.
        left: The batch as one side reads it; right likewise.
        vocabulary: What they share; its student is the left side.
        images: Where each side's ids go among the other's.
    """
    is_ok = np.array([status == OK for status in statuses], dtype=bool)
    counts.statuses.update(statuses)
    num_spans = np.diff(table.splits)
    counts.spans += int(num_spans.sum())
    counts.merged_spans += table.merged_spans
    counts.without_spans += int((is_ok & (num_spans == 0)).sum())
    _add_sizes(counts, table)
    kept = left.ranges.values[is_ok[left.ranges.rows]]
    counts.characters += int((kept[:, 1] - kept[:, 0]).sum())
    stretches = stretches_of(segments, len(statuses))
    inside = covered_characters(spans=table.student_spans, ends=left.offsets.ends, stretches=stretches)
    counts.covered += int((inside.values[:, 1] - inside.values[:, 0]).sum())
    tokens, shared = _tokens(left, vocabulary.teacher_of_student, is_ok)
    counts.left_tokens, counts.left_shared = counts.left_tokens + tokens, counts.left_shared + shared
    tokens, shared = _tokens(right, vocabulary.student_of_teacher, is_ok)
    counts.right_tokens, counts.right_shared = counts.right_tokens + tokens, counts.right_shared + shared
    _add_images(counts, table, left, right, images)


def _add_images(counts: PairCounts, table: SpanTable, left: SideBatch, right: SideBatch, images: StoredImages) -> None:
    """At the start of every span both sides have read the same text: do the maps say what each reads next?"""
    row_of = np.repeat(np.arange(len(table.splits) - 1), np.diff(table.splits))
    ours = left.ids.values[left.ids.splits[row_of] + table.student_starts]
    theirs = right.ids.values[right.ids.splits[row_of] + table.teacher_starts]
    counts.left_first_piece += _num_images(ours, theirs, images.left.first_piece)
    counts.left_byte_prefix += _num_images(ours, theirs, images.left.byte_prefix)
    counts.right_first_piece += _num_images(theirs, ours, images.right.first_piece)
    counts.right_byte_prefix += _num_images(theirs, ours, images.right.byte_prefix)


def _num_images(ids: NDArray[np.int32], others: NDArray[np.int32], image: NDArray[np.int32]) -> int:
    if len(ids) and int(ids.max()) >= len(image):
        known = ids < len(image)
        ids, others = ids[known], others[known]
    return int(np.count_nonzero(image[ids] == others))


def _add_sizes(counts: PairCounts, table: SpanTable) -> None:
    left = np.minimum(table.student_stops - table.student_starts, LARGEST_SHOWN)
    right = np.minimum(table.teacher_stops - table.teacher_starts, LARGEST_SHOWN)
    cells = np.bincount(left * (LARGEST_SHOWN + 1) + right, minlength=(LARGEST_SHOWN + 1) ** 2)
    for cell in np.flatnonzero(cells).tolist():
        n, m = divmod(cell, LARGEST_SHOWN + 1)
        counts.sizes[f"{_shown(n)}:{_shown(m)}"] += int(cells[cell])


def _tokens(batch: SideBatch, shared: NDArray[np.int32], is_ok: NDArray[np.bool_]) -> tuple[int, int]:
    """Tokens of the responses of examples that are ok, and those of them whose id the other side has too.

    Args:
        batch: Of one side.
        shared: [ids] the other side's id of the same bytes, -1 without one.
        is_ok: [B].
    """
    chosen = batch.ids.values[_inside(batch.ids, batch.response_spans, is_ok)]
    known = chosen[chosen < len(shared)]
    return len(chosen), int((shared[known] >= 0).sum())


def _shown(count: int) -> str:
    return f"{count}+" if count == LARGEST_SHOWN else str(count)


def _inside(ids: Ragged, spans: Ragged, is_ok: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens of a batch lie in the given token spans [sum R, 2] of those rows that are ok."""
    edges = (spans.values + np.repeat(ids.splits[:-1], spans.lengths)[:, None])[is_ok[spans.rows]]
    marks = np.bincount(edges[:, 0], minlength=len(ids.values) + 1)
    marks -= np.bincount(edges[:, 1], minlength=len(ids.values) + 1)
    return np.cumsum(marks[:-1]) > 0
