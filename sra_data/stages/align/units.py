"""One unit of `align`: some rows become one part of the corpus, of each side and of each alignment.

A unit is a pure function of its spec: rows are read again from their range (or from the corpus, where their part is
there), cut by every tokenizer whose part is missing, lined up and written, in batches whose borders follow from the
rows alone, so whoever runs a unit writes the same bytes. While one batch is lined up each tokenizer, in a thread of
its own, already cuts the next ones, of the next unit too (tokenizers let go of the interpreter). A part is written as
soon as its rows are whole: the corpus's before any is cut, a side's before it is lined up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra_data.corpus.examples import Row
from sra_data.corpus.sources import Source, SourceRange
from sra_data.engines import Advance
from sra_data.shards.images import StoredImages, load_images
from sra_data.shards.store import EncodedRows, Unit, is_done, read_part, write_columns
from sra_data.stages.align.batches import cut_batches, example_columns, rows_of_part
from sra_data.stages.align.counting import count_side
from sra_data.stages.align.counts import PairCounts, SideCounts
from sra_data.stages.align.cutting import Cutter, Threads, may_be_cut_together, threads
from sra_data.stages.align.pairs import Pair, Side
from sra_data.stages.align.parts import UnitParts, Wanted
from sra_data.stages.align.plan import split_of
from sra_data.stages.align.unit_windows import FACT, cut_rows, that_go_on, windows_of


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
    # Kept from unit to unit, made where it is used: a worker travels to its process without them.
    _images: dict[str, StoredImages] = field(init=False, default_factory=dict)

    def run(self, units: Iterable[Unit], advance: Advance) -> Iterator[tuple[Unit, int]]:
        """Do units one after the other; yields each, once it is on disk, with the tokens that were cut for it.

        The next unit is cut while one is written; `advance` is told the examples of each that is done.
        """
        with threads(*self.sides) as cutters, threads("corpus", *self.sides, *self._pair_names) as writers:
            waiting: UnitParts | None = None
            for made in self._begun(units, cutters, writers):
                self._write_sides(made, writers)
                self._line_up(made, writers)
                if waiting is not None:
                    yield self._finished(waiting, advance)
                waiting = made
            if waiting is not None:
                yield self._finished(waiting, advance)

    @staticmethod
    def _finished(made: UnitParts, advance: Advance) -> tuple[Unit, int]:
        unit, tokens = made.finished()
        advance(unit.stop - unit.start)
        return unit, tokens

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

    def _begun(self, units: Iterable[Unit], cutters: Threads, writers: Threads) -> Iterator[UnitParts]:
        """Every unit with its rows read and on their way through the tokenizers: a few units while others are cut."""
        cutter = Cutter(self.shards, self.sides, self.on_invalid == "skip")
        before: list[UnitParts] = []
        for together in self._read_together(units):
            cutter.begin(together, cutters)
            for made in together:
                if made.wanted.corpus:
                    columns = [example_columns(examples) for examples in made.batches]
                    self._write(made, "corpus", columns, writers)
            yield from before
            before = together
        yield from before

    def _read_together(self, units: Iterable[Unit]) -> Iterator[list[UnitParts]]:
        """The units with their rows: as many as tokenizers cut at once, one at least."""
        together: list[UnitParts] = []
        for unit in units:
            wanted = self.wanted(unit)
            made = UnitParts.of(unit, wanted, list(cut_batches(self._rows(unit, wanted))))
            if together and not may_be_cut_together([one for read in (*together, made) for one in read.batches]):
                yield together
                together = []
            together.append(made)
        if together:
            yield together

    def _rows(self, unit: Unit, wanted: Wanted) -> list[tuple[Row, str]]:
        """A unit's rows with their splits: from the corpus if their part is there, the scan, or their range."""
        windows = dict(windows_of(unit))
        if not wanted.corpus:
            folder = self.shards / "corpus"
            where = f"{folder / unit.name}"
            return rows_of_part(read_part(folder, unit), where=where, go_on=that_go_on(windows))
        if self.rows is not None:
            return list(self.rows[unit.start : unit.stop])
        hint = {name: value for name, value in unit.hint.items() if name != FACT}
        source = self.sources[hint.pop("source")]
        located = source.read(SourceRange.from_json(hint), on_invalid=self.on_invalid)
        kept = ((item.row, split_of(item.row, self.dev_share)) for item in located)
        return [(one, split) for row, split in kept if split != "test" for one in cut_rows(row, windows)]

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
