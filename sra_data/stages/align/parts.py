"""The missing parts of one unit, on their way from rows to disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from sra_data.shards.store import TEXT_BYTES_PER_GROUP, EncodedRows, Receipt, Unit, cut_row_groups
from sra_data.stages.align.batches import Examples, SideBatch
from sra_data.stages.align.pairs import Pair


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


@dataclass(frozen=True, eq=False)
class BeingCut:
    """A batch that is being cut together with others: which of those it is."""

    together: Future[list[CutSide]]
    index: int

    def result(self) -> CutSide:
        """Wait for it; raises what cutting raised."""
        return self.together.result()[self.index]


@dataclass(eq=False)
class UnitParts:
    """The missing parts of one unit.

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
    cut: dict[str, list[BeingCut]] = field(default_factory=dict)
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
