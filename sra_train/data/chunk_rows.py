"""By which rows the tokens of every span are predicted, as rows of indices (`contract.ChunkRows`).

A token is predicted at the position before it: the student's tokens [a, b) of a span by the positions a - 1 .. b - 2,
the teacher's [c, d) by c - 1 .. d - 2. The row before a response is cached, so its first token is among them.

A worked example: one span, [2, 4) of the student and [1, 4) of the teacher; labels at the student's tokens 2, 3 and 4,
rows cached for the teacher's positions 0 .. 4:

    label rows 0, 1, 2 stand at the positions 1, 2, 3   -> the span's are 0 and 1
    the teacher's tokens 1, 2, 3                        -> the cached rows 0, 1 and 2

Legend: B examples, N student tokens, P teacher positions, K spans, L tokens of spans, C chunks, R and Q rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_train.contract import IGNORED_LABEL, ChunkRows
from sra_train.data.examples import TeacherPart
from sra_train.data.index_rows import Positions, next_labels
from sra_train.data.staging import StagingBuffer

NOTHING: Positions = np.zeros(0, np.int64)


def chunk_rows(
    parts: Sequence[TeacherPart | None],
    *,
    cached: Sequence[NDArray[np.int32]],
    labels: Positions,
    width: int,
    staging: StagingBuffer,
    name: str,
) -> ChunkRows:
    """The chunks of a batch.

    Args:
        parts: The teacher's part of each slot.
        cached: [P] token index of each cached row of the teacher, of every slot.
        labels: [B, N].
        width: P of the batch, padded.
        staging: Where the rows live.
        name: Of the memory in `staging`.
    """
    predicts = next_labels(labels) != IGNORED_LABEL  # [B, N]
    label_row = np.cumsum(predicts.reshape(-1)).reshape(predicts.shape) - 1  # of each position that predicts a label
    found: dict[str, list[Positions]] = {
        field: [NOTHING] for field in ("example", "labels", "chunk_of_label", "teacher_positions", "chunk_of_position")
    }
    count = 0
    for slot, (part, positions) in enumerate(zip(parts, cached, strict=True)):
        if part is not None and len(positions):
            own, (tokens, of_token), (rows, of_row) = chunks_of(part, positions, predicts[slot])
            found["example"].append(np.full(own, slot, np.int64))
            found["labels"].append(label_row[slot, tokens])
            found["chunk_of_label"].append(count + of_token)
            found["teacher_positions"].append(slot * width + rows)
            found["chunk_of_position"].append(count + of_row)
            count += own
    return ChunkRows(
        **{field: staging.copied(f"{name}.{field}", np.concatenate(values)) for field, values in found.items()}
    )


def chunks_of(
    part: TeacherPart, cached: NDArray[np.int32], predicts: NDArray[np.bool_]
) -> tuple[int, tuple[Positions, Positions], tuple[Positions, Positions]]:
    """The chunks of one example: how many, the student's positions with the chunk of each, the teacher's rows likewise.

    Args:
        part: Of the teacher, with the spans.
        cached: [P] token index of each cached row, at least one.
        predicts: [N] whether the student's position predicts a label.
    """
    tokens, span_of_token = predicting(part.spans.student_spans)
    others, span_of_row = predicting(part.spans.teacher_spans)
    rows = np.searchsorted(cached, others)
    is_label = (tokens >= 0) & predicts[np.maximum(tokens, 0)]
    is_cached = cached[np.minimum(rows, len(cached) - 1)] == others
    whole = np.ones(len(part.spans.student_spans), dtype=bool)
    whole[span_of_token[~is_label]] = False
    whole[span_of_row[~is_cached]] = False
    number = np.cumsum(whole) - 1  # among the chunks that are left
    kept, kept_rows = whole[span_of_token], whole[span_of_row]
    return (
        int(whole.sum()),
        (tokens[kept], number[span_of_token[kept]]),
        (rows[kept_rows], number[span_of_row[kept_rows]]),
    )


def predicting(spans: NDArray[Any]) -> tuple[Positions, Positions]:
    """[L] the positions before the tokens of spans [K, 2], span by span, and [L] the span of each."""
    starts, lengths = spans[:, 0].astype(np.int64), (spans[:, 1] - spans[:, 0]).astype(np.int64)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts - 1, lengths) + within, np.repeat(np.arange(len(spans)), lengths)
