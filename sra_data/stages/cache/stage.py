"""`cache-teacher`: a teacher reads its side of the corpus once, and what it says is written down.

The order: which teacher and which side is settled (`choose.py`); the inputs' fingerprint is compared with what is
there; the teacher is admitted (`teacher/admission.py`); what has to be found by trying (batch tokens, int8's channel
scales) is found once and kept in the plan (`run.py`); missing units are done (`unit.py`), in this process or a pool,
and beside any number of other processes that do the same (`shards/claims.py`); when no unit is missing the folder is
sealed and its faithfulness measured. A rerun does exactly what is missing.
"""

from __future__ import annotations

from typing import Any

import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.decoder import input_embeddings
from sra_data.models.output_head import OutputHead
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.heads import EMBEDDINGS, HEAD
from sra_data.shards.store import (
    FolderReader,
    Manifest,
    Plan,
    ShardSet,
    Unit,
    begin,
    choose_places,
    folder_lock,
    has_file,
    is_as_sealed,
    missing_units,
    not_promised,
    notes_of,
    record,
    remove_abandoned,
    save_embeddings,
    save_head,
    seal,
)
from sra_data.stages.cache.faithfulness import measure, refuse_unfaithful
from sra_data.stages.cache.options import CacheOptions, check_options
from sra_data.stages.cache.parts import refuse_failed
from sra_data.stages.cache.reach import can_measure, measure_reach
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.size import refuse_small_disk
from sra_data.stages.cache.summary import CacheSummary, facts_at_beginning, facts_at_end, summarise
from sra_data.stages.cache.units import do_units, refuse_no_room
from sra_data.stages.sampling import sample_rows
from sra_data.stages.units import said_of, unit_range
from sra_data.teacher.following import follow
from sra_data.teacher.provenance import environments_in, refuse_mixture
from sra_data.teacher.tensor_parallel import joined
from sra_data.terminal import Reporter

__all__ = ["CacheOptions", "CacheSummary", "cache_teacher"]

FAITHFULNESS_EXAMPLES = 16


def cache_teacher(options: CacheOptions, reporter: Reporter) -> CacheSummary:
    """Do what is missing of a teacher's pages; of the processes of a tensor-parallel teacher the first does it.

    Raises:
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be loaded or captured as asked.
        ShardError: Where there is no sealed side of the teacher's, its folder was made from other inputs, or the disk
            is too small.
    """
    check_options(options)
    choose_places(workspace=options.workspace)
    if not options.teacher.tensor_parallel:
        return _cache(options, reporter)
    with joined() as team:
        if team.leads:
            return _cache(options, reporter)
        follow(team)
    return _as_it_is(options)


def _as_it_is(options: CacheOptions) -> CacheSummary:
    """What is there once the leader has ended, for a process that wrote nothing of it."""
    with ShardSet.open(options.shards) as shards:
        run = CacheRun(options, shards, Reporter())
        return summarise(run, Plan.load(run.folder), num_done=0)


def _cache(options: CacheOptions, reporter: Reporter) -> CacheSummary:
    """Do what is missing, in this process and its workers."""
    with ShardSet.open(options.shards) as shards:
        run = CacheRun(options, shards, reporter)
        num_units = len(run.units())
        for line in not_promised(shards.path):
            reporter.line(line)
        chosen = choose_units(run.units(), options.units, num_units)  # refused before anything is written
        if options.units is not None:
            reporter.line(said_of(units=[unit.part for unit in chosen], num_units=num_units))
        refuse_no_room(run)
        run.refuse_other_inputs()
        if not run.had:
            run.admit()
        run.find()
        if not run.had:
            run.refuse_impossible()
        plan = begin_pages(run, facts_at_beginning(run))
        missing = choose_units(missing_units(run.folder, plan), options.units, num_units)
        refuse_small_disk(run.folder, run.size_of(missing))
        write_files(run)
        num_made = do_units(run, missing)
        if not missing_units(run.folder, plan):
            finish(run, plan)
        return summarise(run, plan, num_done=num_made)


def begin_pages(run: CacheRun, facts: dict[str, Any]) -> Plan:
    """The plan of a teacher's pages, written where there is none yet; `facts` are what the manifest says of them."""
    made_from = run.chosen.made_from
    return begin(
        run.shards.path, run.section, run.fingerprint(), run.units, files=run.files, made_from=made_from, facts=facts
    )


def choose_units(missing: list[Unit], units: str | None, num_units: int) -> list[Unit]:
    """The missing units within "a:b" of the plan, or of task "i/n" (all where None).

    Raises:
        ConfigError: If it is no range of the plan.
    """
    if units is None:
        return missing
    start, stop = unit_range(units, num_units)
    if start is None or stop is None or stop > num_units:
        raise ConfigError(f"--units {units}: give a:b with a < b, within the plan's 0:{num_units}")
    return [unit for unit in missing if start <= unit.part < stop]


def write_files(run: CacheRun) -> None:
    """The output head, and the input embeddings of the ids that occur, where they are not there yet."""
    if not has_file(run.folder, HEAD):
        tensors, metadata = OutputHead.from_model(run.teacher.model).state()
        save_head(run.folder, {name: _stored(tensor) for name, tensor in tensors.items()}, metadata)
    if not has_file(run.folder, EMBEDDINGS):
        embeddings = input_embeddings(run.teacher.model)
        ids = run.ids_that_occur
        weight = None if embeddings.is_tied else _stored(embeddings.weight.detach()[ids.tolist()])
        save_embeddings(run.folder, ids, weight, {"scale": repr(embeddings.scale)})


def _stored(tensor: Any) -> Any:
    """A torch tensor as the shards hold it: bfloat16 as its bit pattern."""
    if tensor.dtype == torch.bfloat16:
        return EncodedTensor("bf16", tensor.contiguous().view(torch.uint16).cpu().numpy())
    return tensor.contiguous().cpu().numpy()


def finish(run: CacheRun, plan: Plan) -> None:
    """Seal the folder and measure it, each where neither another process nor an earlier call has done it."""
    shards = run.shards.path
    with folder_lock(run.folder):
        known = Manifest.load(shards).section(run.section) or {}
        if "faithfulness" not in known or not is_as_sealed(shards, run.section, known):
            notes = notes_of(run.folder, plan)
            refuse_mixture(environments_in(notes), where=str(run.folder))
            failed = [name for note in notes for name in note["failed"]]
            refuse_failed(failed, run.options.max_failed)
            seal(shards, run.section, facts_at_end(run, plan))
            measure_faithfulness(run)
            record_reach(run)
        elif "reach" not in known:  # killed between the two
            record_reach(run)
        for place in (shards, run.folder):  # what killed processes have left
            remove_abandoned(place)


def record_reach(run: CacheRun) -> None:
    """Ask the teacher about its students' next tokens, where its pages can say."""
    shards = run.shards.path
    with ShardSet.open(shards) as sealed:
        if can_measure(sealed.manifest, run.section, run.identity.num_layers):
            head = OutputHead.from_model(run.teacher.model).detach()
            record(shards, run.section, reach=measure_reach(sealed, run.section.partition("/")[2], head))


def measure_faithfulness(run: CacheRun) -> None:
    """Compare sampled rows with the live teacher; keep the numbers; unseal where they are too far apart."""
    shards = run.shards.path
    with FolderReader(shards, run.section, side=run.examples.side) as reader:
        failed = set(reader.facts["failed_examples"])
        sampled = sample_rows(reader.index.num_positions, FAITHFULNESS_EXAMPLES)
        rows = [int(row) for row in sampled if reader.index.id_of(int(row)) not in failed]
        if not rows:
            record(shards, run.section, faithfulness={"examples": 0})
            return
        found = measure(
            run.teacher,
            run.settings.capture,
            run.examples.read(rows),
            reader.read(rows),
            batch_tokens=run.settings.batch_tokens,
        )
    try:
        hidden_dtype = run.settings.capture.hidden_dtype
        refuse_unfaithful(found, hidden_dtype=hidden_dtype, dtype=run.teacher.dtype, where=str(run.folder))
    except ShardError:
        record(shards, run.section, faithfulness=found, root=None)  # in one write: a kill between two would accept it
        raise
    record(shards, run.section, faithfulness=found)
