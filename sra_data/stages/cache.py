"""`cache-teacher`: the teacher reads the corpus once, and what it says is written down.

The order: inputs are checked and their fingerprint compared with what is there; what has to be found by trying (batch
tokens, int8's channel scales) is found once and kept in the plan; missing units are done, in this process or a pool;
when no unit is missing the folder is sealed and its faithfulness measured. A rerun does exactly what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_data.engines.local import Work, run_units
from sra_data.errors import ModelError, ShardError
from sra_data.models.decoder import input_embeddings
from sra_data.models.output_head import OutputHead
from sra_data.shards.codecs import EncodedTensor, estimate_channel_scales, scales_to_text
from sra_data.shards.manifest import PLAN, Manifest, Plan, Receipt, Unit
from sra_data.shards.reader import FolderReader
from sra_data.shards.store import begin, missing_units, record, save_embeddings, save_head, seal
from sra_data.stages.cache_options import (
    CacheOptions,
    capture_options,
    check_options,
    choose_alignment,
    choose_units,
)
from sra_data.stages.cache_size import PagesSize, files_size, ids_that_occur, pages_size, refuse_small_disk
from sra_data.stages.cache_unit import (
    COLUMNS,
    CacheWorker,
    MakeWorker,
    UnitSettings,
    example_of,
    examples_of,
    refuse_failed,
)
from sra_data.stages.faithfulness import describe as describe_faithfulness
from sra_data.stages.faithfulness import measure, refuse_unfaithful
from sra_data.stages.sampling import sample_rows
from sra_data.teacher.batching import find_batch_tokens
from sra_data.teacher.capture import CaptureOptions, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, TeacherIdentity, default_dtype, identify, split_revision
from sra_data.terminal import Reporter, bytes_in_words

SECTION = "teacher"
FILES = ("head.safetensors", "embeddings.safetensors")
CALIBRATION_EXAMPLES = 64
FAITHFULNESS_EXAMPLES = 16


@dataclass(frozen=True)
class CacheSummary:
    """What was done.

    Attributes:
        shards: the folder.
        teacher: the teacher's name.
        root: the sealed root, None while units are missing.
        num_units, num_done, num_missing: of the plan; done now; still missing.
        num_examples, num_tokens, num_positions: cached in all; by span, positions are spans.
        granularity: "token" or "span".
        num_bytes: of the teacher's folder; `bytes_per_position` of its parts alone.
        num_failed, num_splits: examples with numbers that are not finite; batches that had to be split.
        faithfulness: see faithfulness.py; empty while units are missing.
    """

    shards: str
    teacher: str
    root: str | None
    num_units: int
    num_done: int
    num_missing: int
    num_examples: int
    num_tokens: int
    num_positions: int
    num_bytes: int
    bytes_per_position: float
    num_failed: int
    num_splits: int
    granularity: str = "token"
    faithfulness: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """It in words."""
        row = "span" if self.granularity == "span" else "position"
        examples = f"{self.num_examples:,} examples, {self.num_positions:,} {row}s"
        lines = [
            f"{self.shards}/teacher: {examples} of {self.teacher}",
            f"{bytes_in_words(self.num_bytes)} on disk, {self.bytes_per_position:,.0f} bytes a {row}",
            f"units: {self.num_done} done now, {self.num_missing} missing, of {self.num_units}",
        ]
        if self.num_failed or self.num_splits:
            lines.append(
                f"examples with NaN or infinity: {self.num_failed} · batches split for memory: {self.num_splits}"
            )
        if self.root is None:
            lines.append("unfinished: run the same command again for the missing units")
        return lines + describe_faithfulness(self.faithfulness)


def cache_teacher(options: CacheOptions, reporter: Reporter) -> CacheSummary:
    """Do what is missing of the teacher's pages.

    Raises:
        ConfigError: For options that cannot be carried out.
        ModelError: For a teacher that cannot be loaded or captured as asked.
        ShardError: Where there is no sealed corpus, the folder was made from other inputs, or the disk is too small.
    """
    shards = Path(options.shards)
    corpus = Manifest.load(shards).sealed("corpus")
    check_options(options)
    run = CacheRun(options, shards, corpus, identify_teacher(options, corpus), reporter)
    plan = begin(shards, SECTION, run.fingerprint(), run.corpus_units, files=FILES)
    folder = shards / SECTION
    missing = choose_units(missing_units(folder, plan), options.units, len(plan.units))
    refuse_small_disk(folder, run.size_of(missing))
    run.write_files()
    run.do(missing)
    if missing_units(folder, plan):
        return run.summary(plan, num_done=len(missing))
    known = Manifest.load(shards).section(SECTION) or {}
    if missing or known.get("root") is None or "faithfulness" not in known:
        _refuse_failures(folder, plan, options.max_failed)
        seal(shards, SECTION, run.facts(plan))
        run.measure_faithfulness()
    return run.summary(plan, num_done=len(missing))


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

    # ------------------------------------------------------------------- what is decided before the plan

    def _settings(self) -> UnitSettings:
        """Everything a unit depends on; what an existing plan has decided is taken from it."""
        options, identity = self.options, self.identity
        device = options.device or _default_device()
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

    # ------------------------------------------------------------------- the work

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

    def _tokens_of(self, unit: Unit) -> int:
        numbers = self.corpus.index
        part = slice(unit.start, unit.stop)
        return int(numbers.num_tokens[part][numbers.num_positions[part] > 0].sum())

    def do(self, missing: list[Unit]) -> None:
        """The missing units, with a live line."""
        if not missing:
            return
        total = sum(self._tokens_of(unit) for unit in missing)
        with ExitStack() as stack, self.reporter.task("cache-teacher", total=total, unit="tokens") as task:
            num_bytes = num_positions = 0
            make_worker = self._make_worker(stack)
            workers = self.options.num_workers
            done = run_units(missing, make_worker, num_workers=workers, advance=lambda tokens: task.advance(tokens))
            for number, (_, notes) in enumerate(done, start=1):
                num_bytes, num_positions = num_bytes + notes["bytes"], num_positions + notes["positions"]
                task.advance(
                    0,
                    units=f"{number}/{len(missing)}",
                    bytes_per_token=f"{num_bytes / max(num_positions, 1):,.0f}",
                    disk_free=bytes_in_words(shutil.disk_usage(self.shards).free),
                )

    def _make_worker(self, stack: ExitStack) -> Callable[[], Work]:
        """What makes a worker: here, with the teacher at hand, until `stack` closes; or in a process of a pool."""
        if self.options.num_workers > 1:
            return MakeWorker(self.settings, max(1, torch.get_num_threads() // self.options.num_workers))

        def here() -> Work:
            worker = CacheWorker(self.settings, self.teacher)
            stack.callback(worker.close)
            return worker

        return here

    def write_files(self) -> None:
        """The output head, and the input embeddings of the ids that occur, where they are not there yet."""
        folder = self.shards / SECTION
        if not (folder / "head.receipt.json").is_file():
            tensors, metadata = OutputHead.from_model(self.teacher.model).state()
            save_head(folder, {name: _stored(tensor) for name, tensor in tensors.items()}, metadata)
        if not (folder / "embeddings.receipt.json").is_file():
            embeddings = input_embeddings(self.teacher.model)
            ids = self.ids_that_occur
            weight = None if embeddings.is_tied else _stored(embeddings.weight.detach()[ids.tolist()])
            save_embeddings(folder, ids, weight, {"scale": repr(embeddings.scale)})

    @cached_property
    def ids_that_occur(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """All teacher ids of the corpus, ascending."""
        return ids_that_occur(
            self.corpus,
            self.corpus_units(),
            vocabulary_size=self.teacher.vocabulary_size,
            teacher=self.identity.name,
        )

    def measure_faithfulness(self) -> None:
        """Compare sampled rows with the live teacher; keep the numbers; unseal where they are too far apart."""
        with FolderReader(self.shards, SECTION, corpus=self.corpus) as reader:
            failed = set(reader.facts.get("failed_examples", []))
            sampled = sample_rows(reader.index.num_positions, FAITHFULNESS_EXAMPLES)
            rows = [int(row) for row in sampled if reader.index.id_of(int(row)) not in failed]
            if not rows:
                record(self.shards, SECTION, faithfulness={"examples": 0})
                return
            examples = examples_of(self.corpus.read(rows, COLUMNS), rows, self.alignment)
            found = measure(
                self.teacher,
                self.settings.capture,
                examples,
                reader.read(rows),
                batch_tokens=self.settings.batch_tokens,
            )
        record(self.shards, SECTION, faithfulness=found)
        try:
            refuse_unfaithful(found, hidden_dtype=self.settings.capture.hidden_dtype, where=str(self.shards / SECTION))
        except ShardError:
            record(self.shards, SECTION, root=None)
            raise

    # ------------------------------------------------------------------- what is told

    def facts(self, plan: Plan) -> dict[str, Any]:
        """What the manifest says about the teacher's pages beside their root."""
        settings = self.settings
        notes = _notes(self.shards / SECTION, plan)
        return {
            "name": self.identity.name,
            "revision": self.identity.revision,
            "adapter": settings.adapter,
            "num_layers": self.identity.num_layers,
            "layers": list(settings.capture.layers),
            "hidden_size": settings.hidden_size,
            "vocabulary_size": settings.vocabulary_size,
            "hidden_dtype": settings.capture.hidden_dtype,
            "attention": settings.capture.attention,
            "top_k": settings.capture.top_k,
            "temperatures": list(settings.capture.temperatures) if settings.capture.top_k else [],
            "num_samples": settings.capture.num_samples,
            "alignment": settings.alignment,
            "failed_examples": [name for note in notes for name in note["failed"]],
            "num_splits": sum(note["splits"] for note in notes),
        }

    def summary(self, plan: Plan, *, num_done: int) -> CacheSummary:
        """The numbers of the whole folder."""
        folder = self.shards / SECTION
        notes = _notes(folder, plan)
        section = Manifest.load(self.shards).section(SECTION) or {}
        part_bytes = sum(path.stat().st_size for path in folder.glob("part-*.parquet"))
        positions = sum(note["positions"] for note in notes)
        return CacheSummary(
            shards=str(self.shards),
            teacher=self.identity.name,
            root=section.get("root"),
            num_units=len(plan.units),
            num_done=num_done,
            num_missing=len(missing_units(folder, plan)),
            num_examples=sum(note["examples"] for note in notes),
            num_tokens=sum(note["tokens"] for note in notes),
            num_positions=positions,
            num_bytes=part_bytes + sum((folder / name).stat().st_size for name in FILES),
            bytes_per_position=part_bytes / max(positions, 1),
            num_failed=sum(len(note["failed"]) for note in notes),
            num_splits=sum(note["splits"] for note in notes),
            granularity=self.settings.capture.granularity,
            faithfulness=section.get("faithfulness", {}) if section.get("root") else {},
        )


# --------------------------------------------------------------------------- the teacher


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


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# --------------------------------------------------------------------------- folder


def _notes(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """The notes of all parts that are done."""
    missing = {unit.part for unit in missing_units(folder, plan)}
    return [Receipt.load(folder, unit.part).notes for unit in plan.units if unit.part not in missing]


def _refuse_failures(folder: Path, plan: Plan, max_failed: int) -> None:
    refuse_failed([name for note in _notes(folder, plan) for name in note["failed"]], max_failed)


def _stored(tensor: Any) -> Any:
    """A torch tensor as the shards hold it: bfloat16 as its bit pattern."""
    if tensor.dtype == torch.bfloat16:
        return EncodedTensor("bf16", tensor.contiguous().view(torch.uint16).cpu().numpy())
    return tensor.contiguous().cpu().numpy()
