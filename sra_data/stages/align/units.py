"""One unit of `align`: some rows become one part of the corpus, of each side and of each alignment.

A unit is a pure function of its spec: rows are read again from their range (or from the corpus, where their part is
there), cut by every tokenizer whose part is missing, lined up and written, in batches whose borders follow from the
rows alone, so whoever runs a unit writes the same bytes. While one batch is lined up each tokenizer, in a thread of
its own, already cuts the next ones, of the next unit too (tokenizers let go of the interpreter). A part is written as
soon as its rows are whole: the corpus's before any is cut, a side's before it is lined up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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

Threads = Mapping[str, ThreadPoolExecutor]  # one for each side, or for each folder


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
        rows: All rows of the corpus with their splits, where the scan kept them.
    """

    shards: Path
    sources: Sequence[Source]
    sides: Mapping[str, Side]
    pairs: Sequence[Pair]
    on_invalid: str
    dev_share: float
    rows: Sequence[tuple[Row, str]] | None = None
    # Kept from unit to unit, made where they are used: a worker travels to its process without them.
    _renderers: dict[str, Renderer] = field(init=False, default_factory=dict)
    _stored: dict[str, tuple[int, SideBatch]] = field(init=False, default_factory=dict)
    _images: dict[str, StoredImages] = field(init=False, default_factory=dict)

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, int]]:
        """Do units one after the other; yields each, once it is on disk, with the tokens that were cut for it."""
        with threads(*self.sides) as cutters, threads("corpus", *self.sides, *self._pair_names) as writers:
            waiting: UnitParts | None = None
            for made in self._begun(units, cutters, writers):
                self._write_sides(made, writers)
                self._line_up(made, writers)
                if waiting is not None:
                    yield waiting.finished()
                waiting = made
            if waiting is not None:
                yield waiting.finished()

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

    def _begun(self, units: Sequence[Unit], cutters: Threads, writers: Threads) -> Iterator[UnitParts]:
        """Every unit with its rows read and on their way through the tokenizers, a few batches ahead of who asks."""
        ahead: deque[UnitParts] = deque()
        for unit in units:
            ahead.append(self._begin(unit, cutters, writers))
            while len(ahead) > 1 and sum(len(made.batches) for made in ahead) > BATCHES_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _begin(self, unit: Unit, cutters: Threads, writers: Threads) -> UnitParts:
        """Read a unit's rows, begin to cut them and to write them as a part of the corpus."""
        wanted = self.wanted(unit)
        made = UnitParts.of(unit, wanted, list(cut_batches(self._rows(unit, wanted))))
        for examples in made.batches:
            # A plain row is the same text for all sides; a chat is rendered by each side's own template.
            plain = None if examples.are_chats else self._renderer(next(iter(self.sides))).render(examples.rows)
            for name in wanted.needed_sides:
                cut = cutters[name].submit(self._side, name, unit, examples, plain, name in wanted.sides)
                made.cut.setdefault(name, []).append(cut)
        if wanted.corpus:
            self._write(made, "corpus", [example_columns(examples) for examples in made.batches], writers)
        return made

    def _rows(self, unit: Unit, wanted: Wanted) -> list[tuple[Row, str]]:
        """A unit's rows with their splits: from the corpus if their part is there, the scan, or their range."""
        if not wanted.corpus:
            folder = self.shards / "corpus"
            return rows_of_part(read_part(folder, unit), where=f"{folder / unit.name}")
        if self.rows is not None:
            return list(self.rows[unit.start : unit.stop])
        hint = dict(unit.hint)
        source = self.sources[hint.pop("source")]
        located = source.read(SourceRange.from_json(hint), on_invalid=self.on_invalid)
        kept = ((item.row, split_of(item.row, self.dev_share)) for item in located)
        return [(row, split) for row, split in kept if split != "test"]

    def _side(self, name: str, unit: Unit, examples: Examples, plain: Rendered | None, is_missing: bool) -> CutSide:
        """A batch as one side reads it: cut now, or from the side's part; in the side's own thread."""
        if not is_missing:
            return CutSide(self._stored_side(name, unit, examples, plain), None)
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
        batch = SideBatch.of(rendered, tokens)
        return CutSide(batch, batch.columns(examples))

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

    def _write_sides(self, made: UnitParts, writers: Threads) -> None:
        """Begin to write the sides that are missing, each when all of its batches are cut."""
        for name in made.wanted.sides:
            counts, rows = SideCounts(), []
            for side in made.cut_by(name):
                count_side(counts, side.batch)
                rows.append(side.stored())
            made.num_tokens += counts.tokens
            self._write(made, f"sides/{name}", rows, writers, counts.to_json())

    def _line_up(self, made: UnitParts, writers: Threads) -> None:
        """Begin to write the alignments that are missing."""
        for pair in made.wanted.pairs:
            counts, images, rows = PairCounts(), self._images_of(pair), []
            for examples, left, right in zip(
                made.batches, made.cut_by(pair.left), made.cut_by(pair.right), strict=True
            ):
                rows.append(pair.align(examples, left.batch, right.batch, counts, images))
            self._write(made, f"alignments/{pair.name}", rows, writers, counts.to_json())

    def _images_of(self, pair: Pair) -> StoredImages:
        """Where the pair's ids go among each other's, from its folder."""
        if pair.name not in self._images:
            self._images[pair.name] = load_images(self.shards / "alignments" / pair.name)
        return self._images[pair.name]

    def _write(
        self,
        made: UnitParts,
        section: str,
        rows: Sequence[EncodedRows],
        writers: Threads,
        notes: dict[str, Any] | None = None,
    ) -> None:
        """Begin to write a part, in its folder's own thread."""
        writer = writers[section.partition("/")[2] or section]
        folder = self.shards / section
        made.writing.append(writer.submit(write_columns, folder, made.unit, rows, made.row_groups, notes=notes))


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


@dataclass(frozen=True, eq=False)
class CutSide:
    """A batch as one side reads it; `new`: as its part stores it, None where the part is there already."""

    batch: SideBatch
    new: EncodedRows | None

    def stored(self) -> EncodedRows:
        """The rows of a part that is missing."""
        assert self.new is not None, "the part is there"
        return self.new


@dataclass(eq=False)
class UnitParts:
    """The missing parts of one unit, on their way to disk.

    Attributes:
        unit: which.
        wanted: what of it is missing.
        batches: its rows.
        row_groups: rows of each row group, the same in all folders.
        cut: the batches as each side reads them, being cut.
        num_tokens: that were cut.
        writing: the parts that are being written.
    """

    unit: Unit
    wanted: Wanted
    batches: list[Examples]
    row_groups: list[int]
    cut: dict[str, list[Future[CutSide]]] = field(default_factory=dict)
    num_tokens: int = 0
    writing: list[Future[Receipt]] = field(default_factory=list)

    @classmethod
    def of(cls, unit: Unit, wanted: Wanted, batches: list[Examples]) -> UnitParts:
        """Begin with a unit whose rows have been read."""
        num_bytes = np.concatenate([examples.num_bytes for examples in batches])
        assert len(num_bytes) == unit.stop - unit.start, "the scan and the unit read the same rows"
        return cls(unit, wanted, batches, cut_row_groups(num_bytes.tolist(), most=TEXT_BYTES_PER_GROUP))

    def cut_by(self, side: str) -> Iterator[CutSide]:
        """The batches as a side reads them; waits for each."""
        return (batch.result() for batch in self.cut[side])

    def finished(self) -> tuple[Unit, int]:
        """Wait until all is on disk; nothing that was cut is needed any more."""
        for part in self.writing:
            part.result()
        return self.unit, self.num_tokens


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
