"""Examples of a small world as a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra_data.shards.schema import SideRow, TeacherRow
from sra_data.shards.store import PairSpans
from sra_train.contract import Aligned, Batch, TeacherBatch
from sra_train.data.aligned_rows import aligned_rows
from sra_train.data.chunk_rows import chunk_rows
from sra_train.data.examples import ExampleParts, TeacherPart
from sra_train.data.index_rows import label_rows, span_rows
from sra_train.data.staging import StagingBuffer
from tests.unit.methods.examples import END, Example


def make_batch(
    examples: list[Example | None],
    *,
    teachers: Sequence[list[Example | None]] | None = None,
    likes: Sequence[Example] | None = None,
    weights: Sequence[float] | None = None,
    extra_tokens: int = 0,
    extra_positions: int = 0,
    extra_spans: int = 0,
    garbage: float = 7.0,
    aligned: Aligned | None = None,
    chunks: bool = False,
) -> tuple[Batch, dict[int, Tensor], dict[int, Tensor]]:
    """Pad and stack; None is a row that only fills the batch. Padding holds `garbage`, which must not matter.

    Args:
        examples: The rows.
        teachers: The same rows as each teacher has them, None where it lacks one; `examples` themselves where None.
        likes: An example of each teacher, which says how wide it is where it lacks all rows; the first row where None.
        weights: Of the rows; 0 for a row that counts nowhere. 1 for every real row where None.
        extra_tokens, extra_positions, extra_spans: Padding beyond what is needed.
        garbage: See above.
        aligned: Which rows are laid beside each other, if any.
        chunks: Whether there are rows of chunks.
    """
    real = [example for example in examples if example is not None]
    num_tokens = max(len(example.ids) for example in real) + extra_tokens
    dtype = real[0].student_hidden[1].dtype
    if weights is None:
        weights = [0.0 if example is None else 1.0 for example in examples]
    counted = [example if weight else None for example, weight in zip(examples, weights, strict=True)]
    labels = stacked([None if one is None else labels_of(one) for one in counted], num_tokens, -100)
    batch = Batch(
        example_ids=["" if example is None else example.name for example in examples],
        weight=torch.tensor(weights, dtype=dtype),
        input_ids=stacked([None if one is None else torch.tensor(one.ids) for one in examples], num_tokens, 0),
        labels=labels,
        lengths=torch.tensor([num_tokens if example is None else len(example.ids) for example in examples]),
        label_rows=label_rows("label_rows", labels.numpy(), StagingBuffer(pinned=False)),
        teachers=tuple(
            teacher_batch(
                f"teacher-{place}",
                [own if one is not None else None for own, one in zip(rows, counted, strict=True)],
                labels,
                like=real[0] if likes is None else likes[place],
                extra_positions=extra_positions,
                extra_spans=extra_spans,
                garbage=garbage,
                aligned=aligned,
                chunks=chunks,
            )
            for place, rows in enumerate([examples] if teachers is None else teachers)
        ),
    )

    def per_layer(name: str) -> dict[int, Tensor]:
        return {
            layer: stacked(
                [None if one is None else getattr(one, name)[layer] for one in examples], num_tokens, garbage
            )
            for layer in sorted(real[0].student_hidden)
        }

    attention = {layer: weights.abs() for layer, weights in per_layer("student_attention").items()}
    return batch, per_layer("student_hidden"), attention


def teacher_batch(
    name: str,
    examples: list[Example | None],
    labels: Tensor,
    *,
    like: Example,
    extra_positions: int = 0,
    extra_spans: int = 0,
    garbage: float = 7.0,
    aligned: Aligned | None = None,
    chunks: bool = False,
) -> TeacherBatch:
    """One teacher's part of a batch; None is a row that it lacks."""
    real = [example for example in examples if example is not None]
    num_tokens = labels.shape[1]
    layers = sorted(like.teacher_hidden)
    positions = max((len(example.teacher_hidden[1]) for example in real), default=1) + extra_positions
    num_spans = max((len(example.student_spans) for example in real), default=0) + extra_spans

    def column(read: Any, size: int, fill: float) -> Tensor:
        values = [None if example is None else read(example) for example in examples]
        return stacked(values, size, fill, like=read(like))

    def last_of(side: str) -> Tensor:
        return column(lambda e: torch.tensor([s[-1] for s in getattr(e, f"{side}_spans")]).long(), num_spans, 0)

    def ids_of(side: str, size: int, count: Any) -> Tensor:
        return column(lambda e: span_ids(getattr(e, f"{side}_spans"), count(e)), size, -1)

    def tables_of(side: str) -> list[np.ndarray]:
        spans = [[] if example is None else getattr(example, f"{side}_spans") for example in examples]
        return [np.array([(s[0], s[-1] + 1) for s in one], dtype=np.int64).reshape(-1, 2) for one in spans]

    counts = torch.tensor([0 if example is None else len(example.student_spans) for example in examples])
    student_last, teacher_last = last_of("student"), last_of("teacher")
    staging = StagingBuffer(pinned=False)
    rows = span_rows(
        "span_rows",
        student=tables_of("student"),
        teacher=tables_of("teacher"),
        labels=labels.numpy(),
        staging=staging,
    )
    others = label_rows("others", labels.numpy(), staging, without=rows.student_positions.numpy())
    has_top_k, has_next = like.top_k_ids is not None, like.next_log_prob is not None
    lengths = torch.tensor([0 if example is None else len(example.teacher_hidden[1]) for example in examples])
    return TeacherBatch(
        name=name,
        has_teacher=torch.tensor([example is not None for example in examples]),
        span_mask=torch.arange(num_spans) < counts[:, None],
        student_span_ids=ids_of("student", num_tokens, lambda e: len(e.ids)),
        student_span_last=student_last,
        teacher_span_ids=ids_of("teacher", positions, lambda e: len(e.teacher_hidden[1])),
        teacher_span_last=teacher_last,
        position_mask=torch.arange(positions) < lengths[:, None],
        span_rows=rows,
        other_labels=others,
        hidden={i: column(lambda e, i=i: e.teacher_hidden[i], positions, garbage) for i in layers},
        attention={i: column(lambda e, i=i: e.teacher_attention[i], positions, garbage).abs() for i in layers},
        top_k_ids=column(lambda e: e.top_k_ids, positions, 0) if has_top_k else None,
        top_k_values=column(lambda e: e.top_k_values, positions, -1.0) if has_top_k else None,
        log_tails={t: column(lambda e, t=t: e.log_tails[t], positions, -1.0) for t in like.log_tails},
        next_log_prob=column(lambda e: e.next_log_prob, positions, garbage) if has_next else None,
        **beside(examples, labels, positions, aligned=aligned, chunks=chunks),
    )


def beside(
    examples: list[Example | None], labels: Tensor, positions: int, *, aligned: Aligned | None, chunks: bool
) -> dict[str, Any]:
    """The rows that are laid beside each other and those of chunks, where they are wanted."""
    parts = [None if example is None else teacher_part(example) for example in examples]
    cached = [np.zeros(0, np.int32) if part is None else part.positions for part in parts]
    given: dict[str, Any] = {"cached": cached, "labels": labels.numpy(), "staging": StagingBuffer(pinned=False)}
    found: dict[str, Any] = {}
    if aligned is not None:
        own = [None if example is None else student_parts(example) for example in examples]
        found["aligned"] = aligned_rows(aligned, own, parts, end_of_sequence=END, nearest=None, name="aligned", **given)
    if chunks:
        found["chunks"] = chunk_rows(parts, width=positions, name="chunks", **given)
    return found


def student_parts(example: Example) -> ExampleParts:
    """The student's side, with its one response: the labels without the end of sequence."""
    stop = example.label_stop - int(example.closes)
    return ExampleParts(side_row(example.name, example.ids, (example.label_start, stop)))


def teacher_part(example: Example) -> TeacherPart:
    """The teacher's side: its token i stands in row i, and row 0 is the last token of the prompt."""
    rows = len(example.teacher_hidden[1])
    tables = [np.array([(s[0], s[-1] + 1) for s in one], dtype=np.int32).reshape(-1, 2) for one in example.spans]
    side = side_row(example.name, [0] * rows + ([END[1]] if example.closes else []), (1, rows))
    return TeacherPart(PairSpans(example.name, "ok", *tables), side, TeacherRow(example.name))


def side_row(name: str, ids: list[int], response: tuple[int, int]) -> SideRow:
    """What aligning rows reads of a side."""
    none, no_spans = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    return SideRow(
        id=name,
        status="ok",
        ids=np.array(ids, np.int32),
        starts=none,
        ends=none,
        kinds=np.zeros(0, np.uint8),
        response_ranges=no_spans,
        response_turns=np.zeros(1, np.int32),
        response_spans=np.array([response], np.int32),
        label_spans=no_spans,
    )


def stacked(values: Sequence[Tensor | None], size: int, fill: float, *, like: Tensor | None = None) -> Tensor:
    """Rows of different lengths in one tensor [rows, size, ...]; what no row has is `fill`."""
    if like is None:
        like = next(value for value in values if value is not None)
    out = torch.full((len(values), size, *like.shape[1:]), fill, dtype=like.dtype)
    for row, value in enumerate(values):
        if value is not None:
            out[row, : len(value)] = value
    return out


def span_ids(spans: list[list[int]], tokens: int) -> Tensor:
    ids = torch.full((tokens,), -1)
    for place, span in enumerate(spans):
        ids[span] = place
    return ids


def labels_of(example: Example) -> Tensor:
    out = torch.full((len(example.ids),), -100)
    labelled = slice(example.label_start, example.label_stop)
    out[labelled] = torch.tensor(example.ids)[labelled]
    return out
