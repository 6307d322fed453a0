"""`sra-data estimate`: what `cache-teacher` would take, before it runs: bytes, hours, and whether it pays.

Bytes are arithmetic, the same by which `cache-teacher` refuses a small disk. Hours are measured: the teacher reads a
few of the corpus's own examples, their pages are written to a temporary folder and read back. Without a teacher at
hand (`--no-time`) its config.json is enough for the bytes.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.shards.codecs import scales_to_text
from sra_data.shards.manifest import Manifest, Plan, Unit
from sra_data.shards.reader import FolderReader
from sra_data.shards.store import alignment_schema, begin, corpus_schema, cut_row_groups, seal, write_part
from sra_data.stages.cache import CacheRun, identify_teacher, named_teacher
from sra_data.stages.cache_options import CacheOptions, capture_options, check_options, choose_alignment
from sra_data.stages.cache_size import DISK_ROOM, PagesSize, files_size, ids_that_occur, pages_size
from sra_data.stages.cache_unit import CacheWorker, UnitSettings
from sra_data.stages.sampling import sample_rows
from sra_data.teacher.loading import default_dtype, is_tied, read_config
from sra_data.terminal import Reporter, bytes_in_words, clock

WARMING_EXAMPLES = 2
MOST_EXAMPLES = 64
CLEARLY = 1.1  # a ratio of hours below this is no difference


@dataclass(frozen=True)
class EstimateOptions:
    """What to estimate.

    Attributes:
        cache: the options `cache-teacher` would be given.
        epochs, students: of the training planned.
        is_timed: run the teacher on a sample.
        seconds: how long that may take, about.
    """

    cache: CacheOptions = field(default_factory=CacheOptions)
    epochs: int = 10
    students: int = 1
    is_timed: bool = True
    seconds: float = 20.0


@dataclass(frozen=True)
class Alternative:
    """The size with one option changed; the first in a summary is the chosen one, with no flags."""

    flags: str
    bytes_per_position: float
    num_bytes: int


@dataclass(frozen=True)
class Sample:
    """What was measured on a few examples.

    Attributes:
        num_examples, num_tokens, num_positions: of the sample.
        num_failed: of those examples, the ones with NaN or infinite activations.
        device: where the teacher ran.
        tokens_per_second: through the teacher, states and distributions kept.
        write_seconds: the same sample encoded, compressed, checked and written.
        bytes_per_position: on disk, compressed; `compression` their share of what the arithmetic says.
        read_bytes_per_second: back from the page cache, every value checked.
    """

    num_examples: int
    num_tokens: int
    num_positions: int
    num_failed: int
    device: str
    tokens_per_second: float
    write_seconds: float
    bytes_per_position: float
    compression: float
    read_bytes_per_second: float


@dataclass(frozen=True)
class EstimateSummary:
    """Bytes, hours and the verdict.

    Attributes:
        shards, teacher: folder and teacher.
        num_layers, hidden_size, vocabulary_size: the teacher's.
        num_examples, num_tokens, num_positions: the teacher would read and cache; by span, positions are spans.
        row: "position" or "span".
        bytes_per_position: before compression; `num_bytes` of the whole folder likewise: an upper bound.
        expected_bytes: of the whole folder, compressed as the sample was; None where nothing was timed.
        disk_free: bytes; `fits` whether cache-teacher would start.
        alternatives: the chosen options first.
        sample: what was timed, None without.
        cache_hours: of cache-teacher; `read_hours` of reading it in every epoch of every student; `online_hours` of
            running the teacher in every epoch of every student instead. None where nothing was timed.
        epochs, students: planned.
        online_passes: times the teacher reads the training examples online; offline it is one.
        cheaper: "offline", "online" or "equal": by hours, or by passes of the teacher where nothing was timed.
    """

    shards: str
    teacher: str
    num_layers: int
    hidden_size: int
    vocabulary_size: int
    num_examples: int
    num_tokens: int
    num_positions: int
    row: str
    bytes_per_position: float
    num_bytes: int
    expected_bytes: int | None
    disk_free: int
    fits: bool
    alternatives: tuple[Alternative, ...]
    sample: Sample | None
    cache_hours: float | None
    read_hours: float | None
    online_hours: float | None
    epochs: int
    students: int
    online_passes: int
    cheaper: str

    def lines(self) -> list[str]:
        """It in words."""
        bytes_in_all, free = bytes_in_words(self.num_bytes), bytes_in_words(self.disk_free)
        verdict = "enough" if self.fits else "NOT enough: cache-teacher would refuse to start"
        return [
            f"{self.shards}: {self.num_examples:,} examples, {self.num_positions:,} {self.row}s to cache",
            f"teacher {self.teacher}: {self.num_layers} layers, hidden size {self.hidden_size:,}, "
            f"vocabulary {self.vocabulary_size:,}",
            f"{self.bytes_per_position:,.0f} bytes a {self.row} before compression, at most {bytes_in_all} in all with "
            f"head and embeddings; the disk has {free} free: {verdict}",
            *self._table(),
            *self._timed(),
            *self._verdict(),
        ]

    def _table(self) -> list[str]:
        width = max(len(alternative.flags or "as chosen") for alternative in self.alternatives)
        lines = [f"  {'':{width}}  {'bytes/row':>14}  {'at most':>9}  {'of chosen':>9}"]
        for alternative in self.alternatives:
            share = alternative.num_bytes / max(self.num_bytes, 1)
            lines.append(
                f"  {alternative.flags or 'as chosen':{width}}  {alternative.bytes_per_position:14,.0f}  "
                f"{bytes_in_words(alternative.num_bytes):>9}  {share:9.0%}"
            )
        return lines

    def _timed(self) -> list[str]:
        if self.sample is None or self.cache_hours is None or self.expected_bytes is None:
            return ["hours: not timed (--no-time)"]
        sample = self.sample
        lines = [
            f"timed on {sample.num_examples} examples, {sample.num_tokens:,} tokens, on {sample.device}: "
            f"{sample.tokens_per_second:,.0f} tokens/s, {sample.bytes_per_position:,.0f} bytes a {self.row} on disk "
            f"once compressed, read back at {bytes_in_words(sample.read_bytes_per_second)}/s",
            f"cache-teacher takes about {clock(3600 * self.cache_hours)} and {bytes_in_words(self.expected_bytes)}",
        ]
        if sample.num_failed:
            lines.append(f"{sample.num_failed} of these examples give NaN or infinity: try --dtype bf16 or fp32")
        return lines

    def _verdict(self) -> list[str]:
        plan = f"{self.epochs} epochs x {self.students} student{'s' if self.students != 1 else ''}"
        passes = f"the teacher reads the training examples {self.online_passes:,} times online, once offline"
        word = {"equal": "no clear difference", "offline": "offline is cheaper", "online": "online is cheaper"}
        verdict = word[self.cheaper]
        if self.cache_hours is None or self.read_hours is None or self.online_hours is None:
            return [f"{plan}: {passes}: {verdict}"]
        offline = self.cache_hours + self.read_hours
        if self.cheaper != "equal":
            slow, fast = max(offline, self.online_hours), min(offline, self.online_hours)
            verdict += f", {slow / max(fast, 1e-9):.1f} times"
        return [
            f"{plan}: {passes}; online {clock(3600 * self.online_hours)} of teacher, offline "
            f"{clock(3600 * self.cache_hours)} + {clock(3600 * self.read_hours)} of reading: {verdict}"
        ]


def estimate(options: EstimateOptions, reporter: Reporter) -> EstimateSummary:
    """Say what `cache-teacher` would take. Nothing is written into the folder.

    Raises:
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be loaded (or, untimed, has no configuration).
        ShardError: Where there is no sealed corpus.
    """
    shards = Path(options.cache.shards)
    facts = Manifest.load(shards).sealed("corpus")
    _check(options)
    with FolderReader(shards, "corpus") as corpus:
        if not (corpus.index.num_positions > 0).any():
            raise ShardError(f"{shards}/corpus: no example has a response to cache; align data with responses")
        run = _run(options, shards, facts, reporter)
        if run is None:
            settings, config = _settings_of_config(options.cache, shards, facts)
        else:
            settings, config = run.settings, run.identity.config
        sizes = _Sizes(settings, corpus, is_tied=is_tied(config), num_layers=_num_layers(config))
        sample = None if run is None else _timed(run, options.seconds, reporter)
        return _summary(options, sizes, corpus, sample)


def _check(options: EstimateOptions) -> None:
    check_options(options.cache)
    for name in ("epochs", "students", "seconds"):
        if getattr(options, name) <= 0:
            raise ConfigError(f"--{name} {getattr(options, name)}: must be above 0")


def _summary(options: EstimateOptions, sizes: _Sizes, corpus: FolderReader, sample: Sample | None) -> EstimateSummary:
    """All numbers together."""
    index = corpus.index
    is_read = index.num_positions > 0
    is_train = is_read & index.in_split("train")
    num_tokens, train_tokens = int(index.num_tokens[is_read].sum()), int(index.num_tokens[is_train].sum())
    size = sizes.of(options.cache)
    passes = options.epochs * options.students
    cache_hours = read_hours = online_hours = expected = None
    spent, instead = 1.0, float(passes)
    if sample is not None:
        expected = round(sample.compression * (size.num_bytes - size.bytes_of_files)) + size.bytes_of_files
        seconds = num_tokens / sample.tokens_per_second
        seconds += sample.write_seconds * size.num_positions / sample.num_positions
        read = passes * int(sizes.counts(options.cache)[is_train].sum()) * sample.bytes_per_position
        cache_hours, read_hours = seconds / 3600, read / sample.read_bytes_per_second / 3600
        online_hours = passes * train_tokens / sample.tokens_per_second / 3600
        spent, instead = cache_hours + read_hours, online_hours
    free = shutil.disk_usage(corpus.folder).free
    return EstimateSummary(
        shards=options.cache.shards,
        teacher=sizes.settings.teacher,
        num_layers=sizes.num_layers,
        hidden_size=sizes.settings.hidden_size,
        vocabulary_size=sizes.settings.vocabulary_size,
        num_examples=int(is_read.sum()),
        num_tokens=num_tokens,
        num_positions=size.num_positions,
        row="span" if options.cache.granularity == "span" else "position",
        bytes_per_position=size.bytes_per_position,
        num_bytes=size.num_bytes,
        expected_bytes=expected,
        disk_free=free,
        fits=size.num_bytes * DISK_ROOM <= free,
        alternatives=tuple(sizes.alternatives(options.cache)),
        sample=sample,
        cache_hours=cache_hours,
        read_hours=read_hours,
        online_hours=online_hours,
        epochs=options.epochs,
        students=options.students,
        online_passes=passes,
        cheaper="offline" if instead > CLEARLY * spent else "online" if spent > CLEARLY * instead else "equal",
    )


# --------------------------------------------------------------------------- bytes


class _Sizes:
    """The size of one corpus's pages under any options."""

    def __init__(self, settings: UnitSettings, corpus: FolderReader, *, is_tied: bool, num_layers: int) -> None:
        self.settings = settings
        self.num_layers = num_layers
        self._corpus = corpus
        self._can_pool = len(Manifest.load(settings.shards).alignments) == 1  # else --student would have to say which
        self._units = [Unit(unit.part, unit.start, unit.stop) for unit in Plan.load(corpus.folder).units]
        ids = ids_that_occur(corpus, self._units, vocabulary_size=settings.vocabulary_size, teacher=settings.teacher)
        self._bytes_of_files = files_size(
            hidden_size=settings.hidden_size,
            vocabulary_size=settings.vocabulary_size,
            dtype=settings.dtype,
            num_ids=len(ids),
            is_tied=is_tied,
        )

    def of(self, options: CacheOptions) -> PagesSize:
        """The whole folder under these options."""
        capture = capture_options(options, self.num_layers)
        scales = dict.fromkeys(capture.layers, scales_to_text(np.ones(self.settings.hidden_size, np.float32)))
        schema = replace(self.settings, capture=capture, channel_scales=scales).schema()
        counts = self.counts(options)
        return pages_size(schema, self._corpus, self._units, bytes_of_files=self._bytes_of_files, counts=counts)

    def counts(self, options: CacheOptions) -> np.ndarray[Any, np.dtype[np.int32]]:
        """[examples] positions to cache, or the spans of the alignment chosen."""
        if options.granularity == "token":
            return self._corpus.index.num_positions
        return choose_alignment(self.settings.shards, options.student).index.num_spans

    def alternatives(self, chosen: CacheOptions) -> Iterator[Alternative]:
        """The chosen options, then each with one thing changed."""
        known = capture_options(chosen, self.num_layers)
        size = self.of(chosen)
        yield Alternative("", size.bytes_per_position, size.num_bytes)
        for flags, changes in self._changes(chosen):
            other = replace(chosen, **changes)
            if capture_options(other, self.num_layers) != known:
                size = self.of(other)
                yield Alternative(flags, size.bytes_per_position, size.num_bytes)

    def _changes(self, chosen: CacheOptions) -> Iterator[tuple[str, dict[str, Any]]]:
        by_span = chosen.granularity == "span"
        for dtype in ("int8", "bf16", "fp32", "none"):
            if dtype != "none" or not by_span:
                yield f"--hidden-dtype {dtype}", {"hidden_dtype": dtype}
        if by_span:
            yield "--granularity token", {"granularity": "token", "student": None}
        elif self._can_pool and chosen.attention and chosen.hidden_dtype != "none":
            yield "--granularity span", {"granularity": "span"}
        for top_k in (0, 64, 256):
            if top_k <= self.settings.vocabulary_size:
                yield f"--top-k {top_k}", {"top_k": top_k, "logits": "top_k"}
        yield "--logits sampled", {"logits": "sampled"}
        if self.num_layers > 1:
            thirds = sorted({max(1, self.num_layers * part // 3) for part in (1, 2, 3)})
            names = ",".join(map(str, thirds))
            yield f"--layers {names}", {"layers": tuple(thirds)}


def _settings_of_config(options: CacheOptions, shards: Path, corpus: Mapping[str, Any]) -> tuple[UnitSettings, Any]:
    """Settings from the teacher's configuration alone, and that configuration."""
    name, revision = named_teacher(options, corpus)
    config = read_config(name, revision=revision, trust_remote_code=options.trust_remote_code)
    decoder = config.get_text_config(decoder=True)
    device = options.device or _default_device()
    return UnitSettings(
        shards=shards,
        teacher=name,
        revision=revision,
        adapter=options.adapter,
        quantization=options.quantization,
        dtype=options.dtype or default_dtype(torch.device(device)),
        device=device,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        capture=capture_options(options, _num_layers(config)),
        # OPT's smallest heads read a narrower projection of the states.
        hidden_size=int(getattr(decoder, "word_embed_proj_dim", None) or decoder.hidden_size),
        vocabulary_size=int(decoder.vocab_size),
    ), config


def _num_layers(config: Any) -> int:
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# --------------------------------------------------------------------------- hours


def _run(options: EstimateOptions, shards: Path, corpus: Mapping[str, Any], reporter: Reporter) -> CacheRun | None:
    """What `cache-teacher` itself would start with, where the teacher is to be timed."""
    if not options.is_timed:
        return None
    return CacheRun(options.cache, shards, corpus, identify_teacher(options.cache, corpus), reporter)


def _timed(run: CacheRun, seconds: float, reporter: Reporter) -> Sample:
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
