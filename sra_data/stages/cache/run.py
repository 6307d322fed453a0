"""What a run of `cache-teacher` decides before its plan: the settings of its units, and what has to be found by trying.

Batch tokens and int8's channel scales are found once and kept in the plan; a rerun takes them from there. Nothing is
written here, so `estimate` starts with the same.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sra_data.errors import ModelError
from sra_data.models.output_head import OutputHead
from sra_data.options import recorded
from sra_data.shards.codecs import estimate_channel_scales, scales_to_text
from sra_data.shards.heads import EMBEDDINGS, HEAD
from sra_data.shards.manifest import Plan, Unit, is_begun
from sra_data.shards.store import ShardSet, has_file, refuse_if_changed
from sra_data.stages.cache.choose import Chosen, choose
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.parts import PartsWorker, UnitSettings
from sra_data.stages.cache.size import PagesSize, files_size, ids_that_occur, pages_size, refuse_small_disk
from sra_data.stages.cache.unit import CacheWorker
from sra_data.stages.sampling import sample_rows
from sra_data.teacher.admission import Probe, admit, rows_to_probe
from sra_data.teacher.batching import find_batch_tokens
from sra_data.teacher.capture import TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, device_of, dtype_of, identify, load
from sra_data.teacher.spec import CaptureOptions
from sra_data.terminal import Reporter

FILES = (HEAD, EMBEDDINGS)
CALIBRATION_EXAMPLES = 64


class CacheRun:
    """One call of `cache_teacher`; the teacher is loaded when something needs it, and once.

    Making one writes nothing and loads no teacher; `find` does, for what a plan needs and nothing but trying tells.

    Attributes:
        options: what was asked.
        shards: the folder, opened.
        chosen: which teacher, side and spans are meant.
        identity: the teacher, known without its weights.
        section: "teachers/<name>", where its pages go.
        had: the inputs of the plan that is there; empty where there is none.
        settings: of the units.
        examples: what the teacher is given.
    """

    name = "cache-teacher"  # of the command
    files: tuple[str, ...] = FILES  # beside the parts

    def __init__(self, options: CacheOptions, shards: ShardSet, reporter: Reporter) -> None:
        self.options = options
        self.shards = shards
        self.reporter = reporter
        self.chosen: Chosen = choose(shards, options)
        self.identity = identify(self.chosen.teacher)
        self.section = self.chosen.section_of(self.identity, *self.apart())
        self.had: dict[str, Any] = {}
        if is_begun(shards.path, self.section):
            self.had = Plan.load(shards.path / self.section).fingerprint
        self.settings = self._begun()
        self.examples = self.settings.examples(shards)

    def apart(self) -> tuple[str, ...]:
        """What sets these pages apart from others of the same teacher and side: nothing."""
        return ()

    def worker(self, *, waits: bool) -> PartsWorker:
        """What makes parts in this process."""
        return CacheWorker(self.settings, self.teacher, waits=waits)

    def _begun(self) -> UnitSettings:
        """What is known before anything is tried; what an existing plan has decided is taken from it."""
        teacher, pair = self.chosen.teacher, self.chosen.pair
        return UnitSettings(
            shards=self.shards.path,
            section=self.section,
            teacher=replace(
                teacher, revision=teacher.revision or self.identity.revision, adapter=self.identity.adapter
            ),
            capture=self.options.capture.resolved(self.identity.num_layers),
            side=self.chosen.side,
            alignment=None if pair is None else pair.name,
            hidden_size=int(self.had.get("hidden_size", 0)),
            vocabulary_size=int(self.had.get("vocabulary_size", 0)),
            channel_scales={int(layer): text for layer, text in self.had.get("channel_scales", {}).items()},
            max_failed=self.options.max_failed,
        )

    def refuse_other_inputs(self) -> None:
        """Refuse what the plan that is there was not made for, before a teacher is loaded.

        Raises:
            ShardError: Naming each input that differs.
        """
        if self.had:
            inputs = self.inputs()
            refuse_if_changed({name: self.had.get(name) for name in inputs}, inputs, where=self.folder)

    def admit(self) -> None:
        """Refuse a teacher of which no true pages can be made, before anything is tried or written.

        Raises:
            ModelError: Saying what it gets wrong, and what to do; see `admission.py`.
        """
        examples, batch_tokens = self.examples.by_position, self.options.batch_tokens
        chosen = examples.read(rows_to_probe(examples.num_tokens))
        probe = Probe(
            name=self.identity.name,
            model=self.teacher.model,
            options=self.settings.capture,
            rows=[example.ids for example in chosen],
            ids_that_occur=self.ids_that_occur,
            is_batched=batch_tokens is None or batch_tokens >= 2 * min(len(example.ids) for example in chosen),
        )
        admit(probe)

    def find(self) -> None:
        """The rest of the settings: from the teacher, and by trying.

        Raises:
            ModelError: If the teacher cannot be loaded, or has no finite activations to calibrate with.
        """
        if not self.settings.hidden_size:
            vocabulary_size, hidden_size = OutputHead.from_model(self.teacher.model).weight.shape
            self._set(hidden_size=int(hidden_size), vocabulary_size=int(vocabulary_size))
        capture = self.settings.capture
        if capture.hidden_dtype == "int8" and set(self.settings.channel_scales) != set(capture.layer_numbers):
            self._set(channel_scales=self._calibrate())
        batch_tokens = self.options.batch_tokens or self.had.get("batch_tokens") or self._find_batch_tokens()
        self._set(batch_tokens=int(batch_tokens))

    def _set(self, **values: Any) -> None:
        self.settings = replace(self.settings, **values)

    @cached_property
    def teacher(self) -> LoadedTeacher:
        """The teacher, in memory."""
        self.reporter.line(f"loading teacher {self.identity.name}")
        return load(self.settings.teacher)

    def let_go(self) -> None:
        """Give back the teacher's memory, which workers elsewhere need for theirs; asked for again it is loaded."""
        self.__dict__.pop("teacher", None)
        gc.collect()
        if device_of(self.settings.teacher).type == "cuda":
            torch.cuda.empty_cache()

    @property
    def folder(self) -> Path:
        """Where the pages are."""
        return self.settings.folder

    @property
    def _by_token(self) -> CaptureOptions:
        """What to keep, of positions: what is found by trying does not depend on spans."""
        return replace(self.settings.capture, granularity="token")

    def _calibrate(self) -> dict[int, str]:
        """int8's channel scales, from examples spread over the side."""
        capture = TeacherCapture(self.teacher.model, replace(self._by_token, hidden_dtype="fp32", top_k=0))
        examples = self.examples.by_position
        try:
            chosen = examples.read(sample_rows(examples.num_rows, CALIBRATION_EXAMPLES))
            captured = [capture([example])[0] for example in chosen]
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
            for layer in self.settings.capture.layer_numbers
        }

    def _find_batch_tokens(self) -> int:
        """The default budget; on an accelerator by running batches of the longest examples."""
        examples = self.examples.by_position
        longest = int(examples.num_tokens.max(initial=1))
        device = device_of(self.settings.teacher)
        if device.type == "cpu" or self.settings.teacher.tensor_parallel:
            # Where several processes share a forward, memory that runs out in one leaves the others inside it.
            device = torch.device("cpu")
            return find_batch_tokens(lambda budget: None, longest=longest, device=device)
        (example,) = examples.read([int(examples.num_tokens.argmax())])
        capture = TeacherCapture(self.teacher.model, self._by_token, self.settings.scales)

        def try_batch(budget: int) -> None:
            capture.capture([example] * max(1, budget // longest))

        try:
            return find_batch_tokens(try_batch, longest=longest, device=device)
        finally:
            capture.close()

    def refuse_impossible(self) -> None:
        """Refuse what the first unit would, before a plan is written that other options then contradict.

        Raises:
            ModelError: If the teacher has no such layers or attention, or fewer ids than are asked for or occur.
            ShardError: If the disk cannot hold the pages.
        """
        TeacherCapture(self.teacher.model, self.settings.capture, self.settings.scales).close()
        refuse_small_disk(self.folder, self.size_of(self.units()))

    def inputs(self) -> dict[str, Any]:
        """What the pages depend on and nobody has to find out, under names people understand."""
        pair = self.chosen.pair
        return {
            "side": self.examples.side.root,
            **({} if pair is None else {"alignment": pair.root}),
            "teacher": self.identity.fingerprint,
            **recorded(self.settings.teacher),
            **recorded(self.settings.capture),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Everything the pages depend on."""
        settings = self.settings
        return {
            **self.inputs(),
            "hidden_size": settings.hidden_size,
            "vocabulary_size": settings.vocabulary_size,
            "batch_tokens": settings.batch_tokens,
            "channel_scales": {str(layer): text for layer, text in settings.channel_scales.items()},
        }

    def units(self) -> list[Unit]:
        """The corpus's own units: the parts are the same in all folders."""
        return [Unit(unit.part, unit.start, unit.stop) for unit in Plan.load(self.shards.corpus.folder).units]

    def size_of(self, units: list[Unit]) -> PagesSize:
        """Bytes of these units' pages, and of the files beside them where they are not there yet."""
        settings, bytes_of_files = self.settings, 0
        if not all(has_file(self.folder, name) for name in self.files):
            bytes_of_files = files_size(
                hidden_size=settings.hidden_size,
                vocabulary_size=settings.vocabulary_size,
                dtype=dtype_of(settings.teacher),
                num_ids=len(self.ids_that_occur),
                is_tied=self.identity.is_tied,
            )
        return pages_size(settings.schema(), self.examples, units, bytes_of_files=bytes_of_files)

    @cached_property
    def ids_that_occur(self) -> NDArray[np.int32]:
        """All ids of the side, ascending."""
        return ids_that_occur(
            self.examples.side,
            self.units(),
            vocabulary_size=self.teacher.vocabulary_size,
            teacher=self.identity.name,
        )
