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
from dataclasses import dataclass, field, replace

import numpy as np
import xxhash

from sra_data.corpus.examples import Row, dev_share_of
from sra_data.corpus.sources import Position, Source, SourceRange
from sra_data.corpus.windows import Cuts, Window, window_id, window_rows
from sra_data.errors import SourceError
from sra_data.shards.store import Unit
from sra_data.stages.align.unit_windows import UnitWindows, Windowing
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
        units: The parts, in order; a unit's hint is `{"source": index, **SourceRange.to_json()}`, and its windows.
        fingerprint: Hex; changes with any id, split, prompt, response or message, and with their order.
        num_rows: Rows in all units.
        num_dev: Those of the development set.
        left_out: Rows that are in no unit, by reason, and lone surrogates replaced.
        windows: Texts that were cut into windows, into how many, and their overlap; nothing where none is to be.
        rows: All rows with their splits, where they are few enough to keep; else None, and units read them again.
    """

    units: tuple[Unit, ...]
    fingerprint: str
    num_rows: int
    num_dev: int
    left_out: dict[str, int]
    windows: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[Row, str]] | None = field(default=None, repr=False)


def split_of(row: Row, dev_share: float) -> str:
    """``train``, ``dev`` or ``test``: what the row says, else by a hash of its prompt."""
    return row.split or ("dev" if dev_share_of(row) < dev_share else "train")


def scan(
    sources: Sequence[Source],
    *,
    on_invalid: str,
    dev_share: float,
    reporter: Reporter,
    windowing: Windowing | None = None,
) -> CorpusPlan:
    """Read every row once.

    Args:
        sources: Training source, and the development source if there is one (its rows are numbered on).
        on_invalid: ``fail`` or ``skip``.
        dev_share: Share of the prompts that become the development set.
        reporter: Shows the rows as they are read.
        windowing: How long texts are cut; None: they are not.

    Raises:
        SourceError: An invalid row, two rows with one id, or nothing to align.
    """
    counts: Counter[str] = Counter()
    found = _Found()
    ids = array("Q")
    with reporter.task("scan", unit="examples") as task:
        for index, source in enumerate(sources):
            number = source.first_number
            for located in source.scan(on_invalid=on_invalid, counts=counts):
                row, number = located.row, located.position.number + 1
                split = split_of(row, dev_share)
                if split == "test":
                    counts["test_split"] += 1
                    continue
                cuts = None if windowing is None else windowing.of(row)
                ids.extend(xxhash.xxh3_64_intdigest(name.encode()) for name in _names(row, cuts))
                if cuts is not None and not cuts.windows:
                    counts["prompt_too_long_for_windows"] += 1
                found.add(index, located.position, row, split, cuts)
                if found.num_read % ROWS_BETWEEN_REPORTS == 0:
                    task.advance(ROWS_BETWEEN_REPORTS)
            found.cutter.cut()
            if index + 1 < len(sources):
                sources[index + 1].first_number = number
        task.advance(found.num_read % ROWS_BETWEEN_REPORTS)
    _refuse_equal_ids(ids, sources, on_invalid=on_invalid, windowing=windowing)
    if not found.num_rows:
        listed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
        raise SourceError(
            f"--data {sources[0].spec}: no example is left to align ({listed}; rows marked test are never trained on); "
            "give data with train rows"
        )
    return found.plan(dict(sorted(counts.items())), {} if windowing is None else windowing.facts)


def _names(row: Row, cuts: Cuts | None) -> list[str]:
    """The ids of a row and of its windows."""
    return [row.id, *(window_id(row.id, one) for one in (cuts.windows if cuts is not None else ()))]


@dataclass
class _Found:
    """What a scan gathers: rows one by one, as the corpus will have them."""

    cutter: _Cutter = field(default_factory=lambda: _Cutter())
    kept: _Kept = field(default_factory=lambda: _Kept())
    hasher: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    num_read: int = 0
    num_rows: int = 0
    num_dev: int = 0

    def add(self, source: int, position: Position, row: Row, split: str, cuts: Cuts | None) -> None:
        """Take the next row of the data: itself, or its windows."""
        self.num_read += 1
        if cuts is None:
            self._add(source, position, row, split)
            return
        if not cuts.windows:
            self.cutter.leave_out(row.id, cuts.length)
        for window, one in zip(cuts.windows, window_rows(row, cuts), strict=True):
            self._add(source, position, one, split, (row.id, cuts.length, window))

    def _add(
        self, source: int, position: Position, row: Row, split: str, window: tuple[str, int, Window] | None = None
    ) -> None:
        self.num_rows += 1
        self.num_dev += split == "dev"
        self.hasher.update(_content(row, split))
        self.cutter.add(source, position, row, window)
        self.kept.add(row, split)

    def plan(self, left_out: dict[str, int], windows: dict[str, int]) -> CorpusPlan:
        """All of it."""
        units, fingerprint = tuple(self.cutter.units), self.hasher.hexdigest()
        return CorpusPlan(units, fingerprint, self.num_rows, self.num_dev, left_out, windows, self.kept.rows)


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
    windows: UnitWindows = field(default_factory=UnitWindows)

    def add(self, source: int, position: Position, row: Row, window: tuple[str, int, Window] | None = None) -> None:
        """Take the next row; `window`: of which row of the data, how long, it is a window."""
        size, text = response_bytes(row), text_bytes(row)
        is_full = (
            self.response_bytes + size > RESPONSE_BYTES_PER_PART
            or self.text_bytes + text > TEXT_BYTES_PER_PART
            or self.rows >= ROWS_PER_PART
        )
        if self.first is not None and is_full:
            self.cut()
        self.first = self.first or (source, position)
        self.last_number = position.number
        self.rows += 1
        self.response_bytes += size
        self.text_bytes += text
        if window is not None:
            self.windows.add(*window)

    def leave_out(self, row_id: str, length: int) -> None:
        """Take a row that is in no unit, though it stands among those of this one, or behind those of the last."""
        self.windows.leave_out(row_id, length)

    def cut(self) -> None:
        """End the current unit (a unit never reaches over two sources)."""
        if self.first is None:
            if self.units and self.windows.waiting:
                last = self.units.pop()
                self.units.append(replace(last, hint=self.windows.into(last.hint)))
            return
        source, position = self.first
        start = self.units[-1].stop if self.units else 0
        hint = {"source": source, **SourceRange(position, self.last_number + 1).to_json()}
        self.units.append(Unit(len(self.units), start, start + self.rows, self.windows.into(hint)))
        self.first, self.rows, self.response_bytes, self.text_bytes = None, 0, 0, 0


def _refuse_equal_ids(
    ids: array[int], sources: Sequence[Source], *, on_invalid: str, windowing: Windowing | None
) -> None:
    """Raise if two rows have one id; equal hashes alone are not enough, so the rows are looked up again."""
    hashes = np.sort(np.frombuffer(ids, dtype=np.uint64)) if ids else np.zeros(0, dtype=np.uint64)
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for source in sources:
        for located in source.scan(on_invalid=on_invalid):
            row = located.row
            if row.split == "test":
                continue
            cuts = None if windowing is None else windowing.cuts_of(row)
            for name in _names(row, cuts):
                if xxhash.xxh3_64_intdigest(name.encode()) not in suspects:
                    continue
                if name in seen:
                    raise SourceError(
                        f"{row.where}: the id {name!r} was used before at {seen[name]}; give every row its own id, or "
                        "number the rows with --columns id="
                    )
                seen[name] = row.where
