"""Spans two tokenizers share: the longest common subsequence of their character boundaries.

The ends of a side's tokens increase strictly once only closing tokens count, so that subsequence is a set intersection,
and one vectorised pass does a whole batch: every boundary inside a segment (a stretch both sides read alike) gets one
coordinate on a line through all segments of the batch, and two marks on that line meet where a boundary is shared.
    Student ends [2, 6, 12, 13], teacher ends [5, 6, 9, 12, 13] -> shared {6, 12, 13}
    -> student spans [0, 2) [2, 3) [3, 4), teacher spans [0, 2) [2, 4) [4, 5)

Pure: arrays in, arrays out. It trusts the offsets it is given; who makes them has checked them.

B = examples, N = tokens of all examples on one side, S = segments, K = spans of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sra_data.choices import Boundaries
from sra_data.spans.closing import ClosedTokens, closing_tokens
from sra_data.spans.ragged import Ragged, flat_ranges, splits_of
from sra_data.spans.segments import Segments, segments_for
from sra_data.spans.words import at_word_edge

__all__ = [
    "Boundaries",
    "ClosedTokens",
    "Segments",
    "SpanTable",
    "TokenOffsets",
    "align",
    "closing_tokens",
    "segments_for",
]

MAX_SPANS = 1024

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenOffsets:
    """What one side's tokens cover, for a batch.

    Attributes:
        starts: int32, first character of each token; not decreasing in a row, special tokens (0) aside.
        ends: int32, one past the last; likewise.
        is_special: bool, the token is no text; it belongs to no span.
        closes: bool, a span may end at the token's end (``closing_tokens``).
    """

    starts: Ragged
    ends: Ragged
    is_special: Ragged
    closes: Ragged


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Spans of a batch as token ranges [start, stop) on both sides, in order, disjoint.

    Attributes:
        student_starts: [sum K] int32, token index in the example's ids; the other three likewise.
        student_stops: [sum K] int32.
        teacher_starts: [sum K] int32.
        teacher_stops: [sum K] int32.
        splits: [B + 1] int64, example b's spans are [splits[b], splits[b + 1]).
        merged_spans: How many spans went into a neighbour because their example had more than ``max_spans``.
    """

    student_starts: NDArray[np.int32]
    student_stops: NDArray[np.int32]
    teacher_starts: NDArray[np.int32]
    teacher_stops: NDArray[np.int32]
    splits: Index
    merged_spans: int

    def __len__(self) -> int:
        return len(self.splits) - 1

    @property
    def student_spans(self) -> Ragged:
        """Rows [K, 2] int32."""
        return Ragged(np.stack([self.student_starts, self.student_stops], axis=1), self.splits)

    @property
    def teacher_spans(self) -> Ragged:
        """Rows [K, 2] int32."""
        return Ragged(np.stack([self.teacher_starts, self.teacher_stops], axis=1), self.splits)


@dataclass(frozen=True, eq=False)
class _Side:
    """One side's boundaries inside the segments.

    Attributes:
        tokens: [n] index over the batch of each closing token that ends inside a segment, in order.
        places: [n] its end on the line through all segments; strictly increasing.
        counts: [S] how many of them each segment has.
        first: [S] index over the batch of the first token of each segment.
        straddled: [S] characters into the segment until the last token ends that begins before it; 0 without one.
    """

    tokens: Index
    places: Index
    counts: Index
    first: Index
    straddled: Index


def align(
    *,
    student: TokenOffsets,
    teacher: TokenOffsets,
    segments: Segments,
    student_texts: Sequence[str],
    boundaries: Boundaries = "token",
    max_spans: int = MAX_SPANS,
) -> SpanTable:
    """Cut the segments of a batch into the smallest spans both sides agree on.

    Source: docs/method.md, section 2.

    Args:
        student: Offsets in the student's texts.
        teacher: Offsets in the teacher's texts.
        segments: Where both read the same characters (``segments_for``).
        student_texts: [B] the student's texts; read for word boundaries only.
        boundaries: "token" keeps every shared boundary, "word" those at a word's edge or a segment's end.
        max_spans: The most spans of an example; beyond it neighbours are merged evenly.
    """
    line = splits_of(segments.length)
    student_side = _boundaries(student, segments.student_start, segments, line)
    teacher_side = _boundaries(teacher, segments.teacher_start, segments, line)

    marks = np.zeros((2, int(line[-1]) + 1), dtype=bool)
    marks[0, student_side.places] = True
    marks[1, teacher_side.places] = True
    in_both = marks[1].take(student_side.places)
    places = student_side.places[in_both]
    student_tokens = student_side.tokens[in_both]
    teacher_tokens = teacher_side.tokens[marks[0].take(teacher_side.places)]
    segment = np.repeat(np.arange(len(segments)), student_side.counts)[in_both]

    # Behind a straddler the first shared boundary opens the first span instead of closing it.
    opens_at = np.maximum(student_side.straddled, teacher_side.straddled)
    if boundaries == "word" or opens_at.any():
        inside = places - line[segment]
        keep = inside >= opens_at[segment]
        if boundaries == "word":
            rows, positions = segments.example[segment], segments.student_start[segment] + inside
            at_edge = at_word_edge(texts=student_texts, rows=rows, positions=positions)
            keep &= at_edge | (inside == segments.length[segment])
        segment, student_tokens, teacher_tokens = segment[keep], student_tokens[keep], teacher_tokens[keep]

    firsts = np.flatnonzero(np.diff(segment, prepend=-1))
    spans = np.empty((4, len(segment)), dtype=np.int64)
    for row, tokens, side in ((0, student_tokens, student_side), (2, teacher_tokens, teacher_side)):
        spans[row + 1] = tokens + 1
        spans[row, 1:] = spans[row + 1, :-1]
        spans[row, firsts] = side.first[segment[firsts]]
    openers = firsts[opens_at[segment[firsts]] > 0]
    if len(openers):
        spans, segment = np.delete(spans, openers, axis=1), np.delete(segment, openers)
    spans[:2] -= student.ends.splits[segments.example].take(segment)
    spans[2:] -= teacher.ends.splits[segments.example].take(segment)

    counts = np.bincount(segments.example[segment], minlength=len(student_texts))
    spans, splits = _merge(spans, segment, splits_of(counts), max_spans)
    student_starts, student_stops, teacher_starts, teacher_stops = spans.astype(np.int32)
    merged_spans = len(segment) - int(splits[-1])
    return SpanTable(student_starts, student_stops, teacher_starts, teacher_stops, splits, merged_spans)


def _boundaries(offsets: TokenOffsets, segment_starts: Index, segments: Segments, line: Index) -> _Side:
    """One side's closing tokens on the line through all segments.

    Args:
        offsets: [B] rows.
        segment_starts: [S] where each segment begins in this side's text.
        segments: The segments.
        line: [S + 1] where each segment begins on the line; a boundary ``d`` characters in stands at line[s] + d.
    """
    segment_stops = segment_starts + segments.length
    # Rows a stride apart make (row, character) one number; a special token keeps the end of the token before it.
    stride = 2 + max(int(offsets.ends.values.max(initial=0)), int(segment_stops.max(initial=0)))
    base = np.repeat(np.arange(len(offsets.ends), dtype=np.int64) * stride, offsets.ends.lengths)
    ends = np.maximum.accumulate(offsets.ends.values + base)

    closing = np.flatnonzero(offsets.closes.values & ~offsets.is_special.values)
    closing_ends = ends.take(closing)
    begin = segments.example * stride + segment_starts
    low = np.searchsorted(closing_ends, begin, side="right")
    high = np.searchsorted(closing_ends, begin + segments.length, side="right")
    chosen = flat_ranges(low, high - low)
    shift = np.repeat(line[:-1] - begin, high - low)

    first = np.searchsorted(ends, begin, side="right")
    straddled = _straddled(offsets, first, segment_starts, offsets.ends.splits[segments.example + 1])
    return _Side(closing.take(chosen), closing_ends.take(chosen) + shift, high - low, first, straddled)


def _straddled(offsets: TokenOffsets, first: Index, segment_starts: Index, row_stops: Index) -> Index:
    """[S] characters into each segment that belong to tokens which begin before it.

    Args:
        offsets: The side's tokens.
        first: [S] the first token that ends inside or behind the segment.
        segment_starts: [S] characters.
        row_stops: [S] one past the last token of the segment's example.
    """
    straddled = np.zeros(len(first), dtype=np.int64)
    token, active = first.copy(), np.arange(len(first))
    while len(active):  # one round per straddler; there is seldom more than one
        active = active[token[active] < row_stops[active]]
        current = token[active]
        straddles = (offsets.starts.values[current] < segment_starts[active]) & ~offsets.is_special.values[current]
        active, current = active[straddles], current[straddles]
        straddled[active] = np.maximum(straddled[active], offsets.ends.values[current] - segment_starts[active])
        token[active] += 1
    return straddled


def _merge(spans: Index, segment: Index, splits: Index, max_spans: int) -> tuple[Index, Index]:
    """Spans [4, n] and splits [B + 1] after merging neighbours where an example has more than ``max_spans``."""
    if not np.any(np.diff(splits) > max_spans):
        return spans, splits
    blocks: list[Index] = []
    for start, stop in zip(splits[:-1].tolist(), splits[1:].tolist(), strict=True):
        block = spans[:, start:stop]
        blocks.append(block if stop - start <= max_spans else _merged_evenly(block, segment[start:stop], max_spans))
    return np.concatenate(blocks, axis=1), splits_of([block.shape[1] for block in blocks])


def _merged_evenly(spans: Index, segment: Index, max_spans: int) -> Index:
    """One example's spans [4, K] as at most ``max_spans``, merged inside segments only.

    Spans of two segments never merge: the characters between them have no counterpart. Each segment keeps a share in
    proportion to its spans; with more segments than ``max_spans`` those with the most spans are kept, as one span each.
    """
    _, run_counts = np.unique(segment, return_counts=True)
    run_starts = splits_of(run_counts)
    num_spans, num_runs = len(segment), len(run_counts)
    if num_runs > max_spans:
        chosen = np.sort(np.argsort(-run_counts, kind="stable")[:max_spans])
        quotas = np.ones(max_spans, dtype=np.int64)
    else:
        chosen = np.arange(num_runs)
        quotas = 1 + (run_counts - 1) * (max_spans - num_runs) // (num_spans - num_runs)
    firsts = np.concatenate(
        [
            run_starts[run] + np.arange(quota + 1, dtype=np.int64) * run_counts[run] // quota
            for run, quota in zip(chosen.tolist(), quotas.tolist(), strict=True)
        ]
    )
    is_last_edge = np.zeros(len(firsts), dtype=bool)
    is_last_edge[np.cumsum(quotas + 1) - 1] = True
    begins, stops = firsts[~is_last_edge], firsts[np.flatnonzero(~is_last_edge) + 1] - 1
    return np.stack([spans[0, begins], spans[1, stops], spans[2, begins], spans[3, stops]])
