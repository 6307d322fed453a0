"""The bytes of a teacher's pages under any options: arithmetic, from the teacher's configuration if need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from sra_data.errors import ShardError
from sra_data.shards.codecs import scales_to_text
from sra_data.shards.manifest import Plan, Unit
from sra_data.shards.store import ShardSet
from sra_data.stages.cache.choose import choose, pair_of
from sra_data.stages.cache.examples import ExampleReader
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.parts import UnitSettings
from sra_data.stages.cache.size import PagesSize, files_size, ids_that_occur, pages_size
from sra_data.stages.estimate.summary import Alternative
from sra_data.teacher.loading import dtype_of, name_of, num_layers_of, read_config


class Sizes:
    """The size of one teacher's pages under any options, of the folder's examples or `scale` times as many."""

    def __init__(
        self,
        settings: UnitSettings,
        shards: ShardSet,
        *,
        is_tied: bool,
        num_layers: int,
        num_examples: int | None = None,
    ) -> None:
        self.settings = settings
        self.num_layers = num_layers
        self.scale = 1.0 if num_examples is None else num_examples / max(len(shards.corpus.index), 1)
        self._shards = shards
        self.units = [Unit(unit.part, unit.start, unit.stop) for unit in Plan.load(shards.corpus.folder).units]
        ids = ids_that_occur(
            shards.side(settings.side),
            self.units,
            vocabulary_size=settings.vocabulary_size,
            teacher=name_of(settings.teacher),
        )
        self._bytes_of_files = files_size(
            hidden_size=settings.hidden_size,
            vocabulary_size=settings.vocabulary_size,
            dtype=dtype_of(settings.teacher),
            num_ids=len(ids),
            is_tied=is_tied,
        )

    def of(self, options: CacheOptions) -> PagesSize:
        """The whole folder under these options."""
        capture = options.capture.resolved(self.num_layers)
        scales = dict.fromkeys(capture.layer_numbers, scales_to_text(np.ones(self.settings.hidden_size, np.float32)))
        schema = replace(self.settings, capture=capture, channel_scales=scales).schema()
        size = pages_size(schema, self.examples(options), self.units, bytes_of_files=self._bytes_of_files)
        return size if self.scale == 1.0 else size.times(self.scale)

    def examples(self, options: CacheOptions) -> ExampleReader:
        """What the teacher would be given."""
        side = self.settings.side
        return ExampleReader(self._shards.side(side), pair_of(self._shards, side, options))

    def alternatives(self, chosen: CacheOptions) -> Iterator[Alternative]:
        """The chosen options, then each with one thing changed."""
        known = chosen.capture.resolved(self.num_layers)
        size = self.of(chosen)
        yield Alternative("", size.bytes_per_position, size.num_bytes)
        for flags, changes in self._changes(chosen):
            other = replace(chosen, capture=replace(chosen.capture, **changes))
            if other.capture.resolved(self.num_layers) != known:
                size = self.of(other)
                yield Alternative(flags, size.bytes_per_position, size.num_bytes)

    def _changes(self, chosen: CacheOptions) -> Iterator[tuple[str, dict[str, Any]]]:
        by_span = chosen.capture.by_span
        for dtype in ("int8", "bf16", "fp32", "none"):
            if dtype != "none" or not by_span:
                yield f"--hidden-dtype {dtype}", {"hidden_dtype": dtype}
        if by_span:
            yield "--granularity token", {"granularity": "token"}
        elif chosen.capture.attention and chosen.capture.keeps_states and self._can_pool(chosen):
            yield "--granularity span", {"granularity": "span"}
        for top_k in (0, 64, 256):
            if top_k <= self.settings.vocabulary_size:
                yield f"--top-k {top_k}", {"top_k": top_k}
        if self.num_layers > 1:
            thirds = sorted({max(1, self.num_layers * part // 3) for part in (1, 2, 3)})
            yield f"--layers {','.join(map(str, thirds))}", {"layers": tuple(thirds)}

    def _can_pool(self, chosen: CacheOptions) -> bool:
        """Whether there is one student to pool for; else --student would have to say which."""
        try:
            self.examples(replace(chosen, capture=replace(chosen.capture, granularity="span")))
        except ShardError:
            return False
        return True


def settings_of_config(options: CacheOptions, shards: ShardSet) -> tuple[UnitSettings, Any]:
    """Settings from the teacher's configuration alone, and that configuration."""
    chosen = choose(shards, options)
    config = read_config(chosen.teacher)
    decoder = config.get_text_config(decoder=True)
    return UnitSettings(
        shards=shards.path,
        section="",
        teacher=chosen.teacher,
        capture=options.capture.resolved(num_layers_of(config)),
        side=chosen.side,
        # OPT's smallest heads read a narrower projection of the states.
        hidden_size=int(getattr(decoder, "word_embed_proj_dim", None) or decoder.hidden_size),
        vocabulary_size=int(decoder.vocab_size),
    ), config
