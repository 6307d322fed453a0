"""The bytes of one corpus's pages under any options: arithmetic, from the teacher's configuration if need be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_data.shards.codecs import scales_to_text
from sra_data.shards.manifest import Manifest, Plan, Unit
from sra_data.shards.reader import FolderReader
from sra_data.stages.cache.options import CacheOptions, capture_options, choose_alignment
from sra_data.stages.cache.run import default_device, named_teacher
from sra_data.stages.cache.size import PagesSize, files_size, ids_that_occur, pages_size
from sra_data.stages.cache.unit import UnitSettings
from sra_data.stages.estimate.summary import Alternative
from sra_data.teacher.loading import default_dtype, read_config


class Sizes:
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


def settings_of_config(options: CacheOptions, shards: Path, corpus: Mapping[str, Any]) -> tuple[UnitSettings, Any]:
    """Settings from the teacher's configuration alone, and that configuration."""
    name, revision = named_teacher(options, corpus)
    config = read_config(name, revision=revision, trust_remote_code=options.trust_remote_code)
    decoder = config.get_text_config(decoder=True)
    device = options.device or default_device()
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
        capture=capture_options(options, num_layers_of(config)),
        # OPT's smallest heads read a narrower projection of the states.
        hidden_size=int(getattr(decoder, "word_embed_proj_dim", None) or decoder.hidden_size),
        vocabulary_size=int(decoder.vocab_size),
    ), config


def num_layers_of(config: Any) -> int:
    """Layers of the decoder that a configuration describes."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)
