"""The hours of `cache-teacher`, measured: a few of the corpus's own examples are captured, written and read back."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sra_data.shards.manifest import Unit
from sra_data.shards.reader import FolderReader
from sra_data.shards.store import alignment_schema, begin, corpus_schema, cut_row_groups, seal, write_part
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.size import pages_size
from sra_data.stages.cache.unit import CacheWorker
from sra_data.stages.estimate.summary import Sample
from sra_data.stages.sampling import sample_rows
from sra_data.terminal import Reporter

WARMING_EXAMPLES = 2
MOST_EXAMPLES = 64


def time_sample(run: CacheRun, seconds: float, reporter: Reporter) -> Sample:
    """Time a sample as large as `seconds` allow; the first few examples only warm up."""
    started = time.perf_counter()
    warming = sample_rows(run.corpus.index.num_positions, WARMING_EXAMPLES)
    _sample(run, warming)
    each = (time.perf_counter() - started) / len(warming)
    affordable = int(np.clip(seconds / each, WARMING_EXAMPLES, MOST_EXAMPLES))
    rows = sample_rows(run.corpus.index.num_positions, affordable)
    reporter.line(f"timing {len(rows)} examples")
    return _sample(run, rows)


def _sample(run: CacheRun, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Sample:
    """These rows as a small folder of shards of their own: written by the same worker, read by the same reader."""
    chosen = run.corpus.read(rows)
    unit = Unit(0, 0, len(chosen))
    with tempfile.TemporaryDirectory(prefix="sra-estimate-") as place:
        shards = Path(place)
        begin(shards, "corpus", {}, lambda: [unit])
        groups = cut_row_groups([row.num_positions for row in chosen])
        write_part(shards / "corpus", corpus_schema(), unit, chosen, groups)
        seal(shards, "corpus")
        if run.alignment is not None:
            section = run.alignment.section
            begin(shards, section, {}, lambda: [unit])
            write_part(shards / section, alignment_schema(), unit, run.alignment.read(rows), groups)
            seal(shards, section)
        begin(shards, "teacher", {}, lambda: [unit])
        worker = CacheWorker(replace(run.settings, shards=shards, max_failed=len(chosen)), run.teacher)
        try:
            started = time.perf_counter()
            notes = worker(unit, lambda tokens: None)
            seconds = time.perf_counter() - started
            counts = None if worker.alignment is None else worker.alignment.index.num_spans
            arithmetic = pages_size(worker.schema, worker.corpus, [unit], bytes_of_files=0, counts=counts)
        finally:
            worker.close()
        seal(shards, "teacher")
        with FolderReader(shards, "teacher") as reader:
            started = time.perf_counter()
            reader.read(range(len(chosen)))
            read_seconds = time.perf_counter() - started
    return Sample(
        num_examples=len(chosen),
        num_tokens=notes["tokens"],
        num_positions=notes["positions"],
        num_failed=len(notes["failed"]),
        device=run.settings.device,
        tokens_per_second=notes["tokens"] / notes["seconds"],
        write_seconds=seconds - notes["seconds"],
        bytes_per_position=notes["bytes"] / notes["positions"],
        compression=notes["bytes"] / arithmetic.num_bytes,
        read_bytes_per_second=notes["bytes"] / read_seconds,
    )
