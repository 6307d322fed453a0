"""`cache-teacher`: the teacher reads the corpus once, and what it says is written down.

The order: inputs are checked and their fingerprint compared with what is there; what has to be found by trying (batch
tokens, int8's channel scales) is found once and kept in the plan (`run.py`); missing units are done (`unit.py`), in
this process or a pool; when no unit is missing the folder is sealed and its faithfulness measured. A rerun does exactly
what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sra_data.engines.local import Work, run_units
from sra_data.errors import ShardError
from sra_data.models.decoder import input_embeddings
from sra_data.models.output_head import OutputHead
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.manifest import Manifest, Plan, Unit
from sra_data.shards.reader import FolderReader
from sra_data.shards.store import begin, missing_units, record, save_embeddings, save_head, seal
from sra_data.stages.cache.faithfulness import measure, refuse_unfaithful
from sra_data.stages.cache.options import CacheOptions, check_options, choose_units
from sra_data.stages.cache.run import FILES, SECTION, CacheRun, identify_teacher
from sra_data.stages.cache.size import refuse_small_disk
from sra_data.stages.cache.summary import CacheSummary, facts_of, notes_of, summarise
from sra_data.stages.cache.unit import COLUMNS, CacheWorker, MakeWorker, examples_of, refuse_failed
from sra_data.stages.sampling import sample_rows
from sra_data.terminal import Reporter, bytes_in_words

__all__ = ["CacheOptions", "CacheSummary", "cache_teacher"]

FAITHFULNESS_EXAMPLES = 16


def cache_teacher(options: CacheOptions, reporter: Reporter) -> CacheSummary:
    """Do what is missing of the teacher's pages.

    Raises:
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be loaded or captured as asked.
        ShardError: Where there is no sealed corpus, the folder was made from other inputs, or the disk is too small.
    """
    shards = Path(options.shards)
    corpus = Manifest.load(shards).sealed("corpus")
    check_options(options)
    run = CacheRun(options, shards, corpus, identify_teacher(options, corpus), reporter)
    plan = begin(shards, SECTION, run.fingerprint(), run.corpus_units, files=FILES)
    folder = shards / SECTION
    missing = choose_units(missing_units(folder, plan), options.units, len(plan.units))
    refuse_small_disk(folder, run.size_of(missing))
    write_files(run)
    do_units(run, missing)
    if missing_units(folder, plan):
        return summarise(run, plan, num_done=len(missing))
    known = Manifest.load(shards).section(SECTION) or {}
    if missing or known.get("root") is None or "faithfulness" not in known:
        _refuse_failures(folder, plan, options.max_failed)
        seal(shards, SECTION, facts_of(run, plan))
        measure_faithfulness(run)
    return summarise(run, plan, num_done=len(missing))


def do_units(run: CacheRun, missing: list[Unit]) -> None:
    """The missing units, with a live line."""
    if not missing:
        return
    total = sum(_tokens_of(run, unit) for unit in missing)
    with ExitStack() as stack, run.reporter.task("cache-teacher", total=total, unit="tokens") as task:
        num_bytes = num_positions = 0
        make_worker = _make_worker(run, stack)
        workers = run.options.num_workers
        done = run_units(missing, make_worker, num_workers=workers, advance=lambda tokens: task.advance(tokens))
        for number, (_, notes) in enumerate(done, start=1):
            num_bytes, num_positions = num_bytes + notes["bytes"], num_positions + notes["positions"]
            task.advance(
                0,
                units=f"{number}/{len(missing)}",
                bytes_per_token=f"{num_bytes / max(num_positions, 1):,.0f}",
                disk_free=bytes_in_words(shutil.disk_usage(run.shards).free),
            )


def _tokens_of(run: CacheRun, unit: Unit) -> int:
    numbers = run.corpus.index
    part = slice(unit.start, unit.stop)
    return int(numbers.num_tokens[part][numbers.num_positions[part] > 0].sum())


def _make_worker(run: CacheRun, stack: ExitStack) -> Callable[[], Work]:
    """What makes a worker: here, with the teacher at hand, until `stack` closes; or in a process of a pool."""
    if run.options.num_workers > 1:
        return MakeWorker(run.settings, max(1, torch.get_num_threads() // run.options.num_workers))

    def here() -> Work:
        worker = CacheWorker(run.settings, run.teacher)
        stack.callback(worker.close)
        return worker

    return here


def write_files(run: CacheRun) -> None:
    """The output head, and the input embeddings of the ids that occur, where they are not there yet."""
    folder = run.shards / SECTION
    if not (folder / "head.receipt.json").is_file():
        tensors, metadata = OutputHead.from_model(run.teacher.model).state()
        save_head(folder, {name: _stored(tensor) for name, tensor in tensors.items()}, metadata)
    if not (folder / "embeddings.receipt.json").is_file():
        embeddings = input_embeddings(run.teacher.model)
        ids = run.ids_that_occur
        weight = None if embeddings.is_tied else _stored(embeddings.weight.detach()[ids.tolist()])
        save_embeddings(folder, ids, weight, {"scale": repr(embeddings.scale)})


def _stored(tensor: Any) -> Any:
    """A torch tensor as the shards hold it: bfloat16 as its bit pattern."""
    if tensor.dtype == torch.bfloat16:
        return EncodedTensor("bf16", tensor.contiguous().view(torch.uint16).cpu().numpy())
    return tensor.contiguous().cpu().numpy()


def measure_faithfulness(run: CacheRun) -> None:
    """Compare sampled rows with the live teacher; keep the numbers; unseal where they are too far apart."""
    with FolderReader(run.shards, SECTION, corpus=run.corpus) as reader:
        failed = set(reader.facts.get("failed_examples", []))
        sampled = sample_rows(reader.index.num_positions, FAITHFULNESS_EXAMPLES)
        rows = [int(row) for row in sampled if reader.index.id_of(int(row)) not in failed]
        if not rows:
            record(run.shards, SECTION, faithfulness={"examples": 0})
            return
        examples = examples_of(run.corpus.read(rows, COLUMNS), rows, run.alignment)
        found = measure(
            run.teacher,
            run.settings.capture,
            examples,
            reader.read(rows),
            batch_tokens=run.settings.batch_tokens,
        )
    record(run.shards, SECTION, faithfulness=found)
    try:
        refuse_unfaithful(found, hidden_dtype=run.settings.capture.hidden_dtype, where=str(run.shards / SECTION))
    except ShardError:
        record(run.shards, SECTION, root=None)
        raise


def _refuse_failures(folder: Path, plan: Plan, max_failed: int) -> None:
    refuse_failed([name for note in notes_of(folder, plan) for name in note["failed"]], max_failed)
