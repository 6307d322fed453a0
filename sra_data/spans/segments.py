"""Where both sides read the same characters: the stretches in which alignment works.

Same text on both sides: every response is one segment. Different texts (a chat template that trims or rewrites): each
pair of turns is compared by the longest common subsequence of its characters, and every run of equal characters is a
segment. Characters without a counterpart are in no segment and so in no span.

The comparison costs (length x length) bits, so the common beginning and end come off first, and what is left is
compared whole only when it is small. Otherwise stretches of characters that occur exactly once on both sides anchor it,
and the gaps between anchors are compared; a gap too large and too different even for that has no segment, rather than
hours or gigabytes of them.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from sra_data.spans.ragged import Array, Ragged

MAX_TABLE_BITS = 2**28  # the largest table of a comparison: 32 MiB, 16,384 x 16,384 characters
ANCHOR_WIDTHS = (32, 12)  # characters; the second only inside gaps that are still too large
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Block = tuple[int, int, int]  # student start, teacher start, length


@dataclass(frozen=True, eq=False)
class Segments:
    """Stretches of equal text inside responses, sorted by example, then position; disjoint on both sides.

    Attributes:
        example: [S] int64, index in the batch.
        student_start: [S] int64, first character in the student's text.
        teacher_start: [S] int64, first character in the teacher's text.
        length: [S] int64, characters; at least 1.
    """

    example: NDArray[np.int64]
    student_start: NDArray[np.int64]
    teacher_start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.example)


def segments_for(
    *,
    student_texts: Sequence[str],
    student_ranges: Sequence[Array],
    teacher_texts: Sequence[str],
    teacher_ranges: Sequence[Array],
) -> Segments:
    """Find the segments of a batch.

    Args:
        student_texts: [B] texts as the student reads them.
        student_ranges: [B] arrays [R, 2], character range of each response in the student's text.
        teacher_texts: [B] likewise for the teacher.
        teacher_ranges: [B] arrays [R, 2], the same number of responses in the same order.
    """
    if _same(student_texts, teacher_texts) and _same_ranges(student_ranges, teacher_ranges):
        turns = Ragged.from_list(student_ranges, np.int64, (2,))
        example, start, length = turns.rows, turns.values[:, 0], turns.values[:, 1] - turns.values[:, 0]
        filled = length > 0
        return Segments(example[filled], start[filled], start[filled], length[filled])
    found: list[tuple[int, int, int, int]] = []
    sides = zip(student_texts, student_ranges, teacher_texts, teacher_ranges, strict=True)
    for row, (student_text, student_turns, teacher_text, teacher_turns) in enumerate(sides):
        assert len(student_turns) == len(teacher_turns), "both sides have the same responses"
        for (s_start, s_stop), (t_start, t_stop) in zip(
            np.asarray(student_turns).tolist(), np.asarray(teacher_turns).tolist(), strict=True
        ):
            student_turn, teacher_turn = student_text[s_start:s_stop], teacher_text[t_start:t_stop]
            for s_block, t_block, run in equal_blocks(student=student_turn, teacher=teacher_turn):
                found.append((row, s_start + s_block, t_start + t_block, run))
    table = np.array(found, dtype=np.int64).reshape(-1, 4)
    return Segments(*(np.ascontiguousarray(column) for column in table.T))


def _same(student: Sequence[str], teacher: Sequence[str]) -> bool:
    return student is teacher or list(student) == list(teacher)


def _same_ranges(student: Sequence[Array], teacher: Sequence[Array]) -> bool:
    if student is teacher:
        return True
    return all(a is b or np.array_equal(a, b) for a, b in zip(student, teacher, strict=True))


def equal_blocks(*, student: str, teacher: str, max_table_bits: int = MAX_TABLE_BITS) -> list[Block]:
    """Runs of characters that a longest common subsequence of two texts pairs, in order.

    Exact where the product of the two lengths, common beginning and end taken off, is at most ``max_table_bits``;
    beyond that by anchors, possibly shorter than the longest, never a wrong pair.
    """
    if student == teacher:
        return [(0, 0, len(student))] if student else []
    return _joined(_blocks(student, teacher, max_table_bits, ANCHOR_WIDTHS))


def _blocks(student: str, teacher: str, max_table_bits: int, widths: tuple[int, ...]) -> Iterator[Block]:
    prefix = _common_prefix(student, teacher)
    suffix = _common_prefix(student[prefix:][::-1], teacher[prefix:][::-1])
    yield 0, 0, prefix
    s_middle, t_middle = student[prefix : len(student) - suffix], teacher[prefix : len(teacher) - suffix]
    inner: Iterable[Block] = ()
    if len(s_middle) * len(t_middle) <= max_table_bits:
        inner = _matched(s_middle, t_middle)
    elif widths:
        inner = _between_anchors(s_middle, t_middle, max_table_bits, widths)
    for s_start, t_start, length in inner:
        yield prefix + s_start, prefix + t_start, length
    yield len(student) - suffix, len(teacher) - suffix, suffix


def _common_prefix(student: str, teacher: str) -> int:
    """Characters both begin with; by halving, so that slices are compared rather than characters."""
    low, high = 0, min(len(student), len(teacher))
    while low < high:
        middle = (low + high + 1) // 2
        if student[low:middle] == teacher[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _matched(student: str, teacher: str) -> list[Block]:
    """Equal runs of two short texts by their longest common subsequence."""
    return [
        (step.src_start, step.dest_start, step.src_end - step.src_start)
        for step in LCSseq.opcodes(student, teacher)
        if step.tag == "equal"
    ]


def _between_anchors(student: str, teacher: str, max_table_bits: int, widths: tuple[int, ...]) -> Iterator[Block]:
    """Anchors of the first width, and what the gaps between them have in common."""
    done_s = done_t = 0
    for s_anchor, t_anchor, length in [*_anchors(student, teacher, widths[0]), (len(student), len(teacher), 0)]:
        gaps = student[done_s:s_anchor], teacher[done_t:t_anchor]
        for s_start, t_start, inner_length in _blocks(*gaps, max_table_bits, widths[1:]):
            yield done_s + s_start, done_t + t_start, inner_length
        yield s_anchor, t_anchor, length
        done_s, done_t = s_anchor + length, t_anchor + length


def _anchors(student: str, teacher: str, width: int) -> list[Block]:
    """Characters that begin a stretch of ``width`` found exactly once on both sides, as runs in order on both."""
    s_hashes, s_places = _found_once(student, width)
    t_hashes, t_places = _found_once(teacher, width)
    _, s_chosen, t_chosen = np.intersect1d(s_hashes, t_hashes, assume_unique=True, return_indices=True)
    s_at, t_at = s_places[s_chosen], t_places[t_chosen]
    order = np.argsort(s_at)
    s_at, t_at = s_at[order], t_at[order]
    begins = np.flatnonzero(np.concatenate(([True], (np.diff(s_at) != 1) | (np.diff(t_at) != 1)))[: len(s_at)])
    lengths = np.diff(np.append(begins, len(s_at)))
    runs = [
        (s_start, t_start, length)
        for s_start, t_start, length in zip(s_at[begins].tolist(), t_at[begins].tolist(), lengths.tolist(), strict=True)
        if student[s_start : s_start + length] == teacher[t_start : t_start + length]  # hashes may collide
    ]
    return _longest_rising(runs)


def _found_once(text: str, width: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the stretches of ``width`` characters that occur once in ``text``, ascending, and where."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(max(len(codes) - width + 1, 0), dtype=np.uint64)
    for offset in range(width):
        hashes = hashes * _HASH_FACTOR + codes[offset : offset + len(hashes)]
    unique, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    return unique[counts == 1], first[counts == 1]


def _longest_rising(runs: list[Block]) -> list[Block]:
    """The longest choice of runs, sorted on the student's side, that also rises on the teacher's (patience sorting)."""
    tops: list[int] = []  # the least teacher start that ends a rising choice of each length
    top_runs: list[int] = []
    before: list[int] = []
    for index, (_, t_start, _) in enumerate(runs):
        pile = bisect_left(tops, t_start)
        before.append(top_runs[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(t_start)
            top_runs.append(index)
        else:
            tops[pile], top_runs[pile] = t_start, index
    chosen = []
    index = top_runs[-1] if top_runs else -1
    while index >= 0:
        chosen.append(runs[index])
        index = before[index]
    return chosen[::-1]


def _joined(blocks: Iterator[Block]) -> list[Block]:
    """Blocks that follow each other without a gap on both sides become one; empty ones go."""
    joined: list[Block] = []
    for s_start, t_start, length in blocks:
        if not length:
            continue
        if joined:
            s_last, t_last, last_length = joined[-1]
            if (s_last + last_length, t_last + last_length) == (s_start, t_start):
                joined[-1] = (s_last, t_last, last_length + length)
                continue
        joined.append((s_start, t_start, length))
    return joined
