"""One unit of `align`: some rows become one part of the corpus, of each side and of each alignment.

A unit is a pure function of its spec: rows are read again from their range (or from the corpus, where their part is
there), cut by every tokenizer whose part is missing, lined up and written, in batches whose borders follow from the
rows alone, so whoever runs a unit writes the same bytes. While one batch is lined up each tokenizer, in a thread of
its own, already cuts the next ones, of the next unit too (tokenizers let go of the interpreter), and while one unit is
written the next is lined up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from sra_data.corpus.chat import Rendered, Renderer
from sra_data.corpus.examples import Row
from sra_data.corpus.sources import Source, SourceRange
from sra_data.shards.images import StoredImages, load_images
from sra_data.shards.store import (
    TEXT_BYTES_PER_GROUP,
    EncodedRows,
    Receipt,
    Unit,
    cut_row_groups,
    is_done,
    read_part,
    write_columns,
)
from sra_data.stages.align.batches import (
    Examples,
    SideBatch,
    cut_batches,
    example_columns,
    rows_of_part,
)
from sra_data.stages.align.counting import count_side
from sra_data.stages.align.counts import PairCounts, SideCounts
from sra_data.stages.align.pairs import Pair, Side
from sra_data.stages.align.plan import split_of

BATCHES_AHEAD = 2


@dataclass
class AlignWorker:
    """Everything one process needs to do units.

    Attributes:
        shards: The folder; parts of it that are there are not made again.
        sources: The sources of `--data` and `--dev-data`; units name them by index.
        sides: The tokenizers, by the names of their folders.
        pairs: What is lined up.
        on_invalid: ``fail`` or ``skip``: bad rows, and texts whose tokens cannot be located.
        dev_share: Share of the prompts that become the development set.
    """

    shards: Path
    sources: Sequence[Source]
    sides: Mapping[str, Side]
    pairs: Sequence[Pair]
    on_invalid: str
    dev_share: float
    # Kept from unit to unit, made where they are used: a worker travels to its process without them.
    _renderers: dict[str, Renderer] = field(init=False, default_factory=dict)
    _stored: dict[str, tuple[int, SideBatch]] = field(init=False, default_factory=dict)
    _images: dict[str, StoredImages] = field(init=False, default_factory=dict)

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, int]]:
        """Do units one after the other; yields each, once it is on disk, with the tokens that were cut for it."""
        with threads(*self.sides) as cutters, threads("corpus", *self.sides, *self._pair_names) as writers:
            waiting: tuple[Unit, int, list[Future[Receipt]]] | None = None
            for unit, batches in groupby(self._cut(units, cutters), key=itemgetter(0)):
                made = UnitParts(self.wanted(unit))
                for _, examples, sides in batches:
                    self._add(made, examples, sides)
                assert made.num_rows == unit.stop - unit.start, "the scan and the unit read the same rows"
                if waiting is not None:
                    yield _finished(*waiting)
                waiting = unit, made.num_tokens, self._write(unit, made, writers)
            if waiting is not None:
                yield _finished(*waiting)

    @property
    def _pair_names(self) -> list[str]:
        return [pair.name for pair in self.pairs]

    def wanted(self, unit: Unit) -> Wanted:
        """What of a unit is not on disk yet."""
        return Wanted(
            corpus=not is_done(self.shards / "corpus", unit),
            sides=tuple(name for name in self.sides if not is_done(self.shards / "sides" / name, unit)),
            pairs=tuple(pair for pair in self.pairs if not is_done(self.shards / "alignments" / pair.name, unit)),
        )

    # -------------------------------------------------------------------------------------------------- reading rows

    def _cut(
        self, units: Sequence[Unit], cutters: Mapping[str, ThreadPoolExecutor]
    ) -> Iterator[tuple[Unit, Examples, dict[str, SideBatch]]]:
        """Every batch as all the sides that it takes read it, in order, a few batches ahead of who asks."""
        ahead: deque[tuple[Unit, Examples, dict[str, Future[SideBatch]]]] = deque()
        for unit in units:
            wanted = self.wanted(unit)
            for examples in cut_batches(self._rows(unit, wanted)):
                # A plain row is the same text for all sides; a chat is rendered by each side's own template.
                plain = None if examples.are_chats else self._renderer(next(iter(self.sides))).render(examples.rows)
                futures = {
                    name: cutters[name].submit(self._side, name, unit, examples, plain, name in wanted.sides)
                    for name in wanted.needed_sides
                }
                ahead.append((unit, examples, futures))
                if len(ahead) > BATCHES_AHEAD:
                    yield _cut_batch(*ahead.popleft())
        while ahead:
            yield _cut_batch(*ahead.popleft())

    def _rows(self, unit: Unit, wanted: Wanted) -> list[tuple[Row, str]]:
        """A unit's rows with their splits: from the corpus where their part is there, else from their range."""
        if not wanted.corpus:
            folder = self.shards / "corpus"
            return rows_of_part(read_part(folder, unit), where=f"{folder / unit.name}")
        hint = dict(unit.hint)
        source = self.sources[hint.pop("source")]
        located = source.read(SourceRange.from_json(hint), on_invalid=self.on_invalid)
        kept = ((item.row, split_of(item.row, self.dev_share)) for item in located)
        return [(row, split) for row, split in kept if split != "test"]

    def _side(self, name: str, unit: Unit, examples: Examples, plain: Rendered | None, is_missing: bool) -> SideBatch:
        """A batch as one side reads it: cut now, or from the side's part; in the side's own thread."""
        if not is_missing:
            return self._stored_side(name, unit, examples, plain)
        side = self.sides[name]
        rendered = plain or self._renderer(name).render(examples.rows)
        tokens = side.tokenizer.encode(
            rendered.texts,
            response_ranges=rendered.ranges,
            is_chat=plain is None,
            max_length=side.max_length,
            overlong=side.overlong,
            names=[row.where for row in examples.rows],
            skip_unlocatable=self.on_invalid == "skip",
        )
        return SideBatch.of(rendered, tokens)

    def _renderer(self, name: str) -> Renderer:
        if name not in self._renderers:
            self._renderers[name] = Renderer(self.sides[name].tokenizer)
        return self._renderers[name]

    def _stored_side(self, name: str, unit: Unit, examples: Examples, plain: Rendered | None) -> SideBatch:
        """The rows of a batch from a side's part, which is read once."""
        if self._stored.get(name, (-1, None))[0] != unit.part:
            part = read_part(self.shards / "sides" / name, unit)
            self._stored[name] = unit.part, SideBatch.from_part(part)
        stop = examples.first + len(examples.rows)
        return self._stored[name][1].rows(examples.first, stop, None if plain is None else plain.texts)

    # ------------------------------------------------------------------------------------------------- making parts

    def _add(self, made: UnitParts, examples: Examples, sides: Mapping[str, SideBatch]) -> None:
        """One batch more of a unit."""
        made.num_rows += len(examples.rows)
        made.num_bytes.append(examples.num_bytes)
        if made.wanted.corpus:
            made.add("corpus", example_columns(examples))
        for name in made.wanted.sides:
            made.add(f"sides/{name}", sides[name].columns(examples))
            count_side(made.side_counts[name], sides[name])
        for pair in made.wanted.pairs:
            sides_of_pair = sides[pair.left], sides[pair.right]
            rows = pair.align(examples, *sides_of_pair, made.pair_counts[pair.name], self._images_of(pair))
            made.add(f"alignments/{pair.name}", rows)

    def _images_of(self, pair: Pair) -> StoredImages:
        """Where the pair's ids go among each other's, from its folder."""
        if pair.name not in self._images:
            self._images[pair.name] = load_images(self.shards / "alignments" / pair.name)
        return self._images[pair.name]

    def _write(self, unit: Unit, made: UnitParts, writers: Mapping[str, ThreadPoolExecutor]) -> list[Future[Receipt]]:
        """Begin to write the parts that are missing, each folder's in a thread of its own."""
        row_groups = cut_row_groups(np.concatenate(made.num_bytes).tolist(), most=TEXT_BYTES_PER_GROUP)
        notes = made.notes()
        return [
            writers[section.partition("/")[2] or section].submit(
                write_columns, self.shards / section, unit, rows, row_groups, notes=notes.get(section)
            )
            for section, rows in made.encoded.items()
        ]


@dataclass(frozen=True)
class Wanted:
    """Parts of one unit that are missing: of the corpus, of sides (by name), of alignments."""

    corpus: bool
    sides: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def needed_sides(self) -> list[str]:
        """Sides that are missing or that a missing alignment is made from."""
        return list(dict.fromkeys([*self.sides, *(name for pair in self.pairs for name in (pair.left, pair.right))]))

    def __bool__(self) -> bool:
        return self.corpus or bool(self.sides) or bool(self.pairs)


class UnitParts:
    """The missing parts of one unit, batch by batch, and what was counted.

    Attributes:
        wanted: which they are.
        encoded: section -> its rows.
        num_rows: read so far; `num_bytes` of their responses.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.encoded: dict[str, list[EncodedRows]] = {}
        self.side_counts = {name: SideCounts() for name in wanted.sides}
        self.pair_counts = {pair.name: PairCounts() for pair in wanted.pairs}
        self.num_rows = 0
        self.num_bytes: list[np.ndarray[Any, np.dtype[np.int32]]] = []

    def add(self, section: str, rows: EncodedRows) -> None:
        """Some rows more of a part."""
        self.encoded.setdefault(section, []).append(rows)

    @property
    def num_tokens(self) -> int:
        """Tokens that were cut."""
        return sum(counts.tokens for counts in self.side_counts.values())

    def notes(self) -> dict[str, dict[str, Any]]:
        """What each receipt says."""
        sides = {f"sides/{name}": counts.to_json() for name, counts in self.side_counts.items()}
        return sides | {f"alignments/{name}": counts.to_json() for name, counts in self.pair_counts.items()}


@contextmanager
def threads(*names: str) -> Iterator[dict[str, ThreadPoolExecutor]]:
    """One thread for each name, doing what it is given in order; what they have not begun ends with the block."""
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)) for name in names
        }
        try:
            yield pools
        finally:
            for pool in pools.values():
                pool.shutdown(wait=False, cancel_futures=True)


def _finished(unit: Unit, num_tokens: int, writing: Sequence[Future[Receipt]]) -> tuple[Unit, int]:
    for part in writing:
        part.result()
    return unit, num_tokens


def _cut_batch(
    unit: Unit, examples: Examples, sides: Mapping[str, Future[SideBatch]]
) -> tuple[Unit, Examples, dict[str, SideBatch]]:
    return unit, examples, {name: batch.result() for name, batch in sides.items()}
