"""Sealing a folder: every receipt there, every row in its place, one root over the content, in the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.columns import FolderSchema
from sra_data.shards.index import Index, IndexRows, index_table, write_index
from sra_data.shards.manifest import (
    Manifest,
    Plan,
    Receipt,
    command_for,
    facts_digest,
    folder_root,
    missing_units,
    part_path,
    record,
    record_all,
    rows_root,
)
from sra_data.shards.part import PartFile, damaged, open_part, row_hashes
from sra_data.shards.receipts import read_metadata


@dataclass(frozen=True)
class Sealed:
    """What a sealed folder is: its root and its size; `notes` are the receipts' in order."""

    root: str
    num_parts: int
    num_rows: int
    num_bytes: int
    notes: list[dict[str, Any]] = field(default_factory=list)


def seal(shards: Path, section: str, facts: Mapping[str, Any] | None = None) -> Sealed:
    """Seal a folder: write its index and record its root in the manifest. Doing it again gives the same.

    Args:
        shards: the whole folder.
        section: its name; what it was made from is sealed first.
        facts: what else to record in the section, in the same write (counts, faithfulness).

    Raises:
        ShardError: If a part or file is missing or damaged, or rows do not match the corpus row by row.
    """
    sealed, values = _sealed(Manifest.load(shards), section)
    record(shards, section, **values, **(facts or {}))
    return sealed


def seal_all(shards: Path, sections: Sequence[str]) -> None:
    """`seal` several folders, each after those it was made from; the manifest hears of all in one write."""
    manifest, found = Manifest.load(shards), {}
    for section in sections:
        found[section] = _sealed(manifest, section)[1]
        manifest.update(section, found[section])
    record_all(shards, found)


def _sealed(manifest: Manifest, section: str) -> tuple[Sealed, dict[str, Any]]:
    """Write a folder's index; what it is, and what the manifest is to say."""
    shards = manifest.shards
    folder = shards / section
    plan = Plan.load(folder)
    missing = missing_units(folder, plan)
    if missing:
        raise ShardError(
            f"{folder}: {len(missing)} of {len(plan.units)} parts missing, the first {missing[0].name}; "
            f"{command_for(section, shards)}"
        )
    metadata = read_metadata(folder)
    files = {name: metadata.files[name].sha256 for name in plan.files}
    bases = {name: manifest.sealed(name) for name in plan.made_from}
    with ExitStack() as stack:
        known = {name: IndexRows(shards / name, sha256=facts["index_sha256"]) for name, facts in bases.items()}
        for rows in known.values():
            stack.callback(rows.close)
        parts = _Parts(folder, plan, metadata.receipts, known)
        index_sha256 = write_index(folder, parts.tables())
    values: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "root": folder_root(parts.rows_roots, files),
        "num_parts": len(plan.units),
        "num_rows": parts.num_rows,
        "num_bytes": parts.num_bytes + sum(metadata.files[name].bytes for name in files),
        "index_sha256": index_sha256,
        "granularity": parts.granularity,
    }
    if bases:
        values["made_from"] = {name: facts["root"] for name, facts in bases.items()}
    values["seal"] = {"facts": facts_digest(values), **metadata.seal}  # writing the manifest takes the other facts in
    return Sealed(values["root"], len(plan.units), parts.num_rows, values["num_bytes"], parts.notes), values


class _Parts:
    """The parts of a folder, read one after the other, and what adds up over them.

    Attributes:
        rows_roots: of each part, in order; `notes` likewise.
        num_rows: in all parts; `num_bytes` likewise.
        granularity: of the folder.
    """

    def __init__(
        self, folder: Path, plan: Plan, receipts: Mapping[int, Receipt], bases: Mapping[str, IndexRows]
    ) -> None:
        """`receipts`: of all parts; `bases`: the rows of what the folder was made from, which its own must match."""
        self.folder = folder
        self.plan = plan
        self.receipts = receipts
        self.bases = bases
        self.rows_roots: list[str] = []
        self.notes: list[dict[str, Any]] = []
        self.num_rows = 0
        self.num_bytes = 0
        self.granularity = ""

    def tables(self) -> Iterator[pa.Table]:
        """Every part's rows of the index, each part checked against its receipt, its rows against what it is made from.

        Raises:
            ShardError: At the first that does not fit.
        """
        schema: FolderSchema | None = None
        for unit in self.plan.units:
            receipt, path = self.receipts[unit.part], part_path(self.folder, unit.part)
            with open_part(self.folder, receipt, is_read_once=True) as part:
                if schema is not None and part.schema != schema:
                    raise damaged(path, "columns", f"not those of {part_path(self.folder, 0).name}")
                schema = part.schema
                keys, hashes = part_keys(part)
            check_root(schema, hashes, receipt, path)
            table = index_table(keys, hashes, receipt)
            self._match_bases(table, schema)
            self.rows_roots.append(receipt.rows_root)
            self.notes.append(receipt.notes)
            self.num_rows += receipt.rows
            self.num_bytes += receipt.bytes
            yield table
        if schema is None:
            raise ShardError(f"{self.folder}: a plan without any part; delete the folder and run the command again")
        for name, base in self.bases.items():
            if self.num_rows != base.num_rows:
                _refuse_count(self.folder, self.num_rows, base.num_rows, name)
        self.granularity = schema.granularity

    def _match_bases(self, table: pa.Table, schema: FolderSchema) -> None:
        """Check the next rows, as the index has them, against those of what the folder was made from."""
        for name, base in self.bases.items():
            known = base.take(table.num_rows)
            if known.num_rows != table.num_rows:
                _refuse_count(self.folder, self.plan.units[-1].stop, base.num_rows, name)
            for column in ("id", *_compared(schema.kind, schema.granularity, known.column_names)):
                had, got = known.column(column), table.column(column)
                if not got.equals(had):
                    row = next(row for row in range(len(had)) if had[row].as_py() != got[row].as_py())
                    found = had[row].as_py(), got[row].as_py()
                    _refuse_row(self.folder, self.num_rows + row, column, *found, name)


def part_keys(part: PartFile) -> tuple[pa.Table, NDArray[np.uint64]]:
    """A part's key columns and row hashes, without its values."""
    groups = range(len(part.row_groups))
    part.fetch(groups, list(part.schema.keys))
    keys = part.table(groups, list(part.schema.keys))
    hashes = np.concatenate([part.hashes(group) for group in groups])
    with part.naming("keys"):
        return keys, row_hashes(keys, hashes)


def check_root(schema: FolderSchema, hashes: NDArray[np.uint64], receipt: Receipt, path: Path) -> None:
    """Check the content of a part against its receipt.

    Raises:
        ShardError: If keys, hashes or column definitions are not those that were written.
    """
    if rows_root(schema.canonical(), hashes.tobytes()) != receipt.rows_root:
        raise damaged(path, "keys, hashes or column definitions", "not those the receipt was written for")


def compare_rows(base: Index, other: Index, *, where: Path, granularity: str, base_name: str = "corpus") -> None:
    """Check that a folder has the rows of what it was made from: ids, order, parts, and a teacher its side's positions.

    Where the teacher was cached by spans, its num_positions counts spans and is not compared.

    Raises:
        ShardError: Naming the first row that differs.
    """
    if len(base) != len(other):
        _refuse_count(where, len(other), len(base), base_name)
    if not base.ids.equals(other.ids):
        row = next(row for row in range(len(base)) if base.id_of(row) != other.id_of(row))
        _refuse_row(where, row, "id", base.id_of(row), other.id_of(row), base_name)
    for name in _compared(other.kind, granularity, list(base.numbers)):
        differs = np.flatnonzero(base.numbers[name] != other.numbers[name])
        if len(differs):
            row = int(differs[0])
            _refuse_row(where, row, name, base.numbers[name][row], other.numbers[name][row], base_name)


def _compared(kind: str, granularity: str, known: Sequence[str]) -> list[str]:
    """The number columns of an index that must be those of what it was made from."""
    positions = (kind, granularity) == ("teacher", "token") and "num_positions" in known
    return ["part", "num_positions"] if positions else ["part"]


def _refuse_count(where: Path, had: int, expected: int, base: str) -> None:
    raise ShardError(f"{where}: {had} rows, {base} has {expected}; delete the folder and make it again")


def _refuse_row(where: Path, row: int, name: str, had: Any, got: Any, base: str) -> None:
    raise ShardError(f"{where}: row {row}, {name}: {base} has {had}, this folder {got}; delete it and make it again")
