"""One teacher's part of a batch: its pages padded, and the spans it shares with the student.

Stored bits become tensors without a detour: bfloat16 is copied as its uint16 pattern, float16 and float32 as they are,
and only int8 is decoded (to float32). Span tables become span ids in one vectorised pass over the whole batch.

An example that the teacher lacks has no position and no span here; what the student learns without it stays.

Legend: B examples, N student tokens, P teacher positions, K spans, S spans of the batch, D teacher width, k top-k
entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.columns import FolderSchema
from sra_data.shards.pairs import PairNearest
from sra_data.shards.schema import SideRow, TeacherRow
from sra_train.contract import AlignedRows, CacheNeeds, TeacherBatch
from sra_train.data.aligned_rows import aligned_rows
from sra_train.data.examples import ExampleParts, TeacherPart, name_of
from sra_train.data.index_rows import Positions, label_rows, span_rows
from sra_train.data.response_rows import response_rows
from sra_train.data.staging import StagingBuffer

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.float32,
    "float32": torch.float32,
    "sorted_fp16": torch.float16,
    "sorted_fp32": torch.float32,
    "packed_ids": torch.int32,
}
NO_SPANS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class PageForm:
    """What is read of one teacher, and how wide it is.

    Attributes:
        name: the teacher's folder.
        needs: of the method.
        columns: name on disk -> (shape of one position's value, dtype), of those that are read.
        temperatures: of the stored log tails, in their order.
        by_span: whether the pages' rows are the spans themselves, pooled before they were stored.
        end_of_sequence: the pair (student's id, teacher's id), where both have one.
        nearest: what the ids of both sides stand for, where rows are lined up by edit distance.
    """

    name: str
    needs: CacheNeeds
    columns: dict[str, tuple[tuple[int, ...], torch.dtype]]
    temperatures: tuple[float, ...] = ()
    by_span: bool = False
    end_of_sequence: tuple[int, int] | None = None
    nearest: PairNearest | None = None

    @classmethod
    def of(
        cls,
        name: str,
        needs: CacheNeeds,
        schema: FolderSchema,
        temperatures: Sequence[float],
        end_of_sequence: tuple[int, int] | None = None,
        nearest: PairNearest | None = None,
    ) -> PageForm:
        """The form of pages with the columns of `schema`, all of which that are needed exist."""
        columns = {}
        for wanted in column_names(needs):
            column = schema.column(wanted)
            assert column is not None, f"{name} has no column {wanted}"
            shape = tuple(size for size in column.shape if isinstance(size, int))
            columns[wanted] = (() if wanted == "log_tails" else shape, TORCH_DTYPES[column.codec])
        return cls(name, needs, columns, tuple(temperatures), schema.granularity == "span", end_of_sequence, nearest)


def column_names(needs: CacheNeeds) -> list[str]:
    """The names of the teacher's columns that are read."""
    names = [f"hidden.{layer}" for layer in needs.hidden] + [f"attention.{layer}" for layer in needs.attention]
    names += ["top_k.ids", "top_k.values", "log_tails"] if needs.top_k else []
    return names + (["next_log_prob"] if needs.next_log_prob else [])


def teacher_batch(
    examples: Sequence[ExampleParts | None], labels: Positions, *, place: int, form: PageForm, staging: StagingBuffer
) -> TeacherBatch:
    """What the teacher at `place` has to say about `examples`, whose student's labels are [B, N].

    Raises:
        ShardError: If an example's parts do not belong together.
    """
    return _TeacherSide(examples, place=place, form=form, staging=staging).batch(labels)


class _TeacherSide:
    """The working state of `teacher_batch`: positions and spans of every slot."""

    def __init__(
        self, examples: Sequence[ExampleParts | None], *, place: int, form: PageForm, staging: StagingBuffer
    ) -> None:
        self.form, self.staging, self.prefix, self.examples = form, staging, f"{place}.", examples
        self.names = [name_of(one) for one in examples]
        self.parts = [None if one is None else one.teachers[place] for one in examples]
        self.positions = [
            np.zeros(0, np.int32) if part is None else positions_of(part, by_span=form.by_span) for part in self.parts
        ]
        self.counts = np.array([len(one) for one in self.positions], dtype=np.int64)
        self.width = max(int(self.counts.max()), 1)

    def batch(self, labels: Positions) -> TeacherBatch:
        """All of it."""
        spans = [NO_SPANS if part is None else part.spans.student_spans for part in self.parts]
        rows = [
            NO_SPANS if part is None else rows_of_spans(part, positions, by_span=self.form.by_span)
            for part, positions in zip(self.parts, self.positions, strict=True)
        ]
        num_spans = np.array([len(one) for one in spans], dtype=np.int64)
        most = max(int(num_spans.max()), 1)  # an axis of length 0 has no maximum, in any method
        student_ids, student_last = span_tensors(spans, labels.shape[1], most, self.staging, f"{self.prefix}student")
        teacher_ids, teacher_last = span_tensors(rows, self.width, most, self.staging, f"{self.prefix}teacher")
        between = span_rows(
            f"{self.prefix}span_rows",
            student=spans,
            teacher=rows,
            labels=labels,
            staging=self.staging,
        )
        taken = between.student_positions.numpy()
        return TeacherBatch(
            name=self.form.name,
            has_teacher=self._copied("has_teacher", np.array([part is not None for part in self.parts])),
            span_mask=self._copied("span_mask", np.arange(most)[None] < num_spans[:, None]),
            student_span_ids=student_ids,
            student_span_last=student_last,
            teacher_span_ids=teacher_ids,
            teacher_span_last=teacher_last,
            position_mask=self._copied("position_mask", np.arange(self.width)[None] < self.counts[:, None]),
            span_rows=between,
            other_labels=label_rows(f"{self.prefix}other_labels", labels, self.staging, without=taken),
            aligned=self._aligned(labels),
            responses=response_rows(self.parts, self.positions, labels, self.staging, f"{self.prefix}responses")
            if self.form.needs.responses
            else None,
            **self._columns(),
            **(self._ids() if self.form.needs.ids else {}),
        )

    def _aligned(self, labels: Positions) -> AlignedRows | None:
        if self.form.needs.aligned is None:
            return None
        return aligned_rows(
            self.form.needs.aligned,
            self.examples,
            self.parts,
            cached=self.positions,
            end_of_sequence=self.form.end_of_sequence,
            nearest=self.form.nearest,
            labels=labels,
            staging=self.staging,
            name=f"{self.prefix}aligned",
        )

    def _columns(self) -> dict[str, Any]:
        """What was cached, as the method asked for it."""
        needs = self.form.needs
        found: dict[str, Any] = {
            "hidden": {layer: self._padded(f"hidden.{layer}") for layer in needs.hidden},
            "attention": {layer: self._padded(f"attention.{layer}") for layer in needs.attention},
        }
        if needs.top_k:
            found |= {"top_k_ids": self._padded("top_k.ids"), "top_k_values": self._padded("top_k.values")}
            found["log_tails"] = {
                one: self._padded("log_tails", self.form.temperatures.index(one)) for one in needs.temperatures
            }
        if needs.next_log_prob:
            found["next_log_prob"] = self._padded("next_log_prob")
        return found

    def _ids(self) -> dict[str, Any]:
        """The teacher's token at each position, and the one that follows; -1 where there is none."""
        shape = (len(self.parts), self.width)
        ids = self.staging.full(f"{self.prefix}ids", shape, -1, torch.int64)
        next_ids = self.staging.full(f"{self.prefix}next_ids", shape, -1, torch.int64)
        for slot, (part, positions) in enumerate(zip(self.parts, self.positions, strict=True)):
            if part is not None:
                at, following = ids_at(part.side, positions)
                ids[slot, : len(at)] = torch.from_numpy(at)
                next_ids[slot, : len(at)] = torch.from_numpy(following)
        return {"ids": ids, "next_ids": next_ids}

    def _padded(self, name: str, index: int | None = None) -> Tensor:
        """One column as [B, P, ...], zeros behind each example; of the log tails, those at `index`.

        Raises:
            ShardError: If an example's pages lack the column, or have another number of rows than positions.
        """
        shape, dtype = self.form.columns[name]
        label = name if index is None else f"{name}.{index}"
        padded = self.staging.empty(f"{self.prefix}{label}", (len(self.parts), self.width, *shape), dtype)
        # numpy has no bfloat16: copy its bit pattern
        target = padded.view(torch.uint16).numpy() if dtype == torch.bfloat16 else padded.numpy()
        for slot, (part, count) in enumerate(zip(self.parts, self.counts.tolist(), strict=True)):
            if part is not None:
                value = page_value(part.pages, name)
                value = value if index is None or value is None else value[index]
                target[slot, :count] = numbers(self._checked(slot, label, value, count))
            target[slot, count if part is not None else 0 :] = 0
        return padded

    def _checked(self, slot: int, label: str, value: Any, count: int) -> EncodedTensor | NDArray[Any]:
        if value is None:
            raise ShardError(
                f"example {self.names[slot]}: {self.form.name} holds no {label}; run `sra-data cache-teacher` with it"
            )
        if len(value) != count:
            raise ShardError(
                f"example {self.names[slot]}: {label} has {len(value)} rows for {count} positions;"
                " run `sra-data verify`"
            )
        return value

    def _copied(self, name: str, values: NDArray[Any]) -> Tensor:
        return self.staging.copied(f"{self.prefix}{name}", values)


def page_value(pages: TeacherRow, name: str) -> EncodedTensor | NDArray[Any] | None:
    """A column of a teacher's row by its name on disk; None where it was not read."""
    kind, _, layer = name.partition(".")
    if kind == "hidden":
        return pages.hidden.get(int(layer))
    if kind == "attention":
        return pages.attention.get(int(layer))
    return getattr(pages, name.replace(".", "_"))


def numbers(value: EncodedTensor | NDArray[Any]) -> NDArray[Any]:
    """The array to copy: stored bits as they are, int8 decoded."""
    if not isinstance(value, EncodedTensor):
        return value
    return value.float32() if value.dtype == "int8" else value.array


def span_tensors(
    spans: Sequence[NDArray[Any]], width: int, max_spans: int, staging: StagingBuffer, side: str
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


def positions_of(part: TeacherPart, *, by_span: bool) -> NDArray[np.int32]:
    """[P] token index of each cached row; of a span's row, its last token's."""
    return part.spans.teacher_spans[:, 1] - 1 if by_span else part.positions


def rows_of_spans(part: TeacherPart, positions: NDArray[np.int32], *, by_span: bool) -> NDArray[np.int64]:
    """The teacher's spans [K, 2] in rows of the cache instead of tokens.

    Raises:
        ShardError: If a span's token is not among the cached positions.
    """
    spans = part.spans.teacher_spans
    if not len(spans):
        return NO_SPANS
    if by_span:
        return np.stack([np.arange(len(spans)), np.arange(1, len(spans) + 1)], axis=1)
    start = np.searchsorted(positions, spans[:, 0])
    last = np.searchsorted(positions, spans[:, 1] - 1)
    inside = (last < len(positions)) & (last - start == spans[:, 1] - 1 - spans[:, 0])
    if not inside.all() or (positions[start] != spans[:, 0]).any() or (positions[last] != spans[:, 1] - 1).any():
        raise ShardError(
            f"example {part.spans.id}: a span lies outside the cached positions; run `sra-data verify` on the shards"
        )
    return np.stack([start, last + 1], axis=1)


def ids_at(side: SideRow, positions: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P] each: the id at every position, and the one behind it; -1 behind the last token."""
    padded = np.append(side.ids.astype(np.int64), -1)
    at = positions.astype(np.int64)
    return padded[at], padded[at + 1]
