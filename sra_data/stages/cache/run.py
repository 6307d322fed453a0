"""What a run of `cache-teacher` decides before its plan: the settings of its units, and what has to be found by trying.

Batch tokens and int8's channel scales are found once and kept in the plan; a rerun takes them from there. Nothing is
written here, so `estimate` starts with the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_data.errors import ModelError
from sra_data.models.output_head import OutputHead
from sra_data.shards.codecs import estimate_channel_scales, scales_to_text
from sra_data.shards.manifest import PLAN, Plan, Unit
from sra_data.shards.reader import FolderReader
from sra_data.stages.cache.options import CacheOptions, capture_options, choose_alignment
from sra_data.stages.cache.size import PagesSize, files_size, ids_that_occur, pages_size
from sra_data.stages.cache.unit import COLUMNS, UnitSettings, example_of
from sra_data.stages.sampling import sample_rows
from sra_data.teacher.batching import find_batch_tokens
from sra_data.teacher.capture import CaptureOptions, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, TeacherIdentity, default_dtype, identify, split_revision
from sra_data.terminal import Reporter

SECTION = "teacher"
FILES = ("head.safetensors", "embeddings.safetensors")
CALIBRATION_EXAMPLES = 64


class CacheRun:
    """One call of `cache_teacher`; the teacher is loaded when something needs it, and once.

    Making one decides what a plan needs and writes nothing.
    """

    def __init__(
        self,
        options: CacheOptions,
        shards: Path,
        corpus: Mapping[str, Any],
        identity: TeacherIdentity,
        reporter: Reporter,
    ) -> None:
        self.options = options
        self.shards = shards
        self.corpus_facts = corpus
        self.identity = identity
        self.reporter = reporter
        self.corpus = FolderReader(shards, "corpus")
        by_span = options.granularity == "span"
        self.alignment = choose_alignment(shards, options.student) if by_span else None
        folder = shards / SECTION
        self.had: dict[str, Any] = Plan.load(folder).fingerprint if (folder / PLAN).is_file() else {}
        self.settings = self._settings()

    def _settings(self) -> UnitSettings:
        """Everything a unit depends on; what an existing plan has decided is taken from it."""
        options, identity = self.options, self.identity
        device = options.device or default_device()
        settings = UnitSettings(
            shards=self.shards,
            teacher=identity.name,
            revision=options.revision or identity.revision,
            adapter=options.adapter,
            quantization=options.quantization,
            dtype=options.dtype or default_dtype(torch.device(device)),
            device=device,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
            capture=capture_options(options, identity.num_layers),
            hidden_size=int(self.had.get("hidden_size", 0)),
            vocabulary_size=int(self.had.get("vocabulary_size", 0)),
            max_failed=options.max_failed,
            alignment=None if self.alignment is None else self.alignment.section,
        )
        self.settings = settings  # the teacher is loaded from these
        if not settings.hidden_size:
            weight = OutputHead.from_model(self.teacher.model).weight
            settings = replace(settings, hidden_size=int(weight.shape[1]), vocabulary_size=int(weight.shape[0]))
        self.settings = settings
        scales = {int(layer): text for layer, text in self.had.get("channel_scales", {}).items()}
        if settings.capture.hidden_dtype == "int8" and not scales:
            scales = self._calibrate()
        self.settings = settings = replace(settings, channel_scales=scales)
        batch_tokens = options.batch_tokens or self.had.get("batch_tokens") or self._find_batch_tokens()
        return replace(settings, batch_tokens=int(batch_tokens))

    @cached_property
    def teacher(self) -> LoadedTeacher:
        """The teacher, in memory."""
        self.reporter.line(f"loading teacher {self.identity.name}")
        return self.settings.load()

    @property
    def _by_token(self) -> CaptureOptions:
        """What to keep, of positions: what is found by trying does not depend on spans."""
        return replace(self.settings.capture, granularity="token")

    def _calibrate(self) -> dict[int, str]:
        """int8's channel scales, from examples spread over the corpus."""
        capture = TeacherCapture(self.teacher.model, replace(self._by_token, hidden_dtype="fp32", top_k=0))
        try:
            rows = self.corpus.read(sample_rows(self.corpus.index.num_positions, CALIBRATION_EXAMPLES), COLUMNS)
            captured = [capture([example_of(row)])[0] for row in rows]
        finally:
            capture.close()
        finite = [one for one in captured if one.is_finite]
        if not finite:
            raise ModelError(
                f"teacher {self.identity.name}: no sampled example has finite activations; try --dtype fp32"
            )
        return {
            layer: scales_to_text(
                estimate_channel_scales(np.concatenate([one.hidden[layer].float32() for one in finite]))
            )
            for layer in self.settings.capture.layers
        }

    def _find_batch_tokens(self) -> int:
        """The default budget; on an accelerator by running batches of the longest examples."""
        lengths = np.where(self.corpus.index.num_positions > 0, self.corpus.index.num_tokens, 0)
        longest = int(lengths.max(initial=1))
        device = self.teacher.device if not self.had else torch.device(self.settings.device)
        if device.type == "cpu":
            return find_batch_tokens(lambda budget: None, longest=longest, device=device)
        row = self.corpus.read([int(lengths.argmax())], COLUMNS)[0]
        capture = TeacherCapture(self.teacher.model, self._by_token, self.settings.scales)

        def try_batch(budget: int) -> None:
            capture.capture([example_of(row)] * max(1, budget // longest))

        try:
            return find_batch_tokens(try_batch, longest=longest, device=device)
        finally:
            capture.close()

    def fingerprint(self) -> dict[str, Any]:
        """Everything the pages depend on, under names people understand."""
        settings, capture = self.settings, self.settings.capture
        return {
            "corpus": self.corpus_facts["root"],
            **({} if self.alignment is None else {"alignment": self.alignment.root}),
            "teacher": self.identity.fingerprint,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "layers": list(capture.layers),
            "attention": capture.attention,
            "hidden_dtype": capture.hidden_dtype,
            "hidden_size": settings.hidden_size,
            "vocabulary_size": settings.vocabulary_size,
            "top_k": capture.top_k,
            "temperatures": list(capture.temperatures) if capture.top_k else [],
            "num_samples": capture.num_samples,
            "seed": capture.seed if capture.num_samples else None,
            "granularity": capture.granularity,
            "batch_tokens": settings.batch_tokens,
            "channel_scales": {str(layer): text for layer, text in settings.channel_scales.items()},
        }

    def corpus_units(self) -> list[Unit]:
        """The corpus's own units: the parts are the same in all folders."""
        return [Unit(unit.part, unit.start, unit.stop) for unit in Plan.load(self.shards / "corpus").units]

    def size_of(self, units: list[Unit]) -> PagesSize:
        """Bytes of these units' pages, and of the files beside them where they are not there yet."""
        settings, bytes_of_files = self.settings, 0
        if not all(((self.shards / SECTION) / name).with_suffix(".receipt.json").is_file() for name in FILES):
            bytes_of_files = files_size(
                hidden_size=settings.hidden_size,
                vocabulary_size=settings.vocabulary_size,
                dtype=settings.dtype,
                num_ids=len(self.ids_that_occur),
                is_tied=self.identity.is_tied,
            )
        counts = None if self.alignment is None else self.alignment.index.num_spans
        return pages_size(settings.schema(), self.corpus, units, bytes_of_files=bytes_of_files, counts=counts)

    @cached_property
    def ids_that_occur(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """All teacher ids of the corpus, ascending."""
        return ids_that_occur(
            self.corpus,
            self.corpus_units(),
            vocabulary_size=self.teacher.vocabulary_size,
            teacher=self.identity.name,
        )


def named_teacher(options: CacheOptions, corpus: Mapping[str, Any]) -> tuple[str, str | None]:
    """Name and revision of the teacher asked for, or of the one whose tokenizer the corpus was aligned with."""
    aligned = corpus["teacher"]
    name, revision = split_revision(options.teacher or aligned["name"])
    return name, options.revision or revision or (aligned.get("revision") if name == aligned["name"] else None)


def identify_teacher(options: CacheOptions, corpus: Mapping[str, Any]) -> TeacherIdentity:
    """The teacher asked for, or the one whose tokenizer the corpus was aligned with.

    Raises:
        ModelError: If there is none, or it is another revision than the tokenizer's.
    """
    aligned = corpus["teacher"]
    name, revision = named_teacher(options, corpus)
    is_same = name == aligned["name"] and aligned.get("revision") is not None
    identity = identify(name, revision=revision, adapter=options.adapter, trust_remote_code=options.trust_remote_code)
    if is_same and aligned["revision"] not in (revision or aligned["revision"], identity.revision):
        raise ModelError(
            f"teacher {name}: revision {revision}, the corpus was aligned with {aligned['revision']}; "
            "use that one, or align again into another folder"
        )
    return identity


def default_device() -> str:
    """Where a teacher runs that was not told: on an accelerator where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
