"""`sra-data estimate`: what `cache-teacher` would take, before it runs: bytes, hours, and whether it pays.

Bytes are arithmetic, the same by which `cache-teacher` refuses a small disk. Hours are measured: the teacher reads a
few of the corpus's own examples, their pages are written to a temporary folder and read back. Without a teacher at
hand (`--no-time`) its config.json is enough for the bytes, and for the hours of accelerators of a known kind
(`fleet.py`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

from sra_data.shards.store import ShardSet, is_in_store
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.size import DISK_ROOM
from sra_data.stages.cache.stage import FAITHFULNESS_EXAMPLES
from sra_data.stages.estimate.fleet import Load, planned_fleet
from sra_data.stages.estimate.options import EstimateOptions, check_estimate
from sra_data.stages.estimate.sizes import Sizes, settings_of_config
from sra_data.stages.estimate.summary import EstimateSummary, Sample
from sra_data.stages.estimate.timing import padded_tokens, time_sample
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
        started = time.perf_counter()
        if options.is_timed:
            run = CacheRun(options.cache, shards, reporter)
            run.admit()  # what `cache-teacher` would refuse is refused before anybody plans with its hours
            run.find()
            settings, config = run.settings, run.identity.config
        else:
            settings, config = settings_of_config(options.cache, shards)
        begin_seconds = time.perf_counter() - started
        sizes = Sizes(
            settings,
            shards,
            is_tied=is_tied(config),
            num_layers=num_layers_of(config),
            num_examples=options.examples,
        )
        sample = None if run is None else time_sample(run, options.seconds, reporter, begin_seconds)
        return _summary(options, sizes, config, shards, sample)


@dataclass(frozen=True)
class _Hours:
    """Of caching, reading and running the teacher online; seconds of the units alone."""

    units: float
    cache: float
    read: float
    online: float


def _hours(options: EstimateOptions, sizes: Sizes, shards: ShardSet, sample: Sample) -> _Hours:
    """What was timed, for all of it: a forward by the tokens of its padded batches, a page by its positions."""
    examples = sizes.examples(options.cache)
    is_train = shards.corpus.index.in_split("train")
    passes = sizes.scale * options.epochs * options.students
    forward = sample.num_tokens / sample.tokens_per_second
    padded = padded_tokens(examples, sizes.units, sizes.settings.batch_tokens)
    said = sizes.scale * forward * padded / max(sample.padded_tokens, 1)
    written = sizes.scale * sample.write_seconds * int(examples.num_rows.sum()) / sample.num_positions
    # By a GPU a unit is written while the next one is said: all but the last.
    beside = max(said, written) + min(said, written) / max(1, round(sizes.scale * len(sizes.units)))
    units = said + written if sample.device == "cpu" else beside
    asked_again = min(FAITHFULNESS_EXAMPLES, int((examples.num_rows > 0).sum())) * forward / sample.num_examples
    read = passes * int(examples.num_rows[is_train].sum()) * sample.bytes_per_position
    online = passes * int(examples.num_tokens[is_train].sum()) / sample.tokens_per_second
    return _Hours(
        units=units,
        cache=(sample.begin_seconds + units + asked_again) / 3600,
        read=read / sample.read_bytes_per_second / 3600,
        online=online / 3600,
    )


def _summary(
    options: EstimateOptions, sizes: Sizes, config: Any, shards: ShardSet, sample: Sample | None
) -> EstimateSummary:
    """All numbers together."""
    examples, scale = sizes.examples(options.cache), sizes.scale
    size, num_tokens = sizes.of(options.cache), round(scale * int(examples.num_tokens.sum()))
    passes = options.epochs * options.students
    expected, hours = None, None
    spent, instead = 1.0, float(passes)
    if sample is not None:
        expected = round(sample.compression * (size.num_bytes - size.bytes_of_files)) + size.bytes_of_files
        hours = _hours(options, sizes, shards, sample)
        spent, instead = hours.cache + hours.read, hours.online
    free, num_units = shutil.disk_usage(shards.path).free, max(1, round(scale * len(sizes.units)))
    num_bytes = expected or size.num_bytes
    load = Load(num_tokens, num_units, num_bytes, num_bytes - size.bytes_of_files, scale)
    return EstimateSummary(
        shards=options.cache.shards,
        teacher=name_of(sizes.settings.teacher),
        side=sizes.settings.side,
        num_layers=sizes.num_layers,
        hidden_size=sizes.settings.hidden_size,
        vocabulary_size=sizes.settings.vocabulary_size,
        num_examples=round(scale * int((examples.num_rows > 0).sum())),
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
        cache_hours=None if hours is None else hours.cache,
        read_hours=None if hours is None else hours.read,
        online_hours=None if hours is None else hours.online,
        epochs=options.epochs,
        students=options.students,
        online_passes=passes,
        cheaper="offline" if instead > CLEARLY * spent else "online" if spent > CLEARLY * instead else "equal",
        num_units=num_units,
        planned_examples=options.examples,
        fleet=planned_fleet(options, config, examples, load, sample, 0.0 if hours is None else hours.units),
    )
