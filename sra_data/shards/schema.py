"""What a row of each folder is, for the other rooms: four dataclasses, and the columns they become on disk.

    corpus        an example as the user gave it, of no tokenizer
    sides/*       the corpus as one tokenizer, with its template and maximum length, reads it
    alignments/*  the spans two sides share; left and right are the two names of the folder, in its order
    teachers/*    what one model said at every cached position of its side

All folders have the same rows in the same order, in the same parts. All token and character spans are half-open; token
indices count from the example's first token, special tokens included.

Shapes: R responses, N tokens of a side, K spans, P cached positions, D hidden channels, k top-k entries,
T temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.codecs import EncodedTensor

OK = "ok"  # a status; any other is "skipped:<reason>"

# What `SideRow.kinds` says of a token.
OPEN, CLOSES, SPECIAL = 0, 1, 2

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ExampleRow:
    """One example as the user gave it: prompt and response, or a chat.

    A reader that was not asked for a column leaves None there, here and in the other rows.
    """

    id: str
    split: str  # "train" | "dev"
    num_bytes: int  # UTF-8 bytes of its responses
    prompt: str | None  # None in a chat
    response: str | None  # None in a chat
    chat: str | None = None  # JSON: {"messages": [...], "tools": [...] or null}


@dataclass(frozen=True)
class SideRow:
    """One example as one tokenizer reads it. A skipped example has empty arrays and keeps its text."""

    id: str
    status: str  # "ok" | "skipped:<reason>"
    ids: IntArray  # [N]
    starts: IntArray  # [N] characters; 0 for special tokens
    ends: IntArray  # [N] characters; 0 for special tokens
    kinds: NDArray[np.uint8]  # [N] OPEN, CLOSES (a span may end with the token) or SPECIAL (no text)
    response_ranges: IntArray  # [R, 2] characters
    response_turns: IntArray  # [R] which message each response is; 0 for prompt and response
    response_spans: IntArray  # [R, 2] tokens
    label_spans: IntArray  # [R, 2] tokens
    text: str | None = None  # None: the example's prompt and response, one behind the other

    @property
    def num_positions(self) -> int:
        """P, the rows a teacher's folder holds for this example."""
        return count_positions(self.response_spans)


@dataclass(frozen=True)
class AlignmentRow:
    """The spans of one example as tokens of both sides; span k of the left is span k of the right."""

    id: str
    status: str
    left_spans: IntArray  # [K, 2] tokens
    right_spans: IntArray  # [K, 2] tokens


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


def response_positions(response_spans: IntArray) -> IntArray:
    """Token indices a cache holds: per response [r, e) the rows max(r - 1, 0) .. e - 1; union, sorted, no repeats.

    Row r - 1 stands before the response: the distribution over its first token is there. Spans are in order.
    """
    starts = np.maximum(response_spans[:, 0] - 1, 0)
    pieces = [np.arange(start, stop, dtype=np.int32) for start, stop in zip(starts, response_spans[:, 1], strict=True)]
    return np.unique(np.concatenate(pieces)).astype(np.int32) if pieces else np.empty(0, np.int32)


def count_positions(response_spans: IntArray) -> int:
    """How many positions `response_positions` gives."""
    return len(response_positions(response_spans))


def count_labels(label_spans: IntArray) -> int:
    """Labels that can be learnt: nothing stands before token 0 to predict it from."""
    return int((label_spans[:, 1] - np.maximum(label_spans[:, 0], 1)).clip(min=0).sum())


def side_text(side: SideRow, example: ExampleRow) -> str:
    """The text a side's characters count in."""
    if side.text is not None:
        return side.text
    return (example.prompt or "") + (example.response or "")
