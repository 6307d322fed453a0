"""What a run of `import` decides before its plan: whose capture it is, which row holds which example, what is missing.

It is a run of `cache-teacher` whose pages come from files: side, units, claims, receipts and seal are the same. A
DistillKit capture needs the teacher's configuration and tokenizer alone; of a speculators capture the teacher is loaded
for its final norm, its output head and its input embeddings, and no text goes through it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.captures.distillkit import DistillkitCapture, Kept
from sra_data.captures.files import digest_of
from sra_data.captures.matching import CUT, Matches, prefix_hashes
from sra_data.captures.speculators import SpeculatorsCapture, captured_layers
from sra_data.errors import CaptureError
from sra_data.models.decoder import length_border_of
from sra_data.models.final_norm import final_norm, is_normed
from sra_data.shards.store import ShardSet, Unit, is_done, is_in_store
from sra_data.stages.cache.choose import asked_teacher
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.parts import PartsWorker, UnitSettings
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.imports.options import ImportOptions
from sra_data.stages.imports.workers import CapturedStates, StatesWorker, TopKWorker, needed_ids
from sra_data.stages.units import unit_range
from sra_data.teacher.batching import CPU_BUDGET
from sra_data.teacher.loading import DTYPES, num_layers_of, read_config
from sra_data.teacher.spec import CaptureOptions, Dtype, TeacherSpec
from sra_data.terminal import Reporter, bytes_in_words

ROWS_AT_ONCE = 256
SHOWN = 8  # ids in a message
Capture = DistillkitCapture | SpeculatorsCapture


def open_capture(format: str, folder: str) -> Capture:
    """A capture by the name of its format.

    Raises:
        CaptureError: If the folder holds none.
    """
    return DistillkitCapture(folder) if format == "distillkit" else SpeculatorsCapture(folder)


class ImportRun(CacheRun):
    """One call of `import_capture`.

    Attributes:
        capture: what is imported.
        asked: the options.
        layers: that a speculators capture holds; none of DistillKit's.
    """

    name = "import"

    def __init__(self, capture: Capture, options: ImportOptions, shards: ShardSet, reporter: Reporter) -> None:
        self.capture = capture
        self.asked = options
        teacher = asked_teacher(shards, options.teacher)
        config = read_config(teacher)
        self._text_config = config.get_text_config(decoder=True)
        _refuse_longrope(self._text_config)
        self.layers: tuple[int, ...] = ()
        if isinstance(capture, SpeculatorsCapture):
            self.layers = captured_layers(
                options.captured_layers, num_captured=capture.num_layers, num_layers=num_layers_of(config)
            )
            _refuse_inner_layers(self.layers, num_layers_of(config))
        else:
            self.files = ()
        num_bytes = sum(path.stat().st_size for path in capture.files)
        reporter.line(f"taking the digest of {len(capture.files):,} files, {bytes_in_words(num_bytes)}")
        self._digest = digest_of(capture.files)
        super().__init__(_cache_options(capture, options, _as_saved(teacher, config)), shards, reporter)
        _refuse_uncaptured(self.layers, self.settings.capture.layer_numbers, capture)

    def apart(self) -> tuple[str, ...]:
        """Pages of another origin stand in another folder."""
        return ("import", self.capture.format)

    def _begun(self) -> UnitSettings:
        """What DistillKit's pages need of the teacher stands in its configuration."""
        settings = super()._begun()
        if not isinstance(self.capture, DistillkitCapture):
            return settings
        sizes = {name: int(getattr(self._text_config, name)) for name in ("hidden_size", "vocab_size")}
        return replace(
            settings,
            hidden_size=sizes["hidden_size"],
            vocabulary_size=sizes["vocab_size"],
            next_log_prob=False,
        )

    def inputs(self) -> dict[str, Any]:
        """What the pages depend on: the capture's content too."""
        origin = {"format": self.capture.format, "capture": self._digest, "captured_layers": list(self.layers)}
        return {**super().inputs(), **origin}

    def find(self) -> None:
        """Which rows the capture holds, and the rest of the settings.

        Raises:
            CaptureError: If too many are missing, or its states are not the teacher's.
        """
        self._refuse_missing()
        super().find()
        if isinstance(self.capture, SpeculatorsCapture):
            if self.capture.hidden_size != self.settings.hidden_size:
                raise CaptureError(
                    f"{self.capture.folder}: hidden states of {self.capture.hidden_size} channels, teacher "
                    f"{self.identity.name} has {self.settings.hidden_size}; name the captured model with --teacher"
                )
            if not self.had:
                self._refuse_normed(self.capture)

    @cached_property
    def _needed(self) -> NDArray[np.uint64]:
        """Hashes of the ids that each example of the side needs, 0 where nothing of it is kept."""
        found = np.zeros(len(self.examples.side), np.uint64)
        for first in range(0, len(found), ROWS_AT_ONCE):
            numbers = np.arange(first, min(first + ROWS_AT_ONCE, len(found)))
            for number, example in zip(numbers, self.examples.read(numbers), strict=True):
                if example.num_rows:
                    found[number] = prefix_hashes(needed_ids(example))[-1]
        return found

    @cached_property
    def matches(self) -> Matches:
        """Which captured row holds which example."""
        self.reporter.line(f"looking for the side's rows in {self.capture.folder}")
        matches = Matches(self._needed[self.examples.num_rows > 0])
        matches.look_at(self.capture.rows())
        return matches

    def _refuse_missing(self) -> None:
        """Refuse a capture that lacks more rows of the side than are let through.

        Raises:
            CaptureError: With how many of how many, the first of them, and what to do.
        """
        has_rows = np.flatnonzero(self.examples.num_rows > 0)
        found = self.matches.rows_of(self._needed[has_rows])
        missing, num_cut = has_rows[found < 0], int((found == CUT).sum())
        if len(missing) == len(has_rows) and not num_cut:
            raise CaptureError(
                f"{self.capture.folder}: not one of the {len(has_rows)} examples of {self.settings.side} is in its "
                f"{self.matches.num_captured} rows; {self._beginnings(int(missing[0]))}: capture the data that were "
                "aligned, by this teacher's tokenizer and template"
            )
        if len(missing) <= self.asked.max_missing:
            return
        why = "capture the data that were aligned"
        if num_cut == len(missing):
            why = (
                "they end where the capture does, which says nothing behind its last token: align with a "
                "--teacher-max-length below the capture's"
            )
        raise CaptureError(
            f"{self.capture.folder}: {len(missing)} of the {len(has_rows)} examples of {self.settings.side} are in "
            f"none of its {self.matches.num_captured} rows, the first {self.examples.side.index.id_of(int(missing[0]))}"
            f"; {why}, or let them through as failed with --max-missing {len(missing)}"
        )

    def _beginnings(self, number: int) -> str:
        """The first ids of an example and of the capture: what a template or a beginning token changes shows there."""
        (example,) = self.examples.read([number])
        captured = next(iter(self.capture.rows()), None)
        theirs = "none" if captured is None else " ".join(map(str, captured.ids[:SHOWN]))
        return f"example {example.id} begins with ids {' '.join(map(str, example.ids[:SHOWN]))}, its rows with {theirs}"

    @cached_property
    def source(self) -> CapturedStates:
        """A speculators capture with the teacher's final norm."""
        assert isinstance(self.capture, SpeculatorsCapture)
        return CapturedStates(self.capture, self.matches, self.layers, final_norm(self.teacher.model))

    def _refuse_normed(self, capture: SpeculatorsCapture) -> None:
        """Refuse last states that came through the final norm before they were stored: it would act twice.

        Raises:
            CaptureError: Saying so.
        """
        source, count = self.source, min(ROWS_AT_ONCE, len(capture.ids_of(0)))
        states = source.states(0, self.layers[-1], np.arange(count))
        states = states.to(self.teacher.device, self.teacher.dtype)
        if states.isfinite().all() and is_normed(source.norm, states):
            raise CaptureError(
                f"{self.capture.folder}: the states of its last layer came through the final norm already, "
                "speculators stores those before it; capture with its own server, or run `sra-data cache-teacher`"
            )

    def close(self) -> None:
        """Give back what was set down of the capture."""
        if "_kept" in self.__dict__:
            self._kept.close()

    def worker(self, *, waits: bool) -> PartsWorker:
        """What makes parts in this process."""
        if isinstance(self.capture, DistillkitCapture):
            return TopKWorker(self.settings, self.capture, self.matches, self._kept, waits=waits)
        return StatesWorker(self.settings, self.teacher, self.source, waits=waits)

    @cached_property
    def _kept(self) -> Kept:
        """The captured rows of the units that are to be done, at hand in the side's order."""
        assert isinstance(self.capture, DistillkitCapture)
        to_do = np.zeros(len(self.examples.side), bool)
        for unit in self._to_do():
            to_do[unit.start : unit.stop] = True
        rows = self.matches.rows_of(self._needed[to_do & (self.examples.num_rows > 0)])
        wanted = np.unique(rows[rows >= 0])
        self.reporter.line(f"reading {len(wanted):,} rows of {self.capture.folder}")
        scratch: Path | None = None if is_in_store(self.folder) else self.shards.path
        return self.capture.keep(wanted, scratch)

    def _to_do(self) -> list[Unit]:
        """Units that are not there, within those that were asked for."""
        units = self.units()
        start, stop = (None, None) if self.asked.units is None else unit_range(self.asked.units, len(units))
        return [unit for unit in units[start:stop] if not is_done(self.folder, unit)]


def _cache_options(capture: Capture, options: ImportOptions, teacher: TeacherSpec) -> CacheOptions:
    """The options by which `cache-teacher` would make such pages."""
    if isinstance(capture, DistillkitCapture):
        kept = CaptureOptions(hidden_dtype="none", attention=False, top_k=capture.form.k, temperatures=(1.0,))
    else:
        kept = CaptureOptions(
            layers=options.layers,
            hidden_dtype=options.hidden_dtype,
            attention=False,
            top_k=options.top_k,
            temperatures=options.temperatures,
        )
    return CacheOptions(
        shards=options.shards,
        teacher=teacher,
        side=options.side,
        capture=kept,
        batch_tokens=CPU_BUDGET,
        units=options.units,
        max_failed=options.max_missing,
        workspace=options.workspace,
    )


def _as_saved(teacher: TeacherSpec, config: Any) -> TeacherSpec:
    """The teacher in the dtype of its checkpoint, as a server opens it, where none was asked for."""
    said = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    names: dict[Any, Dtype] = {dtype: name for name, dtype in DTYPES.items()}
    return replace(teacher, dtype=teacher.dtype or names.get(said, "fp32"))


def _refuse_longrope(config: Any) -> None:
    """Refuse a teacher whose positions depend on the whole text's length: a server fixes them by its own longest text.

    Raises:
        CaptureError: Saying so.
    """
    border = length_border_of(config)
    if border is not None:
        raise CaptureError(
            f"teacher of type {config.model_type}: texts of more than {border} tokens are read by other frequencies "
            "(longrope), and no capture says by which it was; run `sra-data cache-teacher`"
        )


def _refuse_inner_layers(layers: tuple[int, ...], num_layers: int) -> None:
    """Refuse a capture without the last layer.

    Raises:
        CaptureError: Saying what reads it.
    """
    if layers[-1] != num_layers:
        raise CaptureError(
            f"--captured-layers {','.join(map(str, layers))}: without the last, {num_layers}, which every method reads "
            "through the head (inner ones alone need attention, which no such capture holds); capture with "
            "--include-last-layer"
        )


def _refuse_uncaptured(captured: tuple[int, ...], wanted: tuple[int, ...], capture: Capture) -> None:
    """Refuse to keep layers that the capture does not hold.

    Raises:
        CaptureError: Naming the first.
    """
    lacking = [layer for layer in wanted if captured and layer not in captured]
    if lacking:
        raise CaptureError(
            f"--layers {lacking[0]}: {capture.folder} holds the layers {', '.join(map(str, captured))}; choose of those"
        )
