"""A part of a teacher's pages: written unit by unit, whoever says what stands in it.

`PartsWorker` makes parts; what is said about a unit's examples comes from a live teacher (`unit.py`) or from another
tool's capture (`stages/imports`). A unit is a pure function of the settings and the side, so the same unit gives the
same bytes whoever does it, and however often.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.engines import Advance
from sra_data.errors import ModelError
from sra_data.shards.claims import Claim
from sra_data.shards.codecs import EncodedTensor, encode_float32, scales_from_text
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import (
    BeingWritten,
    FolderSchema,
    Plan,
    ShardSet,
    Unit,
    claimed,
    cut_row_groups,
    is_begun,
    notes_of,
    sides_of,
    teacher_schema,
    write_part,
)
from sra_data.stages.cache.examples import ExampleReader
from sra_data.teacher.capture import Captured, Example
from sra_data.teacher.provenance import environments_in, refuse_mixture
from sra_data.teacher.spec import CaptureOptions, TeacherSpec


@dataclass(frozen=True)
class UnitSettings:
    """Everything a unit depends on; travels to worker processes.

    Attributes:
        shards: the folder of shards.
        section: "teachers/<name>", where the parts go.
        teacher: which model, settled.
        capture: what to keep, resolved.
        side: name of the side it reads.
        alignment: by span, name of the alignment whose spans are pooled; else None.
        hidden_size: D.
        vocabulary_size: V, of the output head.
        batch_tokens: padded tokens of a batch.
        channel_scales: layer -> text of float32 [D], for int8.
        max_failed: examples whose numbers are not finite that are let through, counted.
        next_log_prob: by token, whether the log-probability of the token that follows is kept.
    """

    shards: Path
    section: str
    teacher: TeacherSpec
    capture: CaptureOptions
    side: str
    alignment: str | None = None
    hidden_size: int = 0
    vocabulary_size: int = 0
    batch_tokens: int = 0
    channel_scales: dict[int, str] = field(default_factory=dict)
    max_failed: int = 0
    next_log_prob: bool = True

    @property
    def folder(self) -> Path:
        """Where the parts go."""
        return self.shards / self.section

    @property
    def keeps_next(self) -> bool:
        """Whether the log-probability of the token that follows is kept: a span has none."""
        return self.next_log_prob and not self.capture.by_span

    def examples(self, shards: ShardSet) -> ExampleReader:
        """What the teacher is given, in an opened folder of shards."""
        if self.alignment is None:
            return ExampleReader(shards.side(self.side))
        left, right = sides_of(self.alignment)
        student = right if left == self.side else left
        return ExampleReader(
            shards.side(self.side), shards.pair(student=student, teacher=self.side, name=self.alignment)
        )

    @cached_property
    def scales(self) -> dict[int, NDArray[np.float32]]:
        """The channel scales as numbers."""
        return {int(layer): scales_from_text(text) for layer, text in self.channel_scales.items()}

    def schema(self) -> FolderSchema:
        """Columns of the teacher's parts."""
        capture = self.capture
        layers = capture.layer_numbers
        return teacher_schema(
            hidden=dict.fromkeys(layers, self.hidden_size) if capture.keeps_states else {},
            hidden_dtype=capture.hidden_dtype,
            channel_scales=self.scales,
            attention=layers if capture.attention else (),
            top_k=capture.top_k,
            vocab_size=self.vocabulary_size,
            top_k_dtype=capture.top_k_dtype,
            num_temperatures=len(capture.temperatures),
            next_log_prob=self.keeps_next,
            granularity=capture.granularity,
        )


@dataclass(frozen=True)
class Said:
    """A unit in memory: its examples, what was said about them by number, and the receipt's notes."""

    unit: Unit
    examples: list[Example]
    captured: dict[int, Captured]
    notes: dict[str, Any]


class PartsWorker(ABC):
    """Makes parts, one after the other.

    Parts that another process has claimed are left to it, or waited for: they may have to be made after all.
    """

    writes_beside = False

    def __init__(self, settings: UnitSettings, *, environment: dict[str, str], waits: bool = False) -> None:
        """`environment`: in which the numbers are made, see `provenance.py`; empty where none was."""
        self.settings = settings
        self.waits = waits
        self.schema = settings.schema()
        self.shards = ShardSet.open(settings.shards)
        self.examples = settings.examples(self.shards)
        self.environment = environment
        self._is_like_the_others = False

    @abstractmethod
    def said_about(self, examples: Sequence[Example], advance: Advance) -> dict[int, Captured]:
        """What is said about the examples that have positions; by number within those given."""

    def remarks(self) -> dict[str, Any]:
        """What else a receipt notes of the unit that was said last."""
        return {}

    def refuse(self, failed: Sequence[str]) -> None:
        """Stop where too many examples of a unit have nothing that can be kept."""
        refuse_failed(failed, self.settings.max_failed)

    def close(self) -> None:
        """Give back what was opened."""
        self.shards.close()

    def refuse_mixture(self) -> None:
        """Refuse to add to units that were made otherwise; asked once, before the first.

        Raises:
            ShardError: If they were made in an environment whose numbers are others.
        """
        settings = self.settings
        if not self._is_like_the_others and is_begun(settings.shards, settings.section):
            made = environments_in(notes_of(settings.folder, Plan.load(settings.folder)))
            refuse_mixture([*made, self.environment], where=str(settings.folder))
        self._is_like_the_others = True

    def __call__(self, unit: Unit, advance: Advance) -> dict[str, Any] | None:
        """Write one part; returns its receipt's notes, None for a part that another process has made or claimed.

        Raises:
            ModelError: If more than `max_failed` examples of the unit have numbers that are not finite.
            ShardError: If the units that are there were made in an environment whose numbers are others.
        """
        try:
            with claimed(self.settings.folder, unit, wait=self.waits) as claim:
                return None if claim is None else self._write(self._said(unit, advance), claim)
        except BeingWritten:
            return None

    def run(self, units: Iterable[Unit], advance: Advance) -> Iterator[tuple[Unit, dict[str, Any] | None]]:
        """Units one after the other, each with its notes once it is on disk; raises as a call does.

        Where the teacher runs on an accelerator a unit is written while the next one is said: writing needs a core, and
        a GPU that waits for it is paid for. There are two units in memory then.
        """
        if not self.writes_beside:
            for unit in units:
                yield unit, self(unit, advance)
            return
        with ThreadPoolExecutor(1, "write") as writer:
            waiting: tuple[Unit, Future[dict[str, Any] | None]] | None = None
            for unit in units:
                begun = unit, self._begun(unit, advance, writer)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = begun
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def _begun(self, unit: Unit, advance: Advance, writer: ThreadPoolExecutor) -> Future[dict[str, Any] | None]:
        """One unit said, and on its way to the disk; its claim ends there."""
        with ExitStack() as stack:
            try:
                claim = stack.enter_context(claimed(self.settings.folder, unit, wait=self.waits))
            except BeingWritten:
                claim = None
            if claim is None:
                return writer.submit(lambda: None)
            said = self._said(unit, advance)
            kept = stack.pop_all()

        def write() -> dict[str, Any]:
            with kept:
                return self._write(said, claim)

        return writer.submit(write)

    def _said(self, unit: Unit, advance: Advance) -> Said:
        """What the teacher says about a unit's examples."""
        self.refuse_mixture()
        started = time.perf_counter()
        examples = self.examples.read(range(unit.start, unit.stop))
        captured = self.said_about(examples, advance)
        failed = [one.id for one in captured.values() if not one.is_finite]
        self.refuse(failed)
        notes = {
            "examples": len(captured),
            "positions": sum(example.num_rows for example in examples),
            "tokens": sum(len(examples[number].ids) for number in captured),
            "failed": failed,
            "splits": 0,
            "seconds": time.perf_counter() - started,
            "environment": self.environment,
            **self.remarks(),
        }
        return Said(unit, examples, captured, notes)

    def _write(self, said: Said, claim: Claim) -> dict[str, Any]:
        """A part and its receipt."""
        rows = (self._row(example, said.captured.get(number)) for number, example in enumerate(said.examples))
        groups = cut_row_groups([example.num_rows for example in said.examples])
        receipt = write_part(self.settings.folder, self.schema, said.unit, rows, groups, notes=said.notes, claim=claim)
        return {**said.notes, "bytes": receipt.bytes}

    def say(self, numbers: Sequence[int]) -> list[TeacherRow]:
        """What the teacher says about some rows, encoded as the folder stores it; nothing is written."""
        examples = self.examples.read(numbers)
        captured = self.said_about(examples, lambda tokens: None)
        return [self._row(example, captured.get(number)) for number, example in enumerate(examples)]

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
        )

    def _nothing(self, example: Example) -> Captured:
        """Zeros in every column, and NaN for the next token's log-probability."""
        capture, count = self.settings.capture, example.num_rows
        nothing = Captured(example.id)
        if self.settings.keeps_next:
            nothing.next_log_prob = np.full(count, np.nan, np.float32)
        for layer in capture.layer_numbers:
            if capture.keeps_states:
                nothing.hidden[layer] = self._zeros(layer, count)
            if capture.attention:
                nothing.attention[layer] = np.zeros(count, np.float32)
        if capture.top_k:
            values = np.float16 if capture.top_k_dtype == "fp16" else np.float32
            nothing.top_k_ids = np.zeros((count, capture.top_k), np.int32)
            nothing.top_k_values = np.zeros((count, capture.top_k), values)
            nothing.log_tails = np.zeros((len(capture.temperatures), count), np.float32)
        return nothing

    def _zeros(self, layer: int, count: int) -> EncodedTensor:
        zeros = np.zeros((count, self.settings.hidden_size), np.float32)
        return encode_float32(zeros, self.settings.capture.hidden_dtype, self.settings.scales.get(layer))


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
