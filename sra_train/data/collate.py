"""Rows of the shards become one padded batch of tensors.

Stored bits become tensors without a detour: bfloat16 is copied as its uint16 pattern, float16 and float32 as they are,
and only int8 is decoded (to float32). Span tables become span ids in one vectorised pass over the whole batch.

Padding is on the right, by length. A slot without a row becomes one token of id 0 with weight 0, no label and no span:
it adds nothing to any term, on any method that keeps to the contract of `Batch`. A batch of nothing but empty slots
would have no teacher width: its first slot is filled by `filler`, one real row with everything that counts cut away.

Legend: B examples, N student tokens, P teacher positions, K spans, D teacher width, k top-k entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, response_positions
from sra_train.contract import IGNORED_LABEL, Batch, CacheNeeds
from sra_train.data.staging import StagingBuffer

NO_EXAMPLE = ""  # id of a slot without a row
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.float32}


@dataclass(frozen=True)
class ExampleRows:
    """One example's rows of the three folders; what the method does not need is None."""

    alignment: AlignmentRow
    corpus: CorpusRow | None = None
    teacher: TeacherRow | None = None
    weight: float = 1.0


@dataclass
class TextBytes:
    """What bits per byte needs of a batch: which tokens count, and how many bytes they spell."""

    tokens: Tensor  # [B, N] bool: labels that are text, so neither end-of-sequence nor a template's closing token
    bytes: Tensor  # [B] int64, UTF-8 bytes of the responses

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TextBytes:
        """The same on `device`."""
        return TextBytes(*(t.to(device, non_blocking=non_blocking) for t in (self.tokens, self.bytes)))


def collate(
    rows: Sequence[ExampleRows | None],
    *,
    needs: CacheNeeds,
    temperatures: Sequence[float],
    staging: StagingBuffer,
    granularity: str = "token",
) -> Batch:
    """Build the batch of `rows` on the CPU.

    Args:
        rows: One entry a slot; None for a slot that no row fills.
        needs: What the method reads of the teacher's pages.
        temperatures: Of the stored log tails, in their order.
        staging: Where the tensors live; the batch is valid until the buffer is given back.
        granularity: "token": the teacher's rows are positions; "span": they are the spans themselves, pooled before
            they were stored, so that each span has one row.

    Raises:
        ShardError: If a row's parts do not belong together.
    """
    batch = student_side(rows, staging)
    if needs.nothing:
        return batch
    return teacher_side(
        batch, rows, needs=needs, temperatures=temperatures, staging=staging, by_span=granularity == "span"
    )


def student_side(rows: Sequence[ExampleRows | None], staging: StagingBuffer) -> Batch:
    """Ids, labels and spans on the student's side; no teacher position at all."""
    ids = [np.zeros(1, np.int32) if row is None else row.alignment.student_ids for row in rows]
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    if not lengths.all():
        raise ShardError(f"example {example_id(rows[int(lengths.argmin())])}: no tokens; run `sra-data verify`")
    spans = [np.zeros((0, 2), np.int32) if row is None else row.alignment.student_spans for row in rows]
    shape = (len(rows), int(lengths.max()))
    input_ids = staging.full("input_ids", shape, 0, torch.int64)
    attention_mask = staging.full("attention_mask", shape, 0, torch.int64)
    labels = staging.full("labels", shape, IGNORED_LABEL, torch.int64)
    for slot, row in enumerate(rows):
        input_ids[slot, : lengths[slot]] = torch.from_numpy(ids[slot].astype(np.int64))
        attention_mask[slot, : lengths[slot]] = 1
        for start, stop in [] if row is None else row.alignment.label_spans.tolist():
            labels[slot, start:stop] = input_ids[slot, start:stop]
    num_spans = np.array([len(one) for one in spans], dtype=np.int64)
    max_spans = max(int(num_spans.max()), 1)  # an axis of length 0 has no maximum, in any method
    student_span_ids, student_span_last = span_tensors(spans, shape[1], max_spans, staging, "student")
    return Batch(
        example_ids=[example_id(row) for row in rows],
        weight=torch.tensor([0.0 if row is None else row.weight for row in rows]),
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        lengths=torch.from_numpy(lengths),
        num_spans=torch.from_numpy(num_spans),
        span_mask=torch.from_numpy(np.arange(max_spans)[None] < num_spans[:, None]),
        student_span_ids=student_span_ids,
        student_span_last=student_span_last,
        teacher_span_ids=torch.zeros((len(rows), 0), dtype=torch.int64),
        teacher_span_last=torch.zeros((len(rows), max_spans), dtype=torch.int64),
        teacher_position_mask=torch.zeros((len(rows), 0), dtype=torch.bool),
        teacher_token_index=torch.zeros((len(rows), 0), dtype=torch.int64),
        teacher_next_ids=torch.zeros((len(rows), 0), dtype=torch.int64),
    )


def teacher_side(
    batch: Batch,
    rows: Sequence[ExampleRows | None],
    *,
    needs: CacheNeeds,
    temperatures: Sequence[float],
    staging: StagingBuffer,
    by_span: bool,
) -> Batch:
    """`batch` with the teacher's positions, spans and what was cached of them."""
    positions = [np.zeros(0, np.int32) if row is None else positions_of(row, by_span=by_span) for row in rows]
    counts = np.array([len(one) for one in positions], dtype=np.int64)
    width = max(int(counts.max()), 1)
    shape = (len(rows), width)
    spans = [
        np.zeros((0, 2), np.int64) if row is None else rows_of_spans(row, one, by_span=by_span)
        for row, one in zip(rows, positions, strict=True)
    ]
    span_ids, span_last = span_tensors(spans, width, batch.span_mask.shape[1], staging, "teacher")
    token_index = staging.full("teacher_token_index", shape, 0, torch.int64)
    next_ids = staging.full("teacher_next_ids", shape, -1, torch.int64)
    for slot, row in enumerate(rows):
        if row is None:
            continue
        token_index[slot, : counts[slot]] = torch.from_numpy(positions[slot].astype(np.int64))
        next_ids[slot, : counts[slot]] = torch.from_numpy(following_ids(corpus_of(row), positions[slot]))

    def padded(what: str, read: Callable[[TeacherRow], EncodedTensor | np.ndarray | None]) -> Tensor:
        values = [None if row is None else present(read(teacher_of(row)), what, row) for row in rows]
        for row, value, count in zip(rows, values, counts, strict=True):
            if value is not None and len(value) != count:
                raise ShardError(
                    f"example {example_id(row)}: {what} has {len(value)} rows for {count} positions;"
                    " run `sra-data verify`"
                )
        return pad_positions(values, width, staging, what)

    return replace(
        batch,
        teacher_span_ids=span_ids,
        teacher_span_last=span_last,
        teacher_position_mask=torch.from_numpy(np.arange(width)[None] < counts[:, None]),
        teacher_token_index=token_index,
        teacher_next_ids=next_ids,
        teacher_hidden={
            layer: padded(f"hidden.{layer}", lambda row, layer=layer: row.hidden.get(layer))  # type: ignore[misc]
            for layer in (needs.layers if needs.hidden else ())
        },
        teacher_attention={
            layer: padded(f"attention.{layer}", lambda row, layer=layer: row.attention.get(layer))  # type: ignore[misc]
            for layer in (needs.layers if needs.attention else ())
        },
        top_k_ids=padded("top_k.ids", lambda row: row.top_k_ids).long() if needs.top_k else None,
        top_k_values=padded("top_k.values", lambda row: row.top_k_values) if needs.top_k else None,
        log_tails={
            temperature: padded(f"log_tails.{place}", lambda row, place=place: log_tail(row, place))  # type: ignore[misc]
            for place, temperature in enumerate(temperatures)
        }
        if needs.top_k
        else None,
    )


def log_tail(row: TeacherRow, place: int) -> np.ndarray | None:
    """[P], of one of the stored temperatures."""
    return None if row.log_tails is None else row.log_tails[place]


def text_bytes(rows: Sequence[ExampleRows | None], width: int) -> TextBytes:
    """Which of the batch's tokens spell the responses, and how many bytes the responses have.

    A special token has the end 0 (its offsets are nothing), so a label with a positive end is text. A token that
    straddles the response's start counts whole.
    """
    tokens = np.zeros((len(rows), width), dtype=bool)
    num_bytes = np.zeros(len(rows), dtype=np.int64)
    for slot, row in enumerate(rows):
        if row is None:
            continue
        ends = row.alignment.student_ends
        for start, stop in row.alignment.label_spans.tolist():
            tokens[slot, start:stop] = ends[start:stop] > 0
        num_bytes[slot] = response_bytes(row)
    return TextBytes(torch.from_numpy(tokens), torch.from_numpy(num_bytes))


def response_bytes(row: ExampleRows) -> int:
    """UTF-8 bytes of the responses as the student reads them.

    Where the student's own template changed the text, the ranges are not stored for it; then the stretch its label
    tokens cover is what they spell.
    """
    alignment = row.alignment
    if alignment.student_text is None:
        corpus = corpus_of(row)
        return sum(
            len(read_part(corpus.text, start, stop, alignment.student_ends[first:last]).encode())
            for (start, stop), (first, last) in zip(
                corpus.response_ranges.tolist(), alignment.label_spans.tolist(), strict=True
            )
        )
    total = 0
    for start, stop in alignment.label_spans.tolist():
        ends = alignment.student_ends[start:stop]
        before = int(alignment.student_ends[:start].max(initial=0))
        total += len(alignment.student_text[before : int(ends.max(initial=0))].encode())
    return total


def read_part(text: str, start: int, stop: int, ends: np.ndarray) -> str:
    """What the student reads of the response text[start:stop]: all of it, or as far as its tokens go where it was cut.

    Spaces that no token covers at the end (WordPiece) are part of a response that was not cut.
    """
    reached = int(ends.max(initial=start))
    return text[start:stop] if not text[reached:stop].strip() else text[start:reached]


def span_tensors(
    spans: Sequence[np.ndarray], width: int, max_spans: int, staging: StagingBuffer, side: str
) -> tuple[Tensor, Tensor]:
    """Span tables [K_b, 2] of a batch as ([B, width] span of each token or -1, [B, K] last token of each span).

    A worked example: spans [[1, 3), [3, 4)] over 5 tokens -> ids -1 0 0 1 -1, last 2 3.
    """
    span_ids = staging.full(f"{side}_span_ids", (len(spans), width), -1, torch.int64)
    last = staging.full(f"{side}_span_last", (len(spans), max_spans), 0, torch.int64)
    counts = np.array([len(one) for one in spans], dtype=np.int64)
    if not counts.sum():
        return span_ids, last
    table = np.concatenate(spans).astype(np.int64)  # [sum K, 2]
    example = np.repeat(np.arange(len(spans)), counts)
    number = np.arange(len(table)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0..K_b-1 inside each example
    lengths = table[:, 1] - table[:, 0]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(example * width + table[:, 0], lengths) + within
    span_ids.view(-1).numpy()[place] = np.repeat(number, lengths)
    last.numpy()[example, number] = table[:, 1] - 1
    return span_ids, last


def pad_positions(
    values: Sequence[EncodedTensor | np.ndarray | None], width: int, staging: StagingBuffer, name: str
) -> Tensor:
    """[P_b, ...] arrays as one [B, width, ...] tensor of their own dtype, zeros behind each."""
    encoded = [one if one is None or isinstance(one, EncodedTensor) else as_encoded(one) for one in values]
    first = next(one for one in encoded if one is not None)
    if first.dtype == "ids":
        dtype = torch.int32
    else:
        dtype = TORCH_DTYPES[first.dtype]
    padded = staging.empty(name, (len(values), width, *first.shape[1:]), dtype)
    # numpy has no bfloat16: copy its bit pattern
    target = padded.view(torch.uint16).numpy() if dtype == torch.bfloat16 else padded.numpy()
    for slot, one in enumerate(encoded):
        count = 0 if one is None else len(one)
        if one is not None:
            target[slot, :count] = one.float32() if one.dtype == "int8" else one.array
        target[slot, count:] = 0
    return padded


def as_encoded(array: np.ndarray) -> EncodedTensor:
    """A plain array under the name of its dtype."""
    return EncodedTensor({"float32": "fp32", "float16": "fp16", "int32": "ids"}[array.dtype.name], array)


def positions_of(row: ExampleRows, *, by_span: bool) -> np.ndarray:
    """[P] token index of each cached row; of a span's row, its last token's."""
    if by_span:
        return row.alignment.teacher_spans[:, 1] - 1
    return response_positions(corpus_of(row).teacher_response_spans)


def rows_of_spans(row: ExampleRows, positions: np.ndarray, *, by_span: bool) -> np.ndarray:
    """The teacher's spans [K, 2] in rows of the cache instead of tokens.

    Raises:
        ShardError: If a span's token is not among the cached positions.
    """
    spans = row.alignment.teacher_spans
    if not len(spans):
        return np.zeros((0, 2), np.int64)
    if by_span:
        return np.stack([np.arange(len(spans)), np.arange(1, len(spans) + 1)], axis=1)
    start = np.searchsorted(positions, spans[:, 0])
    last = np.searchsorted(positions, spans[:, 1] - 1)
    inside = (last < len(positions)) & (last - start == spans[:, 1] - 1 - spans[:, 0])
    if not inside.all() or (positions[start] != spans[:, 0]).any() or (positions[last] != spans[:, 1] - 1).any():
        raise ShardError(
            f"example {row.alignment.id}: a span lies outside the cached positions; run `sra-data verify` on the shards"
        )
    return np.stack([start, last + 1], axis=1)


def following_ids(corpus: CorpusRow, positions: np.ndarray) -> np.ndarray:
    """[P] int64, the teacher's id behind each position; -1 behind the last token."""
    padded = np.append(corpus.teacher_ids.astype(np.int64), -1)
    return padded[positions.astype(np.int64) + 1]


def example_id(row: ExampleRows | None) -> str:
    """The id, or that there is none."""
    return NO_EXAMPLE if row is None else row.alignment.id


def filler(row: ExampleRows) -> ExampleRows:
    """`row` as something that weighs nothing: one token, no label, no span, no position; the widths stay."""
    nothing = np.zeros((0, 2), np.int32)
    alignment = replace(
        row.alignment,
        id=NO_EXAMPLE,
        student_ids=row.alignment.student_ids[:1],
        student_ends=row.alignment.student_ends[:1],
        label_spans=nothing,
        student_spans=nothing,
        teacher_spans=nothing,
    )
    corpus = (
        None if row.corpus is None else replace(row.corpus, response_ranges=nothing, teacher_response_spans=nothing)
    )
    return ExampleRows(alignment, corpus, None if row.teacher is None else without_positions(row.teacher), weight=0.0)


def without_positions(row: TeacherRow) -> TeacherRow:
    """A teacher's row with every tensor cut to no position at all."""
    return replace(
        row,
        hidden={layer: states[:0] for layer, states in row.hidden.items()},
        attention={layer: weights[:0] for layer, weights in row.attention.items()},
        top_k_ids=None if row.top_k_ids is None else row.top_k_ids[:0],
        top_k_values=None if row.top_k_values is None else row.top_k_values[:0],
        log_tails=None if row.log_tails is None else row.log_tails[:, :0],
        next_log_prob=None if row.next_log_prob is None else row.next_log_prob[:0],
    )


def corpus_of(row: ExampleRows) -> CorpusRow:
    """The corpus row, which the reader was asked for."""
    assert row.corpus is not None
    return row.corpus


def teacher_of(row: ExampleRows) -> TeacherRow:
    """The teacher's row, which the reader was asked for."""
    assert row.teacher is not None
    return row.teacher


def present(value: EncodedTensor | np.ndarray | None, what: str, row: ExampleRows) -> EncodedTensor | np.ndarray:
    """`value`, or the error that the cache lacks it."""
    if value is None:
        raise ShardError(f"example {row.alignment.id}: the cache holds no {what}; run `sra-data cache-teacher` with it")
    return value
