"""What `benchmarks/cache.py` captures: one side of given ids, without `align` and without a tokenizer.

Ids are random, lengths are Dolly's where its data is at hand. Nothing here is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.schema import ExampleRow, SideRow
from sra_data.shards.store import Unit, begin, corpus_schema, seal, side_schema, write_part

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = 1024
POSITIONS_PER_PART = 65_536
SIDE = "benchmark-00000000"


def dolly_lengths(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Prompt and response tokens of `count` examples, up to 1,024 together; drawn from Dolly where it is at hand."""
    path = REPOSITORY.parent / "shared" / "data" / "dolly" / "train.jsonl"
    generator = np.random.default_rng(0)
    if path.is_file():
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        chosen = [rows[number] for number in generator.choice(len(rows), count, replace=False)]
        # Four characters a token is what these tokenizers give on English.
        response = np.array([len(row.get("response") or row.get("output") or "") // 4 + 1 for row in chosen])
        whole = np.array([sum(len(str(value)) for value in row.values()) // 4 + 2 for row in chosen])
        return np.maximum(whole - response, 1), response, "dolly, characters / 4"
    return (
        generator.integers(10, 200, count),
        np.exp(generator.normal(4.2, 1.0, count)).astype(int) + 1,
        "log-normal, Dolly's data being absent",
    )


def side_row(name: str, ids: NDArray[np.int32], start: int) -> SideRow:
    """An example whose response is its tokens from `start` on; a character a token."""
    starts, spans = np.arange(len(ids), dtype=np.int32), np.array([[start, len(ids)]], np.int32)
    kinds, turns = np.ones(len(ids), np.uint8), np.zeros(1, np.int32)
    return SideRow(name, "ok", ids, starts, starts + 1, kinds, spans, turns, spans, spans)


def write_side(shards: Path, rows: Sequence[SideRow], *, positions_per_part: int = POSITIONS_PER_PART) -> None:
    """A sealed corpus with one sealed side, `SIDE`, of these rows; of no tokenizer, so `--side` must name it."""
    units: list[Unit] = []
    positions = np.array([row.num_positions for row in rows])
    start = 0
    while start < len(rows):
        stop = start + max(int(np.searchsorted(np.cumsum(positions[start:]), positions_per_part)), 1)
        units.append(Unit(len(units), start, stop := min(stop, len(rows))))
        start = stop
    examples = [ExampleRow(row.id, "train", len(row.ids), "", "x") for row in rows]
    for section, schema, values in (
        ("corpus", corpus_schema(), examples),
        (f"sides/{SIDE}", side_schema(), rows),
    ):
        begin(shards, section, {"corpus": "benchmark"}, lambda: units)
        for unit in units:
            write_part(shards / section, schema, unit, values[unit.start : unit.stop], [unit.stop - unit.start])
        seal(shards, section)


def write_random_side(
    shards: Path,
    count: int,
    vocabulary: int,
    *,
    least_positions: int | None = None,
    positions_per_part: int = POSITIONS_PER_PART,
) -> tuple[int, str]:
    """A side of random ids with Dolly's lengths; returns its tokens and where the lengths are from.

    It has `count` examples, or as many of them as make `least_positions`.
    """
    prompts, responses, source = dolly_lengths(count)
    generator = np.random.default_rng(1)
    rows: list[SideRow] = []
    for number, (prompt, response) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        if least_positions is not None and sum(row.num_positions for row in rows) >= least_positions:
            break
        length = min(prompt + response, LONGEST)
        ids = generator.integers(0, vocabulary, length).astype(np.int32)
        rows.append(side_row(f"e{number}", ids, min(prompt, length - 1)))
    write_side(shards, rows, positions_per_part=positions_per_part)
    return sum(len(row.ids) for row in rows), source
