"""The scan: one pass over the user's rows that proves them readable and cuts the work into units.

Everything that can be wrong with the input is found here, before a folder exists. Kept in memory: 8 bytes a row (the
hash of its id) and one short entry a unit. Units are cut by ESTIMATED teacher positions (bytes of the responses over
bytes per token, measured on the first examples), so that the whole plan exists before any tokenizing; the same rows
give the same units, whoever does them.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from sra_data.corpus.examples import Row, dev_share_of
from sra_data.corpus.sources import Located, Position, Source, SourceRange
from sra_data.errors import SourceError
from sra_data.shards.store import Unit
from sra_data.terminal import Reporter

POSITIONS_PER_PART = 65_536
TEXT_BYTES_PER_PART = 16_000_000  # long prompts cost memory too
ROWS_PER_PART = 65_536
SAMPLED_EXAMPLES = 64
SAMPLED_BYTES = 1_000_000
ROWS_BETWEEN_REPORTS = 512

CountTokens = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class CorpusPlan:
    """What the scan found.

    Attributes:
        units: The parts, in order; a unit's hint is `{"source": index, **SourceRange.to_json()}`.
        fingerprint: Hex; changes with any id, split, prompt, response or message, and with their order.
        num_rows: Rows in all units.
        num_dev: Those of the development set.
        left_out: Rows that are in no unit, by reason, and lone surrogates replaced.
    """

    units: tuple[Unit, ...]
    fingerprint: str
    num_rows: int
    num_dev: int
    left_out: dict[str, int]


def split_of(row: Row, dev_share: float) -> str:
    """``train``, ``dev`` or ``test``: what the row says, else by a hash of its prompt."""
    return row.split or ("dev" if dev_share_of(row) < dev_share else "train")


def scan(
    sources: Sequence[Source],
    *,
    on_invalid: str,
    dev_share: float,
    count_tokens: CountTokens,
    max_positions: int | None,
    reporter: Reporter,
) -> CorpusPlan:
    """Read every row once.

    Args:
        sources: Training source, and the development source if there is one (its rows are numbered on).
        on_invalid: ``fail`` or ``skip``.
        dev_share: Share of the prompts that become the development set.
        count_tokens: Tokens of some texts together, on the teacher's side.
        max_positions: The teacher's limit of tokens, or None.

    Raises:
        SourceError: An invalid row, two rows with one id, or nothing to align.
    """
    counts: Counter[str] = Counter()
    cutter = _Cutter(count_tokens, max_positions)
    hasher = xxhash.xxh3_128()
    ids = array("Q")
    num_dev = 0
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
    units = tuple(cutter.units)
    return CorpusPlan(units, hasher.hexdigest(), len(ids), num_dev, dict(sorted(counts.items())))


def _content(row: Row, split: str) -> bytes:
    """Everything of a row that the shards depend on, unambiguous."""
    if row.messages is None:
        parts = [row.id, split, row.prompt or "", row.response or ""]
    else:
        parts = [row.id, split, json.dumps([row.messages, row.tools], ensure_ascii=False, sort_keys=True, default=str)]
    lengths = ",".join(str(len(part)) for part in parts)
    return f"{lengths}\n{''.join(parts)}".encode()


def response_texts(row: Row) -> list[str]:
    """The responses as the user wrote them."""
    if row.messages is None:
        return [row.response or ""]
    return [message["content"] for message in row.messages if message["role"] == "assistant"]


def text_bytes(row: Row) -> int:
    """About how many bytes of text a row is."""
    if row.messages is None:
        return len(row.prompt or "") + len(row.response or "")
    return sum(len(message["content"]) for message in row.messages)


@dataclass
class _Entry:
    """What the cutter has to know of a row."""

    source: int
    position: Position
    response_bytes: int
    responses: int
    text_bytes: int


@dataclass
class _Cutter:
    """Cuts rows into units once it knows how many bytes a token has."""

    count_tokens: CountTokens
    max_positions: int | None
    units: list[Unit] = field(default_factory=list)
    bytes_per_token: float | None = None
    sample: list[str] = field(default_factory=list)
    sampled_bytes: int = 0
    waiting: list[_Entry] = field(default_factory=list)
    # The unit being filled.
    first: _Entry | None = None
    last_number: int = 0
    rows: int = 0
    positions: float = 0.0
    bytes: int = 0

    def add(self, source: int, located: Located) -> None:
        """Take the next row."""
        texts = response_texts(located.row)
        size = sum(len(text.encode("utf-8")) for text in texts)
        entry = _Entry(source, located.position, size, len(texts), text_bytes(located.row))
        if self.bytes_per_token is not None:
            self._place(entry)
            return
        self.waiting.append(entry)
        self.sample += texts
        self.sampled_bytes += size
        if len(self.waiting) >= SAMPLED_EXAMPLES or self.sampled_bytes >= SAMPLED_BYTES:
            self._measure()

    def cut(self) -> None:
        """End the current unit (a unit never reaches over two sources)."""
        if self.bytes_per_token is None and self.waiting:
            self._measure()
        if self.first is None:
            return
        start = self.units[-1].stop if self.units else 0
        source_range = SourceRange(self.first.position, self.last_number + 1)
        hint = {"source": self.first.source, **source_range.to_json()}
        self.units.append(Unit(len(self.units), start, start + self.rows, hint))
        self.first, self.rows, self.positions, self.bytes = None, 0, 0.0, 0

    def _measure(self) -> None:
        self.bytes_per_token = max(self.sampled_bytes / max(self.count_tokens(self.sample), 1), 0.1)
        waiting, self.waiting, self.sample = self.waiting, [], []
        for entry in waiting:
            self._place(entry)

    def _place(self, entry: _Entry) -> None:
        assert self.bytes_per_token is not None
        positions = entry.response_bytes / self.bytes_per_token + entry.responses
        if self.max_positions is not None:
            positions = min(positions, self.max_positions)
        is_full = (
            self.positions + positions > POSITIONS_PER_PART
            or self.bytes + entry.text_bytes > TEXT_BYTES_PER_PART
            or self.rows >= ROWS_PER_PART
        )
        if self.first is not None and is_full:
            self.cut()
        self.first = self.first or entry
        self.last_number = entry.position.number
        self.rows += 1
        self.positions += positions
        self.bytes += entry.text_bytes


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
