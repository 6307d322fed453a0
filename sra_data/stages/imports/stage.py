"""`import`: what another tool captured of a teacher becomes the teacher's pages in a folder that `align` made.

The corpus's text and the teacher's side come from `align`; of the capture rows are taken whose token ids are the
side's (`captures/matching.py`), so that nothing about a text is guessed. The order is that of `cache-teacher`: which
teacher and which side is settled, the inputs' fingerprint (with a digest of the whole capture) is compared with what is
there, what is missing is refused before anything is written, missing units are done, and when none is missing the
folder is sealed. Nothing is measured against the live teacher; `verify --deep` does that where its weights are.
"""

from __future__ import annotations

from sra_data.shards.store import (
    Manifest,
    Plan,
    ShardSet,
    choose_places,
    folder_lock,
    is_as_sealed,
    missing_units,
    not_promised,
    notes_of,
    remove_abandoned,
    seal,
)
from sra_data.stages.cache.size import refuse_small_disk
from sra_data.stages.cache.stage import begin_pages, choose_units, record_reach, write_files
from sra_data.stages.cache.summary import facts_at_end
from sra_data.stages.cache.units import do_units
from sra_data.stages.imports.options import ImportOptions, check_options
from sra_data.stages.imports.run import ImportRun, open_capture
from sra_data.stages.imports.summary import ImportSummary, counted, facts_of_import, origin, summarise
from sra_data.stages.imports.workers import refuse_failed_import
from sra_data.stages.units import said_of
from sra_data.teacher.provenance import environments_in, refuse_mixture
from sra_data.terminal import Reporter

__all__ = ["ImportOptions", "ImportSummary", "import_capture"]


def import_capture(format: str, capture: str, options: ImportOptions, reporter: Reporter) -> ImportSummary:
    """Do what is missing of a teacher's pages.

    Args:
        format: of the capture: "distillkit" or "speculators".
        capture: its folder.
        options: what else is asked.
        reporter: told what happens.

    Raises:
        CaptureError: For a capture that is not as its format says, or lacks more of the side than is let through.
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be had.
        ShardError: Where there is no sealed side of the teacher's, or its folder was made from other inputs.
    """
    check_options(format, options)
    choose_places(workspace=options.workspace)
    opened = open_capture(format, capture)
    with ShardSet.open(options.shards) as shards:
        run = ImportRun(opened, options, shards, reporter)
        try:
            return _import(run, options, reporter)
        finally:
            run.close()


def _import(run: ImportRun, options: ImportOptions, reporter: Reporter) -> ImportSummary:
    """Do what is missing, in this process."""
    shards = run.shards
    num_units = len(run.units())
    for line in not_promised(shards.path):
        reporter.line(line)
    chosen = choose_units(run.units(), options.units, num_units)
    if options.units is not None:
        reporter.line(said_of(units=[unit.part for unit in chosen], num_units=num_units))
    run.refuse_other_inputs()
    run.find()
    if not run.had:
        refuse_small_disk(run.folder, run.size_of(run.units()))
    plan = begin_pages(run, facts_of_import(run))
    missing = choose_units(missing_units(run.folder, plan), options.units, num_units)
    if run.files:
        write_files(run)
    num_made = do_units(run, missing)
    if not missing_units(run.folder, plan):
        finish(run, plan)
    return summarise(run, plan, num_done=num_made)


def finish(run: ImportRun, plan: Plan) -> None:
    """Seal the folder where neither another process nor an earlier call has done it; what it reaches is kept beside."""
    shards = run.shards.path
    with folder_lock(run.folder):
        known = Manifest.load(shards).section(run.section) or {}
        if known.get("root") is None or not is_as_sealed(shards, run.section, known):
            notes = notes_of(run.folder, plan)
            refuse_mixture(environments_in(notes), where=str(run.folder))
            refuse_failed_import([name for note in notes for name in note["failed"]], run.asked.max_missing)
            seal(shards, run.section, {**facts_at_end(run, plan), "imported": origin(run, **counted(notes))})
            known = {}
        if run.files and "reach" not in known:
            record_reach(run)
        for place in (shards, run.folder):  # what killed processes have left
            remove_abandoned(place)
