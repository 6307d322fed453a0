"""What a row of each folder is, for the other rooms: three dataclasses, and the columns they become on disk.

    corpus        what the teacher reads (one row per example; written once, student-independent)
    alignments/*  how one student's tokens and the teacher's share spans
    teacher       what the teacher said at every cached position

The three have the same rows in the same order, in the same parts. All token and character spans are
half-open; token indices count from the example's first token, special tokens included.

Shapes: R responses, N teacher tokens, M student tokens, K spans, P cached positions, D hidden channels, k top-k
entries, T temperatures, S sampled ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.codecs import EncodedTensor

OK = "ok"  # a status; any other is "skipped:<reason>"

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class CorpusRow:
    """One example as the teacher reads it. A skipped example has empty arrays and keeps its text.

    A reader that was not asked for a column leaves None there, here and in `AlignmentRow`.
    """

    id: str
    split: str  # "train" | "dev"
    status: str  # "ok" | "skipped:<reason>"
    text: str
    response_ranges: IntArray  # [R, 2] characters
    teacher_ids: IntArray  # [N]
    teacher_ends: IntArray  # [N] characters
    teacher_response_spans: IntArray  # [R, 2] tokens

    @property
    def num_positions(self) -> int:
        """P, the rows the teacher's folder holds for this example."""
        return count_positions(self.teacher_response_spans)


@dataclass(frozen=True)
class AlignmentRow:
    """One example as one student reads it, and its spans on both sides. `student_text` None: the teacher's text."""

    id: str
    status: str
    student_ids: IntArray  # [M]
    student_ends: IntArray  # [M] characters of the student's text
    label_spans: IntArray  # [R, 2] student tokens
    student_spans: IntArray  # [K, 2] student tokens
    teacher_spans: IntArray  # [K, 2] teacher tokens
    student_text: str | None = None


@dataclass(frozen=True)
class TeacherRow:
    """What the teacher said about one example at its P positions (0 of them where the example was skipped)."""

    id: str
    positions: IntArray | None = None  # [P] token index of each row; not stored, see response_positions
    hidden: dict[int, EncodedTensor] = field(default_factory=dict)  # layer -> [P, D]
    attention: dict[int, FloatArray] = field(default_factory=dict)  # layer -> [P]
    top_k_ids: IntArray | None = None  # [P, k]
    top_k_values: NDArray[np.floating] | None = None  # [P, k] log-probabilities at temperature 1, fp16 or fp32
    log_tails: FloatArray | None = None  # [T, P]
    next_log_prob: FloatArray | None = None  # [P]
    sampled_ids: IntArray | None = None  # [P, S]
    sampled_weights: FloatArray | None = None  # [P, S]


def response_positions(teacher_response_spans: IntArray) -> IntArray:
    """Token indices the cache holds: per response [r, e) the rows max(r - 1, 0) .. e - 1; union, sorted, no repeats.

    Row r - 1 stands before the response: the distribution over its first token is there. Spans are in order.
    """
    starts = np.maximum(teacher_response_spans[:, 0] - 1, 0)
    pieces = [
        np.arange(start, stop, dtype=np.int32) for start, stop in zip(starts, teacher_response_spans[:, 1], strict=True)
    ]
    return np.unique(np.concatenate(pieces)).astype(np.int32) if pieces else np.empty(0, np.int32)


def count_positions(teacher_response_spans: IntArray) -> int:
    """How many positions `response_positions` gives."""
    return len(response_positions(teacher_response_spans))
