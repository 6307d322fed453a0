"""`sra-data estimate`: what `cache-teacher` would take, before it runs: bytes, hours, and whether it pays.

Bytes are arithmetic, the same by which `cache-teacher` refuses a small disk. Hours are measured: the teacher reads a
few of the corpus's own examples, their pages are written to a temporary folder and read back. Without a teacher at
hand (`--no-time`) its config.json is enough for the bytes.
"""

from __future__ import annotations

import shutil

from sra_data.shards.store import ShardSet, is_in_store
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.size import DISK_ROOM
from sra_data.stages.estimate.options import EstimateOptions, check_estimate
from sra_data.stages.estimate.sizes import Sizes, settings_of_config
from sra_data.stages.estimate.summary import EstimateSummary, Sample
from sra_data.stages.estimate.timing import time_sample
from sra_data.teacher.loading import is_tied, name_of, num_layers_of
from sra_data.terminal import Reporter

__all__ = ["EstimateOptions", "EstimateSummary", "estimate"]

CLEARLY = 1.1  # a ratio of hours below this is no difference


def estimate(options: EstimateOptions, reporter: Reporter) -> EstimateSummary:
    """Say what `cache-teacher` would take. Nothing is written into the folder.

    Raises:
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be loaded (or, untimed, has no configuration).
        ShardError: Where there is no sealed side of the teacher's.
    """
    check_estimate(options)
    with ShardSet.open(options.cache.shards) as shards:
        run: CacheRun | None = None
        if options.is_timed:
            run = CacheRun(options.cache, shards, reporter)
            run.admit()  # what `cache-teacher` would refuse is refused before anybody plans with its hours
            run.find()
            settings, config = run.settings, run.identity.config
        else:
            settings, config = settings_of_config(options.cache, shards)
        sizes = Sizes(settings, shards, is_tied=is_tied(config), num_layers=num_layers_of(config))
        sample = None if run is None else time_sample(run, options.seconds, reporter)
        return _summary(options, sizes, shards, sample)


def _summary(options: EstimateOptions, sizes: Sizes, shards: ShardSet, sample: Sample | None) -> EstimateSummary:
    """All numbers together."""
    examples = sizes.examples(options.cache)
    is_train = shards.corpus.index.in_split("train")
    num_tokens, train_tokens = int(examples.num_tokens.sum()), int(examples.num_tokens[is_train].sum())
    size = sizes.of(options.cache)
    passes = options.epochs * options.students
    cache_hours = read_hours = online_hours = expected = None
    spent, instead = 1.0, float(passes)
    if sample is not None:
        expected = round(sample.compression * (size.num_bytes - size.bytes_of_files)) + size.bytes_of_files
        seconds = num_tokens / sample.tokens_per_second
        seconds += sample.write_seconds * size.num_positions / sample.num_positions
        read = passes * int(examples.num_rows[is_train].sum()) * sample.bytes_per_position
        cache_hours, read_hours = seconds / 3600, read / sample.read_bytes_per_second / 3600
        online_hours = passes * train_tokens / sample.tokens_per_second / 3600
        spent, instead = cache_hours + read_hours, online_hours
    free = shutil.disk_usage(shards.path).free
    return EstimateSummary(
        shards=options.cache.shards,
        teacher=name_of(sizes.settings.teacher),
        side=sizes.settings.side,
        num_layers=sizes.num_layers,
        hidden_size=sizes.settings.hidden_size,
        vocabulary_size=sizes.settings.vocabulary_size,
        num_examples=int((examples.num_rows > 0).sum()),
        num_tokens=num_tokens,
        num_positions=size.num_positions,
        row="span" if options.cache.capture.by_span else "position",
        bytes_per_position=size.bytes_per_position,
        num_bytes=size.num_bytes,
        expected_bytes=expected,
        disk_free=free,
        fits=is_in_store(shards.path) or size.num_bytes * DISK_ROOM <= free,
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
