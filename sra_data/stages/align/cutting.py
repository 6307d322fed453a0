"""Rows on their way through the tokenizers, each in a thread of its own; those of several units at once.

How many texts a tokenizer gets at once changes how long it takes and nothing else: a text is cut by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sra_data.corpus.chat import Rendered, Renderer
from sra_data.shards.store import Unit, read_part
from sra_data.stages.align.batches import ROWS_PER_CUT, TEXT_BYTES_PER_CUT, Examples, SideBatch
from sra_data.stages.align.pairs import Side
from sra_data.stages.align.parts import BeingCut, CutSide, UnitParts

Threads = Mapping[str, ThreadPoolExecutor]  # one for each side, or for each folder


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of a unit; `plain`: the one text of each row that all sides read, None for chats."""

    made: UnitParts
    examples: Examples
    plain: Rendered | None


@dataclass
class Cutter:
    """What cuts rows.

    Attributes:
        shards: The folder; sides whose part is there are read from it.
        sides: The tokenizers, by the names of their folders.
        skip_unlocatable: Whether texts whose tokens cannot be located are skipped, or refused.
    """

    shards: Path
    sides: Mapping[str, Side]
    skip_unlocatable: bool
    _renderers: dict[str, Renderer] = field(init=False, default_factory=dict)
    _stored: dict[str, tuple[int, SideBatch]] = field(init=False, default_factory=dict)

    def begin(self, units: Sequence[UnitParts], threads: Threads) -> None:
        """Begin to cut the batches of some units; they are put into `UnitParts.cut`."""
        batches = [Batch(made, examples, self._plain(examples)) for made in units for examples in made.batches]
        for together in cut_together(batches):
            for name in dict.fromkeys(name for batch in together for name in batch.made.wanted.needed_sides):
                needed = [batch for batch in together if name in batch.made.wanted.needed_sides]
                missing = [batch for batch in needed if name in batch.made.wanted.sides]
                there = [batch for batch in needed if name not in batch.made.wanted.sides]
                for chosen, work in ((missing, self._cut), (there, self._read)):
                    if chosen:
                        future = threads[name].submit(work, name, chosen)
                        for index, batch in enumerate(chosen):
                            batch.made.cut.setdefault(name, []).append(BeingCut(future, index))

    def _plain(self, examples: Examples) -> Rendered | None:
        """A plain row is the same text for all sides; a chat is rendered by each side's own template."""
        return None if examples.are_chats else self._renderer(next(iter(self.sides))).render(examples.rows)

    def _cut(self, name: str, batches: Sequence[Batch]) -> list[CutSide]:
        """Batches of one kind, cut; in the side's own thread."""
        side = self.sides[name]
        rendered = [batch.plain or self._renderer(name).render(batch.examples.rows) for batch in batches]
        cut = side.tokenizer.encode_batches(
            rendered,
            is_chat=batches[0].examples.are_chats,
            max_length=side.max_length,
            overlong=side.overlong,
            names=[row.where for batch in batches for row in batch.examples.rows],
            skip_unlocatable=self.skip_unlocatable,
        )
        made = [SideBatch.of(*both) for both in zip(rendered, cut, strict=True)]
        return [CutSide(one, one.columns(batch.examples)) for one, batch in zip(made, batches, strict=True)]

    def _read(self, name: str, batches: Sequence[Batch]) -> list[CutSide]:
        """Batches from the side's parts on disk; in the side's own thread."""
        return [CutSide(self._rows_of_part(name, batch), None) for batch in batches]

    def _rows_of_part(self, name: str, batch: Batch) -> SideBatch:
        """The rows of a batch from a side's part, which is read once."""
        unit, examples, plain = batch.made.unit, batch.examples, batch.plain
        if self._stored.get(name, (-1, None))[0] != unit.part:
            self._stored[name] = unit.part, side_on_disk(self.shards, name, unit)
        stop = examples.first + len(examples.rows)
        return self._stored[name][1].rows(examples.first, stop, None if plain is None else plain.texts)

    def _renderer(self, name: str) -> Renderer:
        if name not in self._renderers:
            self._renderers[name] = Renderer(self.sides[name].tokenizer)
        return self._renderers[name]


def side_on_disk(shards: Path, name: str, unit: Unit) -> SideBatch:
    """All rows of a side's part."""
    return SideBatch.from_part(read_part(shards / "sides" / name, unit))


def cut_together(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Neighbours of one kind, as many as a tokenizer gets at once."""
    together: list[Batch] = []
    for batch in batches:
        examples = [*(one.examples for one in together), batch.examples]
        is_other_kind = examples[0].are_chats != examples[-1].are_chats
        if together and (is_other_kind or not may_be_cut_together(examples)):
            yield together
            together = []
        together.append(batch)
    if together:
        yield together


def may_be_cut_together(batches: Sequence[Examples]) -> bool:
    """Whether a tokenizer may get all of these at once."""
    rows, size = sum(len(one.rows) for one in batches), sum(one.text_bytes for one in batches)
    return rows <= ROWS_PER_CUT and size <= TEXT_BYTES_PER_CUT


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
