"""The hashes of a part's values, checked against the sealed index before anything is compared with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.columns import hash_rows
from sra_data.shards.index import Index
from sra_data.shards.part import DamagedPart, PartFile, damaged


class KnownHashes:
    """Of one part, by row groups, numbered in the folder.

    All of a part's are read and checked when the first is asked for, where the part is on this machine: they are a few
    bytes a row, and row group by row group, between values by the megabyte that drive code and numbers out of the
    processor's caches, it took three times as long. What is damaged is said when it is asked for.
    """

    def __init__(self, part: PartFile, number: int, index: Index, keys: Sequence[str], *, at_once: bool) -> None:
        """The part, its number, the folder's index and the names of its keys; `at_once`: whether all are read."""
        self._part, self._index, self._keys = part, index, keys
        self._groups = range(*np.searchsorted(index.part_of_group, [number, number + 1]).tolist()) if at_once else None
        self._hashes: dict[int, NDArray[np.uint64]] = {}
        self._damage: dict[int, DamagedPart] = {}

    def of(self, group: int) -> NDArray[np.uint64]:
        """The hashes of a row group's values: uint64 [rows, columns].

        Raises:
            ShardError: If they are damaged, with file and example id.
        """
        if group not in self._hashes and group not in self._damage:
            self._read([group] if self._groups is None else self._groups)
        if group in self._damage:
            raise self._damage[group]
        return self._hashes[group]

    def _read(self, groups: Iterable[int]) -> None:
        """Read and check some row groups that follow each other, one at least."""
        starts, read, rows = self._index.group_starts, [], []
        for group in groups:
            first, stop = int(starts[group]), int(starts[group + 1])
            try:
                found = self._part.hashes(int(self._index.row_group[first]))
                if len(found) != stop - first:
                    raise self._damaged(first, f"of {len(found)} rows, the sealed index has {stop - first}")
            except DamagedPart as damage:
                self._damage[group] = damage
                continue
            self._hashes[group] = found
            read.append(found)
            rows.append(np.arange(first, stop))
        if read:
            self._check(np.concatenate(rows), np.concatenate(read))

    def _check(self, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
        """Compare hashes [n, columns] of rows [n] with those of the index."""
        first, stop = int(rows[0]), int(rows[-1]) + 1
        keys = [[column[row - first] for row in rows.tolist()] for column in self._index.keys(self._keys, first, stop)]
        wrong = rows[hash_rows(keys, hashes) != self._index.row_hash[rows]]
        groups = np.searchsorted(self._index.group_starts, wrong, side="right") - 1
        for row, group in zip(wrong.tolist(), groups.tolist(), strict=True):
            self._damage.setdefault(group, self._damaged(row, "not those of the sealed index"))

    def _damaged(self, row: int, problem: str) -> DamagedPart:
        return damaged(self._part.path, f"example {self._index.id_of(row)}, hashes", problem)
