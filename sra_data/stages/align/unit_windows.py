"""Windows on their way through a scan and into the hints of units, and the rows that they are when units are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sra_data.corpus.examples import Row
from sra_data.corpus.windows import Cuts, Window, window_id, window_rows
from sra_data.shards.store import Unit

FACT = "windows"  # what the corpus's section says of them; a unit's hint has them under the same name

CutsOf = Callable[[Row], Cuts | None]


@dataclass
class Windowing:
    """What is done with long texts while a corpus is scanned.

    Attributes:
        cuts_of: The windows of a row; None: it stays as it is.
        overlap: Tokens before a stretch.
        texts: How many were cut; windows: into how many.
    """

    cuts_of: CutsOf
    overlap: int
    texts: int = 0
    windows: int = 0

    def of(self, row: Row) -> Cuts | None:
        """`cuts_of`, counted."""
        cuts = self.cuts_of(row)
        if cuts is not None and cuts.windows:
            self.texts += 1
            self.windows += len(cuts.windows)
        return cuts

    @property
    def facts(self) -> dict[str, int]:
        """For the manifest and the summary."""
        return {"overlap": self.overlap, "texts": self.texts, "windows": self.windows}


@dataclass
class UnitWindows:
    """The windows of the units that are being cut, on their way into their hints."""

    waiting: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, row_id: str, length: int, window: Window) -> None:
        """Take the next window of the unit being filled."""
        kept = self.waiting.setdefault(row_id, Cuts(length, ()).to_json())
        kept[1] += Cuts(length, (window,)).to_json()[1]

    def leave_out(self, row_id: str, length: int) -> None:
        """Take a row of which no window is a row."""
        self.waiting.setdefault(row_id, Cuts(length, ()).to_json())

    def into(self, hint: dict[str, Any]) -> dict[str, Any]:
        """A hint with what is waiting, which is then no longer."""
        windows, self.waiting = self.waiting, {}
        return {**hint, FACT: {**hint.get(FACT, {}), **windows}} if windows else hint


def windows_of(unit: Unit) -> Iterable[tuple[str, Cuts]]:
    """Rows of which a unit holds windows, and which; none where it is left out."""
    hint = unit.hint if isinstance(unit.hint, Mapping) else {}
    return ((row_id, Cuts.from_json(value)) for row_id, value in hint.get(FACT, {}).items())


def cut_rows(row: Row, windows: Mapping[str, Cuts]) -> list[Row]:
    """The rows that a row of the data is in a unit with these windows."""
    cuts = windows.get(row.id)
    return [row] if cuts is None else window_rows(row, cuts)


def that_go_on(windows: Mapping[str, Cuts]) -> set[str]:
    """Ids of the windows that do not end with their text."""
    return {
        window_id(row_id, one) for row_id, cuts in windows.items() for one in cuts.windows if one.stop < cuts.length
    }
