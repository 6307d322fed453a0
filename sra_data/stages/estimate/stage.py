"""`sra-data estimate`: what `cache-teacher` would take, before it runs: bytes, hours, and whether it pays.

Bytes are arithmetic, the same by which `cache-teacher` refuses a small disk. Hours are measured: the teacher reads a
few of the corpus's own examples, their pages are written to a temporary folder and read back. Without a teacher at
hand (`--no-time`) its config.json is enough for the bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra_data.errors import ConfigError, ShardError
from sra_data.shards.manifest import Manifest
from sra_data.shards.reader import FolderReader
from sra_data.stages.cache.options import CacheOptions, check_options
from sra_data.stages.cache.run import CacheRun, identify_teacher
from sra_data.stages.cache.size import DISK_ROOM
from sra_data.stages.estimate.sizes import Sizes, num_layers_of, settings_of_config
from sra_data.stages.estimate.summary import EstimateSummary, Sample
from sra_data.stages.estimate.timing import time_sample
from sra_data.teacher.loading import is_tied
from sra_data.terminal import Reporter

__all__ = ["CacheOptions", "EstimateOptions", "EstimateSummary", "estimate"]

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
            settings, config = settings_of_config(options.cache, shards, facts)
        else:
            settings, config = run.settings, run.identity.config
        sizes = Sizes(settings, corpus, is_tied=is_tied(config), num_layers=num_layers_of(config))
        sample = None if run is None else time_sample(run, options.seconds, reporter)
        return _summary(options, sizes, corpus, sample)


def _check(options: EstimateOptions) -> None:
    check_options(options.cache)
    for name in ("epochs", "students", "seconds"):
        if getattr(options, name) <= 0:
            raise ConfigError(f"--{name} {getattr(options, name)}: must be above 0")


def _summary(options: EstimateOptions, sizes: Sizes, corpus: FolderReader, sample: Sample | None) -> EstimateSummary:
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


def _run(options: EstimateOptions, shards: Path, corpus: Mapping[str, Any], reporter: Reporter) -> CacheRun | None:
    """What `cache-teacher` itself would start with, where the teacher is to be timed."""
    if not options.is_timed:
        return None
    return CacheRun(options.cache, shards, corpus, identify_teacher(options.cache, corpus), reporter)
