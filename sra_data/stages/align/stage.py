"""`sra-data align`: a corpus cut by the tokenizers of teachers and students, lined up, written as shards.

First everything that can be refused is refused: tokenizers, options, every row of the data (`plan.py`). Then the plans
are written, then the units are done (`units.py`), in this process or several; a rerun does those that are missing. The
corpus belongs to no tokenizer; a side is the same whether it teaches or learns. So what is there already is used: a
second student adds a side and an alignment, a second teacher of a known tokenizer adds nothing here.
"""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.engines import Advance, Needs, check, num_cores, run_units, team
from sra_data.engines import Work as UnitWork
from sra_data.errors import SourceError
from sra_data.shards.store import Manifest, Plan, Unit, choose_places, folder_of, missing_units, not_promised
from sra_data.stages.align.options import AlignOptions, check_options, open_sources, refuse_unwritable, select_units
from sra_data.stages.align.plan import scan
from sra_data.stages.align.summary import AlignSummary, summarise
from sra_data.stages.align.units import AlignWorker
from sra_data.stages.align.windows import windowing
from sra_data.stages.align.work import Tokenizers, Work
from sra_data.stages.units import said_of
from sra_data.terminal import Reporter

# A process takes seconds to start, and one worker has threads for both tokenizers already: Dolly's 18 units took two
# cores 14.5 to 17.5 s by one worker, 22.5 to 27.4 s by two.
UNITS_PER_WORKER = 64


def align(options: AlignOptions, reporter: Reporter) -> AlignSummary:
    """Do what the command does.

    Raises:
        ConfigError: An option that cannot be.
        TokenizerError: A tokenizer that cannot be loaded, or whose tokens cannot be located in a text.
        SourceError: Data that cannot be read as examples; nothing has been written then. Or, after everything is
            written, data of which one pair can use nothing.
        ShardError: The folder cannot be written, or was made from other inputs.
    """
    check_options(options)
    check(options.engine, options.num_workers, Needs())
    choose_places(workspace=options.workspace)
    shards = folder_of(options.out)
    refuse_unwritable(shards)
    if Manifest.exists(shards):
        Manifest.load(shards)  # a folder of another format is refused before hours of work
    return align_with(options, reporter, load_tokenizers(options))


def load_tokenizers(options: AlignOptions) -> Tokenizers:
    """Open every tokenizer once, by the names that were asked for.

    Raises:
        TokenizerError: One cannot be opened.
    """
    names = dict.fromkeys((*options.teachers, *options.students))
    return {name: SideTokenizer.load(name, trust_remote_code=options.trust_remote_code) for name in names}


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """Keep the collector from going through what is there already: a loaded transformers is 250,000 objects."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@without_old_garbage()
def align_with(options: AlignOptions, reporter: Reporter, tokenizers: Tokenizers) -> AlignSummary:
    """`align` with tokenizers that are loaded already; raises the same."""
    check_options(options)
    choose_places(workspace=options.workspace)
    shards = folder_of(options.out)
    refuse_unwritable(shards)
    for line in not_promised(shards):
        reporter.line(line)
    work = Work.planned(options, tokenizers, shards)
    windows = windowing(options, [*work.sides.values()], shards)
    sources = open_sources(options)
    started = time.monotonic()
    plan = scan(
        sources,
        on_invalid=options.on_invalid,
        dev_share=options.hashed_dev_share,
        reporter=reporter,
        windowing=windows,
    )
    scanned = time.monotonic() - started
    plans, units = work.begin(plan, sources)  # what two tokenizers share takes seconds, whatever the corpus

    worker = AlignWorker(
        shards=shards,
        sources=sources,
        sides=work.sides,
        pairs=list(work.pairs.values()),
        on_invalid=options.on_invalid,
        dev_share=options.hashed_dev_share,
        rows=plan.rows,
    )
    missing = _missing(shards, plans)
    selected = select_units(units, options.units)
    if options.units is not None:
        reporter.line(said_of(units=[unit.part for unit in selected], num_units=len(units)))
    chosen = [unit for unit in selected if unit.part in missing]
    started = time.monotonic()
    tokens = _do(worker, chosen, options, reporter)
    seconds = scanned + time.monotonic() - started

    still_missing = missing - {unit.part for unit in chosen}
    if still_missing:  # other processes may have made them meanwhile
        still_missing = _missing(shards, plans)
    if not still_missing:
        work.seal(list(plans))
    summary = summarise(
        shards=shards,
        plan=plan,
        columns={words: file for source in reversed(sources) for words, file in source.columns_read.items()},
        asked=work.asked,
        sides=work.sides,
        pairs=work.pairs,
        units_missing=len(still_missing),
        tokens_now=tokens if chosen else None,
        seconds=seconds,
    )
    _refuse_useless(summary)
    return summary


def _refuse_useless(summary: AlignSummary) -> None:
    """What is written stays, for the other pairs; but nobody should think that there is something to learn from it.

    Raises:
        SourceError: If no example is of use to one of the pairs.
    """
    for pair in summary.pairs:
        if pair.why_useless:
            raise SourceError(
                f"{summary.shards}: no example is of use to {pair.student} and {pair.teacher} ({pair.why_useless}); "
                "mend the data, the chat template or --max-length, and align into another folder"
            )


# --------------------------------------------------------------------------------------------------------- the work


def _missing(shards: Path, plans: Mapping[str, Plan]) -> set[int]:
    """Numbers of the parts that one of the folders lacks."""
    return {unit.part for section, plan in plans.items() for unit in missing_units(shards / section, plan)}


def _do(worker: AlignWorker, units: Sequence[Unit], options: AlignOptions, reporter: Reporter) -> int:
    """Do the units; returns the tokens that were cut."""
    if not units:
        return 0
    tokens = 0
    with reporter.task("align", total=sum(unit.stop - unit.start for unit in units), unit="examples") as task:
        for _, count in _done(worker, units, options, lambda examples: task.advance(examples)):
            tokens += count
    return tokens


def _done(
    worker: AlignWorker, units: Sequence[Unit], options: AlignOptions, advance: Advance
) -> Iterator[tuple[Unit, int]]:
    engine, needs = options.engine, Needs(worth=default_workers(len(units)))
    num_workers = options.num_workers and min(options.num_workers, len(units))
    crew = team(engine, num_workers, needs)

    def here() -> UnitWork:  # where the rows that the scan kept are at hand
        return worker.run

    elsewhere = functools.partial(_beside_others, replace(worker, rows=None), crew.threads)
    make_worker = here if crew.is_here else elsewhere
    yield from run_units(units, make_worker, engine=engine, num_workers=num_workers, advance=advance, needs=needs)


def _beside_others(worker: AlignWorker, threads: int) -> UnitWork:
    """What does units beside others that do theirs: it shares the cores with them and nothing else."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    return replace(worker).run


def default_workers(num_units: int) -> int:
    """As many processes as the cores and the work are worth."""
    return max(1, min(num_cores(), num_units // UNITS_PER_WORKER))
