"""The scan: one pass over the user's rows that proves them readable and cuts the work into units.

Everything that can be wrong with the input is found here, before a folder exists. Kept in memory: 8 bytes a row (the
hash of its id) and one short entry a unit. Units are cut by bytes of text, so they depend on no tokenizer: the same
rows give the same units for every side, alignment and teacher, whoever does them.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from sra_data.corpus.examples import Row, dev_share_of
from sra_data.corpus.sources import Located, Position, Source, SourceRange
from sra_data.errors import SourceError
from sra_data.shards.store import Unit
from sra_data.terminal import Reporter

RESPONSE_BYTES_PER_PART = 262_144  # some 65,536 positions of a usual tokenizer
TEXT_BYTES_PER_PART = 16_000_000  # long prompts cost memory too
ROWS_PER_PART = 65_536
ROWS_BETWEEN_REPORTS = 512
KEPT_TEXT_BYTES = 16_000_000  # of rows kept from the scan: some 20,000 instructions with their answers


@dataclass(frozen=True)
class CorpusPlan:
    """What the scan found.

    Attributes:
        units: The parts, in order; a unit's hint is `{"source": index, **SourceRange.to_json()}`.
        fingerprint: Hex; changes with any id, split, prompt, response or message, and with their order.
        num_rows: Rows in all units.
        num_dev: Those of the development set.
        left_out: Rows that are in no unit, by reason, and lone surrogates replaced.
        rows: All rows with their splits, where they are few enough to keep; else None, and units read them again.
    """

    units: tuple[Unit, ...]
    fingerprint: str
    num_rows: int
    num_dev: int
    left_out: dict[str, int]
    rows: list[tuple[Row, str]] | None = field(default=None, repr=False)


def split_of(row: Row, dev_share: float) -> str:
    """``train``, ``dev`` or ``test``: what the row says, else by a hash of its prompt."""
    return row.split or ("dev" if dev_share_of(row) < dev_share else "train")


def scan(sources: Sequence[Source], *, on_invalid: str, dev_share: float, reporter: Reporter) -> CorpusPlan:
    """Read every row once.

    Args:
        sources: Training source, and the development source if there is one (its rows are numbered on).
        on_invalid: ``fail`` or ``skip``.
        dev_share: Share of the prompts that become the development set.
        reporter: Shows the rows as they are read.

    Raises:
        SourceError: An invalid row, two rows with one id, or nothing to align.
    """
    counts: Counter[str] = Counter()
    cutter = _Cutter()
    hasher = xxhash.xxh3_128()
    ids = array("Q")
    num_dev = 0
    kept = _Kept()
    with reporter.task("scan", unit="examples") as task:
        for index, source in enumerate(sources):
            number = source.first_number
            for located in source.scan(on_invalid=on_invalid, counts=counts):
                row, number = located.row, located.position.number + 1
                split = split_of(row, dev_share)
                if split == "test":
                    counts["test_split"] += 1
                    continue
                num_dev += split == "dev"
                ids.append(xxhash.xxh3_64_intdigest(row.id.encode()))
                hasher.update(_content(row, split))
                cutter.add(index, located)
                kept.add(row, split)
                if len(ids) % ROWS_BETWEEN_REPORTS == 0:
                    task.advance(ROWS_BETWEEN_REPORTS)
            cutter.cut()
            if index + 1 < len(sources):
                sources[index + 1].first_number = number
        task.advance(len(ids) % ROWS_BETWEEN_REPORTS)
    _refuse_equal_ids(ids, sources, on_invalid=on_invalid)
    if not ids:
        found = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
        raise SourceError(
            f"--data {sources[0].spec}: no example is left to align ({found}; rows marked test are never trained on); "
            "give data with train rows"
        )
    left_out = dict(sorted(counts.items()))
    return CorpusPlan(tuple(cutter.units), hasher.hexdigest(), len(ids), num_dev, left_out, kept.rows)


def _content(row: Row, split: str) -> bytes:
    """Everything of a row that the shards depend on, unambiguous."""
    if row.messages is None:
        prompt, response = row.prompt or "", row.response or ""
        lengths = f"{len(row.id)},{len(split)},{len(prompt)},{len(response)}"
        return f"{lengths}\n{row.id}{split}{prompt}{response}".encode()
    said = json.dumps([row.messages, row.tools], ensure_ascii=False, sort_keys=True, default=str)
    return f"{len(row.id)},{len(split)},{len(said)}\n{row.id}{split}{said}".encode()


def response_bytes(row: Row) -> int:
    """UTF-8 bytes of the responses as the user wrote them."""
    if row.messages is None:
        return num_utf8_bytes(row.response or "")
    return sum(num_utf8_bytes(message["content"]) for message in row.messages if message["role"] == "assistant")


def num_utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def text_bytes(row: Row) -> int:
    """About how many bytes of text a row is."""
    if row.messages is None:
        return len(row.prompt or "") + len(row.response or "")
    return sum(len(message["content"]) for message in row.messages)


@dataclass
class _Kept:
    """Rows in memory until they are too many; then none."""

    rows: list[tuple[Row, str]] | None = field(default_factory=list)
    text_bytes: int = 0

    def add(self, row: Row, split: str) -> None:
        """Take the next row."""
        if self.rows is not None:
            self.rows.append((row, split))
            self.text_bytes += text_bytes(row)
            if self.text_bytes > KEPT_TEXT_BYTES:
                self.rows = None


@dataclass
class _Cutter:
    """Cuts rows into units: as many neighbours as fit; a row that alone is more stands alone."""

    units: list[Unit] = field(default_factory=list)
    # The unit being filled.
    first: tuple[int, Position] | None = None
    last_number: int = 0
    rows: int = 0
    response_bytes: int = 0
    text_bytes: int = 0

    def add(self, source: int, located: Located) -> None:
        """Take the next row."""
        size, text = response_bytes(located.row), text_bytes(located.row)
        is_full = (
            self.response_bytes + size > RESPONSE_BYTES_PER_PART
            or self.text_bytes + text > TEXT_BYTES_PER_PART
            or self.rows >= ROWS_PER_PART
        )
        if self.first is not None and is_full:
            self.cut()
        self.first = self.first or (source, located.position)
        self.last_number = located.position.number
        self.rows += 1
        self.response_bytes += size
        self.text_bytes += text

    def cut(self) -> None:
        """End the current unit (a unit never reaches over two sources)."""
        if self.first is None:
            return
        source, position = self.first
        start = self.units[-1].stop if self.units else 0
        hint = {"source": source, **SourceRange(position, self.last_number + 1).to_json()}
        self.units.append(Unit(len(self.units), start, start + self.rows, hint))
        self.first, self.rows, self.response_bytes, self.text_bytes = None, 0, 0, 0


def _refuse_equal_ids(ids: array[int], sources: Sequence[Source], *, on_invalid: str) -> None:
    """Raise if two rows have one id; equal hashes alone are not enough, so the rows are looked up again."""
    hashes = np.sort(np.frombuffer(ids, dtype=np.uint64)) if ids else np.zeros(0, dtype=np.uint64)
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for source in sources:
        for located in source.scan(on_invalid=on_invalid):
            row = located.row
            if row.split == "test" or xxhash.xxh3_64_intdigest(row.id.encode()) not in suspects:
                continue
            if row.id in seen:
                raise SourceError(
                    f"{row.where}: the id {row.id!r} was used before at {seen[row.id]}; give every row its own id, or "
                    "number the rows with --columns id="
                )
            seen[row.id] = row.where
