"""Which captured row holds what is asked: by token ids alone, every one of them.

A teacher is causal: what it says at position p depends on the ids 0 .. p and on nothing behind them. So a captured row
serves an example whose ids up to the last position that is kept are the captured row's first ids, whatever follows
(another end of sequence, a padding token, more text). Equal ids are the proof; no text is decoded or compared.

Captures are large, so nothing of them stays in memory but a number a row: an example is known by a hash of the ids it
needs, and the hashes of ALL prefixes of a captured row come from one running sum. Rows that a hash finds are compared
id by id where they are read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sra_data.captures.files import CapturedRow

NOT_THERE, CUT = -1, -2  # no captured row begins so; one does, but says nothing at the last position
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def prefix_hashes(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """[N] a hash of every prefix ids[:1], ids[:2], ...: the running sum of a mixture of each id and its place."""
    places = np.arange(1, len(ids) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mixed(ids.astype(np.uint64) + _mixed(places * _ODD))
        found: NDArray[np.uint64] = np.cumsum(mixed, dtype=np.uint64)
    return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a number spread over all of its bits (splitmix64's last steps)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


class Matches:
    """Examples that are asked for, and the captured row that holds each.

    Attributes:
        num_captured: rows of the capture that were looked at.
    """

    def __init__(self, asked: NDArray[np.uint64]) -> None:
        """`asked`: hashes of the ids that examples need, in any order."""
        self._asked = np.unique(asked)
        self._found = np.full(len(self._asked), NOT_THERE, np.int64)
        self.num_captured = 0

    def look_at(self, rows: Iterable[CapturedRow]) -> None:
        """Go through the capture; of several rows that hold an example the first is taken."""
        for row in rows:
            self.num_captured += 1
            hashes = prefix_hashes(row.ids)
            places = np.searchsorted(self._asked, hashes)
            places[places == len(self._asked)] = 0
            hits = np.flatnonzero(self._asked[places] == hashes) if len(self._asked) else ()
            for length in hits:  # of ids before it; the value is at this position
                place = places[length]
                if self._found[place] < 0:
                    self._found[place] = row.number if length < row.num_values else CUT

    def row_of(self, needed: NDArray[np.integer]) -> int:
        """The captured row for an example that needs these ids; `NOT_THERE` or `CUT` where none holds it."""
        return int(self._found[np.searchsorted(self._asked, prefix_hashes(needed)[-1])])

    def rows_of(self, asked: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The same for several, by their hashes."""
        return self._found[np.searchsorted(self._asked, asked)]
