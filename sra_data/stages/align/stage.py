"""`sra-data align`: a corpus cut by two tokenizers, lined up, written as shards.

First everything that can be refused is refused: tokenizers, options, every row of the data (`plan.py`). Then the
plan is written, then the units are done (`units.py`), in this process or several; a rerun does those that are
missing. The corpus belongs to the teacher's tokenizer alone; a second student adds a folder under alignments/ and
changes nothing else.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sra_data.corpus.sources import Source, open_source
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.engines.local import run_units
from sra_data.errors import ConfigError, ShardError
from sra_data.shards.store import Manifest, Unit, begin, missing_units, seal
from sra_data.shards.vocabulary import VOCABULARY, StoredVocabulary, save_vocabulary
from sra_data.stages.align.plan import CorpusPlan, scan
from sra_data.stages.align.summary import AlignSummary, TokenizerPair, summarise
from sra_data.stages.align.units import AlignWorker, UnitOptions
from sra_data.terminal import Reporter

__all__ = ["AlignOptions", "AlignSummary", "TokenizerPair", "align", "align_with", "load_pair"]

CHOICES = {
    "overlong": ("truncate", "truncate-prompt", "skip"),
    "boundaries": ("token", "word"),
    "vocabulary_match": ("bytes", "exact"),
    "on_invalid": ("fail", "skip"),
}
UNITS_PER_WORKER = 8  # a process takes seconds to start; with fewer units than this each it is not worth it


@dataclass(frozen=True)
class AlignOptions:
    """What to align and how; the command line's options under the same names.

    Attributes:
        teacher: Hub id (with @revision) or folder; student likewise.
        data: See `open_source`; columns too.
        out: The folder of shards.
        dev_data: Development examples; without them `dev_share` of the prompts are, by their hash.
        teacher_max_length: Tokens of an example; None for the model's positions. student_max_length likewise.
        overlong: What happens beyond it: truncate, truncate-prompt or skip.
        boundaries: Shared boundaries to keep: token or word.
        max_spans: Spans of an example; beyond it neighbours are merged.
        vocabulary_match: Shared vocabulary by bytes or by exact raw strings.
        on_invalid: A bad row: fail, or skip and count it.
        num_workers: Processes; None finds out. The bytes written do not depend on it.
        units: Only units a:b of the plan; the folder is sealed once all are there.
    """

    teacher: str
    student: str
    data: str = "builtin"
    columns: str | None = None
    out: str = "shards"
    dev_data: str | None = None
    dev_share: float = 0.02
    teacher_max_length: int | None = None
    student_max_length: int | None = None
    overlong: Literal["truncate", "truncate-prompt", "skip"] = "truncate"
    boundaries: Literal["token", "word"] = "token"
    max_spans: int = 1024
    vocabulary_match: Literal["bytes", "exact"] = "bytes"
    on_invalid: Literal["fail", "skip"] = "fail"
    num_workers: int | None = None
    units: str | None = None
    trust_remote_code: bool = False


def align(options: AlignOptions, reporter: Reporter) -> AlignSummary:
    """Do what the command does.

    Raises:
        ConfigError: An option that cannot be.
        TokenizerError: A tokenizer that cannot be loaded, or whose tokens cannot be located in a text.
        SourceError: Data that cannot be read as examples; nothing has been written then.
        ShardError: The folder cannot be written, or was made from other inputs.
    """
    check_options(options)
    refuse_unwritable(Path(options.out))
    return align_with(options, reporter, load_pair(options))


def load_pair(options: AlignOptions) -> TokenizerPair:
    """Open both tokenizers and find out what they share.

    Raises:
        TokenizerError: One cannot be opened.
    """
    teacher = SideTokenizer.load(options.teacher, trust_remote_code=options.trust_remote_code)
    student = SideTokenizer.load(options.student, trust_remote_code=options.trust_remote_code)
    return TokenizerPair.of(teacher=teacher, student=student, match=options.vocabulary_match)


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """Keep the collector from going through what is there already: a loaded transformers is 250,000 objects."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@without_old_garbage()
def align_with(options: AlignOptions, reporter: Reporter, pair: TokenizerPair) -> AlignSummary:
    """`align` with tokenizers that are loaded already; raises the same."""
    started = time.monotonic()
    check_options(options)
    shards = Path(options.out)
    refuse_unwritable(shards)
    teacher, student = pair.teacher, pair.student
    options = replace(
        options,
        teacher_max_length=options.teacher_max_length or teacher.max_positions,
        student_max_length=options.student_max_length or student.max_positions,
    )
    sources = open_sources(options)
    plan = scan(
        sources,
        on_invalid=options.on_invalid,
        dev_share=0.0 if options.dev_data else options.dev_share,
        count_tokens=functools.partial(_count_tokens, teacher),
        max_positions=options.teacher_max_length,
        reporter=reporter,
    )
    corpus_inputs = describe_corpus(options, plan, teacher)
    alignment_inputs = describe_alignment(options, plan, student)
    section = f"alignments/{alignment_name(student.name, {**corpus_inputs, **alignment_inputs})}"
    corpus_plan = begin(shards, "corpus", corpus_inputs, lambda: plan.units)
    units = _with_hints(corpus_plan.units, plan.units, shards)
    alignment_plan = begin(shards, section, alignment_inputs, lambda: units, files=(VOCABULARY,))
    _save_vocabulary(shards / section, pair)

    worker = AlignWorker(
        sources=sources,
        teacher=teacher,
        student=student,
        vocabulary=pair.vocabulary,
        options=_unit_options(options),
        corpus=shards / "corpus",
        alignment=shards / section,
    )
    missing = {
        unit.part
        for unit in (*missing_units(shards / "corpus", corpus_plan), *missing_units(shards / section, alignment_plan))
    }
    chosen = [unit for unit in select_units(units, options.units) if unit.part in missing]
    tokens = _do(worker, chosen, options.num_workers, reporter)
    seconds = time.monotonic() - started

    still_missing = missing - {unit.part for unit in chosen}
    notes: list[dict[str, Any]] = []
    if not still_missing:
        notes = _seal(shards, section, options, plan, pair, sources)
    return summarise(
        shards=str(shards),
        section=section,
        plan=plan,
        notes=notes,
        units_missing=len(still_missing),
        pair=pair,
        tokens_now=tokens,
        seconds=seconds,
    )


# ------------------------------------------------------------------------------------------------------- beforehand


def check_options(options: AlignOptions) -> None:
    """Refuse values that mean nothing.

    Raises:
        ConfigError: With the option's name as on the command line.
    """
    for name, choices in CHOICES.items():
        value = getattr(options, name)
        if value not in choices:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: not known; use one of {', '.join(choices)}")
    if not 0.0 <= options.dev_share < 1.0:
        raise ConfigError(f"--dev-share {options.dev_share}: must be at least 0 and below 1")
    for name, least in (("teacher_max_length", 2), ("student_max_length", 2), ("max_spans", 1), ("num_workers", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            shown = "workers" if name == "num_workers" else name.replace("_", "-")
            raise ConfigError(f"--{shown} {value}: must be at least {least}")
    select_units((), options.units)


def refuse_unwritable(folder: Path) -> None:
    """Find out before any work whether a folder can be written (nothing is created).

    Raises:
        ShardError: It cannot.
    """
    place = folder.absolute()
    while not place.exists() and place.parent != place:
        place = place.parent
    if not place.is_dir():
        raise ShardError(f"{folder}: {place} is a file, not a folder; name another folder with --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ShardError(f"{folder}: {place} may not be written; name another folder with --out")


def open_sources(options: AlignOptions) -> list[Source]:
    """The source of `--data`, and that of `--dev-data` if there is one."""
    sources = [open_source(options.data, options.columns)]
    if options.dev_data:
        sources.append(open_source(options.dev_data, options.columns, split="dev"))
    return sources


def select_units(units: Sequence[Unit], chosen: str | None) -> Sequence[Unit]:
    """The units a:b, half-open; all of them for None.

    Raises:
        ConfigError: Not of that form.
    """
    if chosen is None:
        return units
    found = re.fullmatch(r"(\d*):(\d*)", chosen)
    if not found:
        raise ConfigError(f"--units {chosen}: not of the form a:b; write, say, 0:8")
    start, stop = (int(number) if number else None for number in found.groups())
    return units[start:stop]


def _count_tokens(side: SideTokenizer, texts: Sequence[str]) -> int:
    """Tokens of some texts together, for the estimate."""
    encoded = side.tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
    )
    return sum(len(ids) for ids in encoded["input_ids"])


# ---------------------------------------------------------------------------------------------------- what it is of


def describe_corpus(options: AlignOptions, plan: CorpusPlan, teacher: SideTokenizer) -> dict[str, Any]:
    """Everything the corpus folder depends on, under names that appear in refusals."""
    return {
        "corpus": plan.fingerprint,
        "teacher_tokenizer_and_template": teacher.fingerprint,
        "teacher_max_length": options.teacher_max_length,
        "overlong": options.overlong,
    }


def describe_alignment(options: AlignOptions, plan: CorpusPlan, student: SideTokenizer) -> dict[str, Any]:
    """Everything the alignment depends on beside the corpus folder."""
    return {
        "corpus": plan.fingerprint,
        "student_tokenizer_and_template": student.fingerprint,
        "student_max_length": options.student_max_length,
        "boundaries": options.boundaries,
        "max_spans": options.max_spans,
        "vocabulary_match": options.vocabulary_match,
    }


def alignment_name(student: str, inputs: dict[str, Any]) -> str:
    """``<tokenizer>-<8 hex>``: other options for one student give another folder beside the first."""
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", Path(student).name).strip("-.") or "student"
    return f"{stem}-{hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]}"


def _with_hints(planned: Sequence[Unit], scanned: Sequence[Unit], shards: Path) -> list[Unit]:
    """The planned units with the places of today's scan (the same rows may lie in other files now)."""
    if [(unit.start, unit.stop) for unit in planned] != [(unit.start, unit.stop) for unit in scanned]:
        raise ShardError(
            f"{shards}: its parts were cut in another way, by another version; choose another folder or delete this one"
        )
    return list(scanned)


def _unit_options(options: AlignOptions) -> UnitOptions:
    return UnitOptions(
        on_invalid=options.on_invalid,
        dev_share=0.0 if options.dev_data else options.dev_share,
        teacher_max_length=options.teacher_max_length,
        student_max_length=options.student_max_length,
        overlong=options.overlong,
        boundaries=options.boundaries,
        max_spans=options.max_spans,
    )


def _save_vocabulary(folder: Path, pair: TokenizerPair) -> None:
    if (folder / VOCABULARY).is_file() and (folder / VOCABULARY).with_suffix(".receipt.json").is_file():
        return
    student_end, teacher_end = pair.student.eos_id, pair.teacher.eos_id
    save_vocabulary(
        folder,
        StoredVocabulary(
            pair.vocabulary.student_ids,
            pair.vocabulary.teacher_ids,
            pair.vocabulary.student_of_teacher,
            None if student_end is None or teacher_end is None else (student_end, teacher_end),
        ),
    )


# --------------------------------------------------------------------------------------------------------- the work


def _do(worker: AlignWorker, units: Sequence[Unit], num_workers: int | None, reporter: Reporter) -> int:
    """Do the units; returns the tokens of both sides."""
    if not units:
        return 0
    num_workers = min(num_workers or default_workers(len(units)), len(units))
    tokens = 0
    with reporter.task("align", total=sum(unit.stop - unit.start for unit in units), unit="examples") as task:
        for unit, count in _done(worker, units, num_workers):
            tokens += count
            task.advance(unit.stop - unit.start)
    return tokens


def _done(worker: AlignWorker, units: Sequence[Unit], num_workers: int) -> Iterator[tuple[Unit, int]]:
    if num_workers == 1:
        yield from worker.run(units)
        return
    threads = max(1, _num_cores() // num_workers)
    yield from run_units(units, functools.partial(_unit_work, worker, threads), num_workers=num_workers)


def _unit_work(worker: AlignWorker, threads: int) -> Callable[[Unit, Callable[[int], None]], int]:
    """In a process of the pool: what does one unit. The tokenizers there share the cores with the other processes."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    return functools.partial(_do_one, worker)


def _do_one(worker: AlignWorker, unit: Unit, advance: Callable[[int], None]) -> int:
    return sum(tokens for _, tokens in worker.run([unit]))


def default_workers(num_units: int) -> int:
    """As many processes as the cores and the work are worth."""
    return max(1, min(_num_cores(), num_units // UNITS_PER_WORKER))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seal(
    shards: Path,
    section: str,
    options: AlignOptions,
    plan: CorpusPlan,
    pair: TokenizerPair,
    sources: Sequence[Source],
) -> list[dict[str, Any]]:
    """Seal both folders (the corpus once); returns the receipts' notes of the alignment."""
    known = Manifest.load(shards).section("corpus")
    if known is None or known.get("root") is None:
        facts = {
            "teacher": _named(pair.teacher),
            "source": [source.describe() for source in sources],
            "num_dev": plan.num_dev,
            "left_out": plan.left_out,
            "trust_remote_code": options.trust_remote_code,
        }
        seal(shards, "corpus", facts)
    facts = {
        "student": _named(pair.student),
        "options": asdict(_unit_options(options)),
        "shared_ids": len(pair.vocabulary),
    }
    return seal(shards, section, facts).notes


def _named(side: SideTokenizer) -> dict[str, Any]:
    """How to find a tokenizer (and the model beside it) again."""
    name = str(Path(side.name).resolve()) if Path(side.name).is_dir() else side.name
    return {"name": name, "revision": side.revision, "tokenizer": side.fingerprint, "max_positions": side.max_positions}
