"""Some rows on their way through the stage: as the user gave them, as one side reads them, and both as columns on disk.

A side's batch comes from its tokenizer or, where its part is on disk already, from there: the two are the same to
whoever aligns them. Rows that a side leaves out have no tokens and no responses in either.

B = rows, R = responses of a row, N = tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sra_data.corpus.chat import Rendered
from sra_data.corpus.examples import Row
from sra_data.corpus.tokenization import TokenizedBatch
from sra_data.shards.schema import CLOSES, OK, SPECIAL
from sra_data.shards.store import EncodedRows, PartColumns, corpus_columns, side_columns
from sra_data.spans.alignment import TokenOffsets
from sra_data.spans.ragged import Ragged
from sra_data.stages.align.plan import response_bytes, text_bytes

ROWS_PER_BATCH = 1024
TEXT_BYTES_PER_BATCH = 1_000_000
# What a tokenizer gets at once, of several units: freeing what one thread's tokenizer made waits for memory that
# another's is being given, so 3,000 texts by 1,500 cost a tenth less than by 750, and a sixth less than by 384.
ROWS_PER_CUT = 2048
TEXT_BYTES_PER_CUT = 2_000_000


@dataclass(frozen=True)
class Examples:
    """Neighbouring rows of one kind, plain or chats, with their splits.

    Attributes:
        first: their place within the unit.
        text_bytes: about how many bytes of text they are.
    """

    rows: list[Row]
    splits: list[str]
    first: int
    text_bytes: int

    @property
    def are_chats(self) -> bool:
        """Whether each side renders them by a template of its own."""
        return self.rows[0].messages is not None

    @cached_property
    def num_bytes(self) -> NDArray[np.int32]:
        """[B] UTF-8 bytes of the responses."""
        return np.array([response_bytes(row) for row in self.rows], dtype=np.int32)


@dataclass(frozen=True, eq=False)
class SideBatch:
    """Some rows as one side reads them.

    Attributes:
        texts: [B] what the characters count in.
        statuses: [B] "ok" or "skipped:<reason>".
        ids: [B] rows [N] int32.
        offsets: what each token covers.
        ranges: [B] rows [R, 2] int32, characters of the responses.
        turns: [B] rows [R] int32, which message each response is.
        response_spans: [B] rows [R, 2] int32, tokens; label_spans likewise.
        cut: how often what was cut or could not be used whole.
    """

    texts: list[str]
    statuses: list[str]
    ids: Ragged
    offsets: TokenOffsets
    ranges: Ragged
    turns: Ragged
    response_spans: Ragged
    label_spans: Ragged
    cut: Counter[str] = field(default_factory=Counter)

    @property
    def is_ok(self) -> NDArray[np.bool_]:
        """[B]."""
        return np.array([status == OK for status in self.statuses], dtype=bool)

    def rows(self, start: int, stop: int, plain_texts: list[str] | None) -> SideBatch:
        """Rows [start, stop) of a batch from disk; `plain_texts`: the texts of plain rows, which it does not hold."""
        offsets = self.offsets
        parts = (offsets.starts, offsets.ends, offsets.is_special, offsets.closes)
        return SideBatch(
            texts=self.texts[start:stop] if plain_texts is None else plain_texts,
            statuses=self.statuses[start:stop],
            ids=self.ids.slice(start, stop),
            offsets=TokenOffsets(*(part.slice(start, stop) for part in parts)),
            ranges=self.ranges.slice(start, stop),
            turns=self.turns.slice(start, stop),
            response_spans=self.response_spans.slice(start, stop),
            label_spans=self.label_spans.slice(start, stop),
        )

    @classmethod
    def of(cls, rendered: Rendered, tokens: TokenizedBatch) -> SideBatch:
        """What a renderer and a tokenizer said of some rows; the template's reason to skip goes before the other's."""
        statuses = [
            first if first != OK else second for first, second in zip(rendered.statuses, tokens.status, strict=True)
        ]
        keep = np.array([status == OK for status in statuses], dtype=bool)
        offsets = tokens.offsets
        parts = (offsets.starts, offsets.ends, offsets.is_special, offsets.closes)
        return cls(
            texts=rendered.texts,
            statuses=statuses,
            ids=only(tokens.ids, keep),
            offsets=TokenOffsets(*(only(part, keep) for part in parts)),
            ranges=only(Ragged.from_list(rendered.ranges, np.int32, (2,)), keep),
            turns=only(Ragged.from_list(rendered.turns, np.int32), keep),
            response_spans=only(tokens.response_spans, keep),
            label_spans=only(tokens.label_spans, keep),
            cut=tokens.counts,
        )

    @classmethod
    def from_part(cls, part: PartColumns) -> SideBatch:
        """The rows of a side's part on disk; the texts of plain rows are empty, `rows` puts them in."""
        columns = {name: Ragged(values, splits) for name, (values, splits) in part.numbers.items()}
        kinds = columns["kinds"]
        return cls(
            texts=[text or "" for text in part.texts["text"]],
            statuses=part.keys["status"],
            ids=columns["ids"],
            offsets=TokenOffsets(
                columns["starts"],
                columns["ends"],
                kinds.with_values(kinds.values == SPECIAL),
                kinds.with_values(kinds.values == CLOSES),
            ),
            ranges=columns["response_ranges"],
            turns=columns["response_turns"],
            response_spans=columns["response_spans"],
            label_spans=columns["label_spans"],
        )

    def columns(self, examples: Examples) -> EncodedRows:
        """The rows as a side's part stores them."""
        offsets = self.offsets
        kinds = offsets.closes.values.astype(np.uint8) * CLOSES
        kinds[offsets.is_special.values] = SPECIAL
        texts = self.texts if examples.are_chats else [None] * len(self.texts)
        return side_columns(
            ids=[row.id for row in examples.rows],
            statuses=self.statuses,
            token_ids=self.ids,
            starts=offsets.starts,
            ends=offsets.ends,
            kinds=offsets.closes.with_values(kinds),
            response_ranges=self.ranges,
            response_turns=self.turns,
            response_spans=self.response_spans,
            label_spans=self.label_spans,
            texts=texts,
        )


def example_columns(examples: Examples) -> EncodedRows:
    """Rows as the corpus stores them."""
    rows = examples.rows
    return corpus_columns(
        ids=[row.id for row in rows],
        splits=examples.splits,
        num_bytes=examples.num_bytes,
        prompts=[row.prompt for row in rows],
        responses=[row.response for row in rows],
        chats=[None if row.messages is None else chat_text(row) for row in rows],
    )


def chat_text(row: Row) -> str:
    """A chat as the corpus keeps it: JSON of its messages and tools."""
    return json.dumps({"messages": row.messages, "tools": row.tools}, ensure_ascii=False, default=str)


def rows_of_part(part: PartColumns, *, where: str, go_on: Collection[str] = ()) -> list[tuple[Row, str]]:
    """The rows of a part of the corpus, with their splits; `go_on`: ids of those that are not at their text's end."""
    columns = (part.keys["id"], part.keys["split"], *(part.texts[name] for name in ("prompt", "response", "chat")))
    found = []
    for name, split, prompt, response, chat in zip(*columns, strict=True):
        said = {"messages": None, "tools": None} if chat is None else json.loads(chat)
        place = f"{where}, example {name}"
        row = Row(name, place, prompt, response, said["messages"], split, said["tools"], name in go_on)
        found.append((row, split))
    return found


def cut_batches(rows: Iterable[tuple[Row, str]]) -> Iterator[Examples]:
    """A unit's rows as batches: neighbours of one kind, bounded in number and text."""
    batch: list[tuple[Row, str]] = []
    size = done = 0

    def examples() -> Examples:
        return Examples([row for row, _ in batch], [split for _, split in batch], done, size)

    for row, split in rows:
        length = text_bytes(row)
        is_other_kind = bool(batch) and (batch[0][0].messages is None) != (row.messages is None)
        if batch and (len(batch) >= ROWS_PER_BATCH or size + length > TEXT_BYTES_PER_BATCH or is_other_kind):
            yield examples()
            done += len(batch)
            batch, size = [], 0
        batch.append((row, split))
        size += length
    if batch:
        yield examples()


def only(rows: Ragged, keep: NDArray[np.bool_]) -> Ragged:
    """The same rows, those not kept without values."""
    if keep.all():
        return rows
    return Ragged.from_lengths(rows.values[np.repeat(keep, rows.lengths)], rows.lengths * keep)
