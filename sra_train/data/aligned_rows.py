"""Which rows of student and teacher are laid beside each other, as rows of indices (`contract.Aligned`).

At a shared boundary both models have read the same text, so what each says comes next may be compared: at the end of
every span, and at the start of a response where no token of either side straddles it. Then a token of the prompt is
the last one read, and its row teaches the FIRST token of the response.

A worked example: response tokens 2..5 on both sides, spans [2, 3)~[2, 3), [3, 5)~[3, 4), [5, 6)~[4, 6):

    boundary  (1, 1) the start   (2, 2)   (4, 3)   (5, 5) the end
    strict    (1, 1)             and (5, 5) where both sides go on with their end of sequence
    response  (1, 1) (2, 2) (3, 3) (4, 4) (5, 5)

`edited` compares the tokens' pieces and no offsets: MinED lines up the labels of a response by their edit distance.

Legend: B examples, N student tokens, K spans, R responses, S rows of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.pairs import PairNearest
from sra_data.shards.schema import SideRow
from sra_data.spans.edit_distance import warped_pairs
from sra_train.contract import Aligned, AlignedRows
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.index_rows import Positions, label_rows, next_labels
from sra_train.data.staging import StagingBuffer

Spans = NDArray[Any]  # [K, 2] integers
NO_TEXT = b"\xff" * 16
NOWHERE: Positions = np.zeros((0, 2), np.int64)


def aligned_rows(
    kind: Aligned,
    examples: Sequence[ExampleParts | None],
    parts: Sequence[TeacherPart | None],
    *,
    cached: Sequence[NDArray[np.int32]],
    end_of_sequence: tuple[int, int] | None,
    nearest: PairNearest | None,
    labels: Positions,
    staging: StagingBuffer,
    name: str,
) -> AlignedRows:
    """The rows of a batch.

    Args:
        kind: Which.
        examples: One entry a slot.
        parts: The teacher's part of each.
        cached: [P] token index of each cached row of the teacher, of every slot.
        end_of_sequence: The pair (student's id, teacher's id).
        nearest: What the ids of both sides stand for; for `edited` alone.
        labels: [B, N].
        staging: Where the rows live.
        name: Of the memory in `staging`.
    """
    found = [
        NOWHERE if one is None or part is None else rows_of(kind, one.side, part, rows, end_of_sequence, nearest)
        for one, part, rows in zip(examples, parts, cached, strict=True)
    ]
    counts = [len(one) for one in found]
    pairs = np.concatenate(found)
    example = np.repeat(np.arange(len(found)), counts)
    positions = example * labels.shape[1] + pairs[:, 0]
    targets = next_labels(labels).reshape(-1)[positions]
    fields = {"example": example, "student_positions": positions, "teacher_positions": pairs[:, 1], "targets": targets}
    return AlignedRows(
        **{field: staging.copied(f"{name}.{field}", values) for field, values in fields.items()},
        other_labels=label_rows(f"{name}.other_labels", labels, staging, without=positions),
    )


def rows_of(
    kind: Aligned,
    student: SideRow,
    teacher: TeacherPart,
    cached: NDArray[np.int32],
    end_of_sequence: tuple[int, int] | None,
    nearest: PairNearest | None = None,
) -> Positions:
    """[S, 2] (the student's token, the teacher's cached row) of one example, in order."""
    if kind == "response":
        tokens = beside_each_other(student, teacher.side)
    elif kind == "edited":
        assert nearest is not None, "the reader reads the pieces"
        tokens = edited(student, teacher.side, nearest, end_of_sequence)
    else:
        tokens = boundaries(student, teacher)
        if kind == "strict":
            tokens = tokens[goes_on_alike(tokens, student, teacher, end_of_sequence)]
    rows = np.searchsorted(cached, tokens[:, 1])
    # A prompt of no token leaves nothing before the response, on either side; nothing is cached there.
    there = (tokens[:, 0] >= 0) & (rows < len(cached)) & (cached[np.minimum(rows, len(cached) - 1)] == tokens[:, 1])
    return np.stack([tokens[there, 0], rows[there]], axis=1)


def boundaries(student: SideRow, teacher: TeacherPart) -> Positions:
    """[S, 2] (the student's token, the teacher's token) that stand last before every shared boundary.

    A span that begins a response on both sides begins at a shared boundary too: had a token straddled the start, spans
    would begin behind it.
    """
    ours, theirs = teacher.spans.student_spans.astype(np.int64), teacher.spans.teacher_spans.astype(np.int64)
    is_start = np.isin(ours[:, 0], student.response_spans[:, 0])
    is_start &= np.isin(theirs[:, 0], teacher.side.response_spans[:, 0])
    starts = np.stack([ours[is_start, 0] - 1, theirs[is_start, 0] - 1], axis=1)
    ends = np.stack([ours[:, 1] - 1, theirs[:, 1] - 1], axis=1)
    both = np.concatenate([starts, ends])
    return both[np.argsort(both[:, 0], kind="stable")]


def goes_on_alike(
    tokens: Positions, student: SideRow, teacher: TeacherPart, end_of_sequence: tuple[int, int] | None
) -> NDArray[np.bool_]:
    """[S] whether the next token is the whole next span on both sides, or the end of sequence on both."""
    ours, theirs = teacher.spans.student_spans, teacher.spans.teacher_spans
    is_single = (ours[:, 1] - ours[:, 0] == 1) & (theirs[:, 1] - theirs[:, 0] == 1)
    singles = {(int(one), int(other)) for one, other in zip(ours[is_single, 0], theirs[is_single, 0], strict=True)}
    ends = set() if end_of_sequence is None else {end_of_sequence}

    def alike(ours: int, theirs: int) -> bool:
        if (ours, theirs) in singles:
            return True
        inside = ours < len(student.ids) and theirs < len(teacher.side.ids)
        return inside and (int(student.ids[ours]), int(teacher.side.ids[theirs])) in ends

    return np.array([alike(one + 1, other + 1) for one, other in tokens.tolist()], dtype=bool)


def beside_each_other(student: SideRow, teacher: SideRow) -> Positions:
    """[S, 2] tokens that predict the i-th token of the same response, as far as both go; the end counts as one more."""
    turns = {int(turn): place for place, turn in enumerate(teacher.response_turns)}
    found = [NOWHERE]
    for turn, (start, stop) in zip(student.response_turns.tolist(), student.response_spans.tolist(), strict=True):
        if turn in turns:
            other_start, other_stop = teacher.response_spans[turns[turn]].tolist()
            count = np.arange(min(stop - start, other_stop - other_start) + 1)
            found.append(np.stack([start - 1 + count, other_start - 1 + count], axis=1))
    return np.concatenate(found)


def edited(
    student: SideRow, teacher: SideRow, nearest: PairNearest, end_of_sequence: tuple[int, int] | None
) -> Positions:
    """[S, 2] tokens that predict two labels which stand for each other alone on a path of least edit distance.

    Of those pairs, the ones that the map of ids sends to each other too: others are an error of the path.
    """
    turns = {int(turn): place for place, turn in enumerate(teacher.response_turns)}
    found = [NOWHERE]
    for turn, (start, stop) in zip(student.response_turns.tolist(), student.label_spans.tolist(), strict=True):
        if turn not in turns:
            continue
        other_start, other_stop = teacher.label_spans[turns[turn]].tolist()
        ours, theirs = student.ids[start:stop], teacher.ids[other_start:other_stop]
        pairs = warped_pairs(pieces_of(ours, nearest.student_pieces), pieces_of(theirs, nearest.teacher_pieces))
        ids = np.stack([ours[pairs[:, 0]], theirs[pairs[:, 1]]], axis=1)
        images = np.append(nearest.student_of_teacher, -1)[np.minimum(ids[:, 1], len(nearest.student_of_teacher))]
        alike = images == ids[:, 0]
        if end_of_sequence is not None:
            alike |= (ids == np.array(end_of_sequence)).all(1)
        found.append(pairs[alike] + np.array([start - 1, other_start - 1]))
    return np.concatenate(found)


def pieces_of(ids: NDArray[np.int32], pieces: Sequence[bytes]) -> list[bytes]:
    """What ids stand for; a special token is near its like and far from any text, as is an id without a piece."""
    return [pieces[one] or NO_TEXT if one < len(pieces) else NO_TEXT for one in ids.tolist()]
