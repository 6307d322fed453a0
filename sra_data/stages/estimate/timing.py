"""The hours of `cache-teacher`, measured: a few of the corpus's own examples are captured, written and read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sra_data.shards.columns import FolderSchema
from sra_data.shards.kinds import Row
from sra_data.shards.store import (
    FolderReader,
    Unit,
    alignment_schema,
    begin,
    corpus_schema,
    seal,
    side_schema,
    write_part,
)
from sra_data.stages.cache.examples import ExampleReader
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.size import pages_size
from sra_data.stages.cache.unit import CacheWorker
from sra_data.stages.estimate.summary import Sample
from sra_data.stages.sampling import sample_rows
from sra_data.teacher.batching import plan_batches
from sra_data.terminal import Reporter

WARMING_EXAMPLES = 2
MOST_EXAMPLES = 512
MOST_POSITIONS = 32_768  # pages of a sample are held in memory, as a unit's are


def time_sample(run: CacheRun, seconds: float, reporter: Reporter, begin_seconds: float) -> Sample:
    """Time a sample as large as `seconds` allow; the first few examples only warm up, and say how many that are."""
    rows = run.examples.num_rows
    warming = sample_rows(rows, WARMING_EXAMPLES)
    _sample(run, warming)
    started = time.perf_counter()
    _sample(run, warming)
    each = (time.perf_counter() - started) / len(warming)
    most = min(MOST_EXAMPLES, MOST_POSITIONS / max(float(rows[rows > 0].mean()), 1.0))
    affordable = int(np.clip(seconds / each, WARMING_EXAMPLES, max(most, WARMING_EXAMPLES)))
    chosen = sample_rows(rows, affordable)
    reporter.line(f"timing {len(chosen)} examples")
    return replace(_sample(run, chosen), begin_seconds=begin_seconds)


def padded_tokens(examples: ExampleReader, units: Sequence[Unit], batch_tokens: int) -> int:
    """Tokens of all batches of these units, padding included: what a forward costs goes by them."""
    total = 0
    for unit in units:
        lengths = examples.num_tokens[unit.start : unit.stop]
        total += _padded(lengths[lengths > 0].tolist(), batch_tokens)
    return total


def _padded(lengths: Sequence[int], batch_tokens: int) -> int:
    batches = plan_batches(lengths, batch_tokens)
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)


def _sample(run: CacheRun, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Sample:
    """These rows as a small folder of shards of their own: written by the same worker, read by the same reader."""
    unit = Unit(0, 0, len(numbers))
    with tempfile.TemporaryDirectory(prefix="sra-estimate-") as place:
        shards = Path(place)
        _copy_rows(run, shards, numbers)
        begin(shards, run.section, {}, lambda: [unit], made_from=run.chosen.made_from)
        worker = CacheWorker(replace(run.settings, shards=shards, max_failed=len(numbers)), run.teacher)
        try:
            started = time.perf_counter()
            notes = worker(unit, lambda tokens: None)
            assert notes is not None, "nobody else knows this folder"
            seconds = time.perf_counter() - started
            arithmetic = pages_size(worker.schema, worker.examples, [unit], bytes_of_files=0)
        finally:
            worker.close()
        seal(shards, run.section)
        with FolderReader(shards, run.section) as reader:
            started = time.perf_counter()
            reader.read(range(len(numbers)))
            read_seconds = time.perf_counter() - started
    return Sample(
        num_examples=len(numbers),
        num_tokens=notes["tokens"],
        num_positions=notes["positions"],
        num_failed=len(notes["failed"]),
        device=str(run.settings.teacher.device),
        tokens_per_second=notes["tokens"] / notes["seconds"],
        write_seconds=seconds - notes["seconds"],
        bytes_per_position=notes["bytes"] / notes["positions"],
        compression=notes["bytes"] / arithmetic.num_bytes,
        read_bytes_per_second=notes["bytes"] / read_seconds,
        padded_tokens=_padded(run.examples.num_tokens[numbers].tolist(), run.settings.batch_tokens),
    )


def _copy_rows(run: CacheRun, shards: Path, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """What the teacher's pages of these rows are made from, as sealed folders of one part."""
    side, pair = run.examples.side, run.examples.pair
    copied: list[tuple[FolderReader, FolderSchema]] = [(run.shards.corpus, corpus_schema()), (side, side_schema())]
    if pair is not None:
        copied.append((pair.reader, alignment_schema()))
    unit = Unit(0, 0, len(numbers))
    for reader, schema in copied:
        rows: list[Row] = reader.read(numbers)
        begin(shards, reader.section, {}, lambda: [unit])
        write_part(shards / reader.section, schema, unit, rows, [len(rows)])
        seal(shards, reader.section)
