"""One unit of `cache-teacher`: a part of the corpus goes through the teacher and becomes a part of its pages.

A unit is a pure function of the settings and the corpus: batches are cut by lengths and the plan's token budget inside
the unit, so the same unit gives the same bytes whoever does it, and however often.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.engines.local import Advance, Work
from sra_data.errors import ModelError
from sra_data.shards.codecs import EncodedTensor, encode_float32, scales_from_text
from sra_data.shards.reader import FolderReader
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, response_positions
from sra_data.shards.store import FolderSchema, Unit, cut_row_groups, teacher_schema, write_part
from sra_data.teacher.batching import plan_batches
from sra_data.teacher.capture import Captured, CaptureOptions, Example, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, check_vocabulary, load

COLUMNS = ("teacher_ids", "teacher_response_spans")


@dataclass(frozen=True)
class UnitSettings:
    """Everything a unit depends on; travels to worker processes.

    Attributes:
        shards: the folder of shards.
        teacher, revision, adapter, quantization, dtype, device, trust_remote_code, allow_pickle: how to load it.
        capture: what to keep.
        hidden_size: D.
        vocabulary_size: V, of the output head.
        batch_tokens: padded tokens of a batch.
        channel_scales: layer -> text of float32 [D], for int8.
        max_failed: examples whose numbers are not finite that are let through, counted.
        alignment: section of the alignment whose spans are pooled, for granularity "span".
    """

    shards: Path
    teacher: str
    revision: str | None
    adapter: str | None
    quantization: str | None
    dtype: str
    device: str
    trust_remote_code: bool
    allow_pickle: bool
    capture: CaptureOptions
    hidden_size: int
    vocabulary_size: int
    batch_tokens: int = 0
    channel_scales: dict[int, str] = field(default_factory=dict)
    max_failed: int = 0
    alignment: str | None = None

    def load(self) -> LoadedTeacher:
        """The teacher itself."""
        return load(
            self.teacher,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            adapter=self.adapter,
            quantization=self.quantization,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    @cached_property
    def scales(self) -> dict[int, NDArray[np.float32]]:
        """The channel scales as numbers."""
        return {int(layer): scales_from_text(text) for layer, text in self.channel_scales.items()}

    def schema(self) -> FolderSchema:
        """Columns of the teacher's parts."""
        capture = self.capture
        return teacher_schema(
            hidden={} if capture.hidden_dtype == "none" else dict.fromkeys(capture.layers, self.hidden_size),
            hidden_dtype=capture.hidden_dtype,
            channel_scales=self.scales,
            attention=capture.layers if capture.attention else (),
            top_k=capture.top_k,
            vocab_size=self.vocabulary_size,
            top_k_dtype=capture.top_k_dtype,
            num_temperatures=len(capture.temperatures) if capture.top_k else 0,
            num_sampled=capture.num_samples,
            next_log_prob=not capture.by_span,
            granularity=capture.granularity,
        )


class CacheWorker:
    """Makes parts, one after the other, with a teacher loaded once."""

    def __init__(self, settings: UnitSettings, teacher: LoadedTeacher) -> None:
        self.settings = settings
        self.teacher = teacher
        self.schema = settings.schema()
        self.corpus = FolderReader(settings.shards, "corpus")
        self.alignment = None if settings.alignment is None else FolderReader(settings.shards, settings.alignment)
        assert (self.alignment is not None) == settings.capture.by_span
        self.capture = TeacherCapture(teacher.model, settings.capture, settings.scales)

    def close(self) -> None:
        """Give the teacher back as it was."""
        self.capture.close()
        self.corpus.close()
        if self.alignment is not None:
            self.alignment.close()

    def __call__(self, unit: Unit, advance: Advance) -> dict[str, Any]:
        """Write one part; returns its receipt's notes.

        Raises:
            ModelError: If more than `max_failed` examples of the unit have numbers that are not finite.
        """
        started, splits_before = time.perf_counter(), self.capture.num_splits
        examples = self.examples(self.corpus.read(range(unit.start, unit.stop), COLUMNS), range(unit.start, unit.stop))
        captured = self._run(examples, advance)
        failed = [one.id for one in captured.values() if not one.is_finite]
        refuse_failed(failed, self.settings.max_failed)
        rows = (self._row(example, captured.get(number)) for number, example in enumerate(examples))
        notes = {
            "examples": len(captured),
            "positions": sum(example.num_rows for example in examples),
            "tokens": sum(len(examples[number].ids) for number in captured),
            "failed": failed,
            "splits": self.capture.num_splits - splits_before,
            "seconds": 0.0,
        }
        notes["seconds"] = time.perf_counter() - started
        groups = cut_row_groups([example.num_rows for example in examples])
        receipt = write_part(self.settings.shards / "teacher", self.schema, unit, rows, groups, notes=notes)
        return {**notes, "bytes": receipt.bytes}

    def say(self, corpus_rows: Sequence[CorpusRow]) -> list[TeacherRow]:
        """What the teacher says about some rows, encoded as the folder stores it; nothing is written."""
        index = self.corpus.index
        examples = self.examples(corpus_rows, [index.row_of(row.id) for row in corpus_rows] if self.alignment else [])
        captured = self._run(examples, lambda tokens: None)
        return [self._row(example, captured.get(number)) for number, example in enumerate(examples)]

    def examples(self, corpus_rows: Sequence[CorpusRow], numbers: Sequence[int]) -> list[Example]:
        """Corpus rows, of these numbers, as the teacher is given them."""
        return examples_of(corpus_rows, numbers, self.alignment)

    def _run(self, examples: Sequence[Example], advance: Advance) -> dict[int, Captured]:
        """All examples of the unit that have positions, through the teacher; by number within the unit."""
        numbers = [number for number, example in enumerate(examples) if example.num_rows]
        chosen = [examples[number] for number in numbers]
        if chosen:
            largest = max(int(example.ids.max()) for example in chosen)
            check_vocabulary(self.teacher, largest, tokenizer="of the corpus")
        captured: dict[int, Captured] = {}
        for batch in plan_batches([len(example.ids) for example in chosen], self.settings.batch_tokens):
            for index, one in zip(batch, self.capture([chosen[index] for index in batch]), strict=True):
                captured[numbers[index]] = one
            advance(sum(len(chosen[index].ids) for index in batch))
        return captured

    def _row(self, example: Example, captured: Captured | None) -> TeacherRow:
        """A captured example as a row; zeros where there is nothing to say (and no position, or a failed example)."""
        if captured is None or not captured.is_finite:
            captured = self._nothing(example)
        return TeacherRow(
            id=example.id,
            hidden=captured.hidden,
            attention=captured.attention,
            top_k_ids=captured.top_k_ids,
            top_k_values=captured.top_k_values,
            log_tails=captured.log_tails,
            next_log_prob=captured.next_log_prob,
            sampled_ids=captured.sampled_ids,
            sampled_weights=captured.sampled_weights,
        )

    def _nothing(self, example: Example) -> Captured:
        """Zeros in every column, and NaN for the next token's log-probability."""
        capture, count = self.settings.capture, example.num_rows
        nothing = Captured(example.id)
        if not capture.by_span:
            nothing.next_log_prob = np.full(count, np.nan, np.float32)
        for layer in capture.layers:
            if capture.hidden_dtype != "none":
                nothing.hidden[layer] = self._zeros(layer, count)
            if capture.attention:
                nothing.attention[layer] = np.zeros(count, np.float32)
        if capture.top_k:
            values = np.float16 if capture.top_k_dtype == "fp16" else np.float32
            nothing.top_k_ids = np.zeros((count, capture.top_k), np.int32)
            nothing.top_k_values = np.zeros((count, capture.top_k), values)
            nothing.log_tails = np.zeros((len(capture.temperatures), count), np.float32)
        if capture.num_samples:
            nothing.sampled_ids = np.zeros((count, capture.num_samples), np.int32)
            nothing.sampled_weights = np.zeros((count, capture.num_samples), np.float32)
        return nothing

    def _zeros(self, layer: int, count: int) -> EncodedTensor:
        zeros = np.zeros((count, self.settings.hidden_size), np.float32)
        return encode_float32(zeros, self.settings.capture.hidden_dtype, self.settings.scales.get(layer))


@dataclass(frozen=True)
class MakeWorker:
    """Makes a worker in another process, where the teacher has to be loaded again."""

    settings: UnitSettings
    num_threads: int

    def __call__(self) -> Work:
        import torch

        torch.set_num_threads(self.num_threads)
        return CacheWorker(self.settings, self.settings.load())


def example_of(row: CorpusRow) -> Example:
    """A corpus row as the teacher is given it."""
    return Example(row.id, row.teacher_ids, response_positions(row.teacher_response_spans))


def examples_of(
    corpus_rows: Sequence[CorpusRow], numbers: Sequence[int], alignment: FolderReader | None
) -> list[Example]:
    """Corpus rows as the teacher is given them: with their response positions, or with the spans of an alignment.

    Args:
        corpus_rows: with `COLUMNS`.
        numbers: their row numbers; only read where there is an alignment.
        alignment: for granularity "span".
    """
    if alignment is None:
        return [example_of(row) for row in corpus_rows]
    aligned: list[AlignmentRow] = alignment.read(numbers, ["teacher_spans"])
    return [example_of_spans(row, one.teacher_spans) for row, one in zip(corpus_rows, aligned, strict=True)]


def example_of_spans(row: CorpusRow, teacher_spans: NDArray[np.int32]) -> Example:
    """A corpus row with the tokens of its spans [K, 2] as positions, spans being disjoint and in order."""
    lengths = teacher_spans[:, 1] - teacher_spans[:, 0]
    span_ids = np.repeat(np.arange(len(teacher_spans)), lengths)
    within = np.arange(len(span_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Example(row.id, row.teacher_ids, (teacher_spans[span_ids, 0] + within).astype(np.int32), span_ids)


def refuse_failed(failed: Sequence[str], max_failed: int) -> None:
    """Stop where too many examples gave numbers that are not finite.

    Raises:
        ModelError: Naming the first of them.
    """
    if len(failed) > max_failed:
        raise ModelError(
            f"example {failed[0]}: the teacher's activations are NaN or infinite ({len(failed)} such examples, "
            f"--max-failed {max_failed}); try --dtype bf16 or fp32, or allow them with --max-failed {len(failed)}"
        )
