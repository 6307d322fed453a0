"""``sra-data verify``: whether everything on disk is what was written, and belongs together.

Every file's bytes against its receipt's sha256, every value against its hash, every part's rows against the receipt's
rows_root, every index and root against the manifest, every folder against those it was made from: their roots, and row
by row ids, order, parts and the number of a teacher's positions; spans within the tokens they count; every seal over
metadata. ``deep`` also asks a teacher again about a sample and compares. All problems are collected, one line each,
with what is broken (`Broken`), which `repair` throws away; nothing is changed here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ShardError
from sra_data.shards.durable import sha256_of
from sra_data.shards.index import INDEX, Index, index_table, read_index
from sra_data.shards.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Plan,
    Receipt,
    Unit,
    command_for,
    folder_root,
    kind_of,
    part_path,
    receipt_path,
)
from sra_data.shards.part import DamagedPart, check_part, damaged, forget_part, open_part, sha256_of_part
from sra_data.shards.receipts import (
    UNPLANNED,
    check_metadata,
    checked_file,
    fetched_file,
    has_file,
    remedy_for_file,
)
from sra_data.shards.schema import TeacherRow
from sra_data.shards.seal import check_root, compare_rows
from sra_data.shards.store import FolderReader, ShardSet, folder_of, is_in_store, sides_of
from sra_data.stages.sampling import sample_rows
from sra_data.terminal import Reporter, Task, bytes_in_words

ROWS_AT_ONCE = 256
Recapture = Callable[[ShardSet, str, Sequence[int]], list[TeacherRow]]
Spans = NDArray[np.int32]
Result = TypeVar("Result")
What = Literal["manifest", "facts", "unfinished", "plan", "index", "part", "file", "seal", "rows"]


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify.

    Attributes:
        shards: the folder, or a place in a store.
        deep: also run a teacher again on a sample.
        teacher: which one, by the name of its pages, the start of it or the model's; the only one where None.
        sample: how many examples `deep` asks about, evenly spread.
        max_relative_error: of hidden states, and of log-probabilities in nats, that `deep` lets pass: another machine
            or batch rounds differently.
    """

    shards: str | Path
    deep: bool = False
    teacher: str | None = None
    sample: int = 16
    max_relative_error: float = 0.05


@dataclass(frozen=True)
class Broken:
    """One thing that is wrong.

    Attributes:
        section: where; empty for the manifest as a whole.
        what: a "part" or a "file" beside the parts (or their receipts), an "index", a "plan", the "facts" of a section,
            the whole "manifest"; "unfinished": nothing is wrong but the end; "seal" and "rows": every file is as its
            receipt says, and they do not belong together.
        name: of the file; empty where it is no single one.
    """

    section: str
    what: What
    name: str = ""


@dataclass(frozen=True)
class VerifySummary(Told):
    """What was looked at and what is wrong.

    Attributes:
        folders: sections verified.
        num_parts: parts read whole.
        num_rows: rows read, over all folders.
        num_bytes: bytes read.
        num_recaptured: examples the teacher was asked about again.
        problems: one line each: what, where, value, remedy.
        broken: what each of them is about, in the same order.
        shards: the folder.
    """

    folders: tuple[str, ...]
    num_parts: int
    num_rows: int
    num_bytes: int
    num_recaptured: int
    problems: tuple[str, ...]
    broken: tuple[Broken, ...] = ()
    shards: str = "shards"

    def ending(self) -> Ending:
        """It in words, without the problems, which are raised."""
        facts = Grid.of_facts(
            ("parts", f"{self.num_parts:,}"), ("rows", f"{self.num_rows:,}"), ("read", bytes_in_words(self.num_bytes))
        )
        remarks = []
        if self.num_recaptured:
            remarks.append(f"the teacher said the same about {self.num_recaptured} examples")
        if not self.problems:
            remarks.append("all is as the manifest says")
        following = f"sra-data {'repair' if self.problems else 'list'} {shlex.quote(self.shards)}"
        return Ending(", ".join(self.folders), (facts,), tuple(remarks), next=following)

    def refuse_if_damaged(self) -> None:
        """Raise the problems as one error.

        Raises:
            ShardError: If there are any.
        """
        if self.problems:
            more = f" (and {len(self.problems) - 1} more problems)" if len(self.problems) > 1 else ""
            raise ShardError(self.problems[0] + more)


def verify(options: VerifyOptions, reporter: Reporter, recapture: Recapture | None = None) -> VerifySummary:
    """Verify a whole folder of shards.

    Args:
        options: what to verify.
        reporter: shows progress in bytes.
        recapture: for `deep`: what a teacher (by the name of its pages) says now about rows of these numbers, encoded
            as its folder stores them.

    Raises:
        ShardError: If there is no manifest to verify against, or no teacher, or several, to ask again. Everything else
            is in the summary.
    """
    assert recapture is not None or not options.deep, "deep needs a way to ask the teacher"
    place = folder_of(options.shards, whole=True)
    manifest, edited = Manifest.load_anyway(place)
    teacher = ShardSet(place, manifest).choose_teacher(options.teacher) if options.deep else None
    names, found = manifest.sections, Findings()
    if edited is not None:
        found.add(Broken("", "manifest", MANIFEST), str(edited))
    sections = [manifest.section(name) or {} for name in names]
    with reporter.task("verify", sum(section.get("num_bytes") or 0 for section in sections), "bytes") as task:
        for name in names:
            verify_folder(manifest, name, found, task)
    if not found.problems:  # rows can be compared once every one of them reads
        with ShardSet.open(place) as shards:
            for name in names:
                found.collect(Broken(name, "rows"), _verify_spans, shards, name)
            if teacher is not None and recapture is not None:
                pages = Broken(f"teachers/{teacher}", "rows")
                found.collect(pages, _verify_deep, shards, teacher, options, recapture, found)
    counts = found.num_parts, found.num_rows, found.num_bytes, found.num_recaptured
    return VerifySummary(tuple(names), *counts, tuple(found.problems), tuple(found.broken), str(options.shards))


class Findings:
    """What has been counted, and the problems so far, with what they are about."""

    def __init__(self) -> None:
        self.num_parts = self.num_rows = self.num_bytes = self.num_recaptured = 0
        self.problems: list[str] = []
        self.broken: list[Broken] = []

    def add(self, about: Broken, problem: str) -> None:
        """A problem."""
        self.broken.append(about)
        self.problems.append(problem)

    def collect(self, about: Broken, step: Callable[..., Result], *arguments: object) -> Result | None:
        """Do a step; what it refuses becomes a line, and None is returned."""
        try:
            return step(*arguments)
        except ShardError as error:
            self.add(about, str(error))
            return None


def verify_folder(manifest: Manifest, name: str, found: Findings, task: Task) -> None:
    """Everything that can be checked within one folder; of an unfinished one, what is there."""
    folder, before = manifest.shards / name, len(found.problems)
    section = manifest.section(name) or {}
    is_sealed = found.collect(Broken(name, "unfinished"), manifest.sealed, name) is not None
    if not manifest.has_its_facts(name):
        found.add(Broken(name, "facts", MANIFEST), f"{folder}: its facts in {MANIFEST} are not those that were sealed")
    plan = found.collect(Broken(name, "plan", PLAN), Plan.load, folder)
    if plan is None:
        return
    index = None
    if is_sealed:
        index = found.collect(Broken(name, "index", INDEX), _index_of, folder, name, section["index_sha256"])
    receipts: list[Receipt] = []
    for unit in plan.units:
        if is_sealed or receipt_path(folder, unit.part).exists():
            about = Broken(name, "part", part_path(folder, unit.part).name)
            receipt = found.collect(about, _verify_part, folder, unit, index)
            if receipt is not None:
                receipts.append(receipt)
                task.advance(receipt.bytes, folder=name)
    for extra in dict.fromkeys([*plan.files, *UNPLANNED, *((section.get("seal") or {}).get("files", ()))]):
        is_needed = is_sealed and (extra in plan.files or extra in section["seal"]["files"])
        if is_needed or has_file(folder, extra):
            found.collect(Broken(name, "file", extra), _verify_file, folder, extra)
    found.num_parts += len(receipts)
    found.num_rows += sum(receipt.rows for receipt in receipts)
    found.num_bytes += sum(receipt.bytes for receipt in receipts)
    if len(found.problems) == before:
        found.collect(Broken(name, "seal"), check_metadata, manifest.shards, name, section)
    if len(found.problems) == before:
        found.collect(Broken(name, "rows"), _verify_root, manifest, name, plan, receipts)


def _index_of(folder: Path, name: str, sha256: str) -> Index:
    return read_index(folder, kind=kind_of(name), sha256=sha256)


def _verify_part(folder: Path, unit: Unit, index: Index | None) -> Receipt:
    """A part's bytes, values, rows and, once there is one, its lines of the index; returns its receipt."""
    receipt = Receipt.load(folder, unit.part)
    path = part_path(folder, unit.part)
    if not path.is_file() and not is_in_store(folder):
        raise damaged(path, "file", "missing")
    if receipt.rows != unit.stop - unit.start:
        raise damaged(path, "receipt", f"{receipt.rows} rows, the plan says {unit.start}:{unit.stop}")
    try:
        _read_whole(folder, receipt, unit, index)  # which value it is says more than the file's sum does
    except DamagedPart:
        if not (is_in_store(folder) and forget_part(folder, receipt)):
            raise
        _read_whole(folder, receipt, unit, index)  # once more, from the store
    if sha256_of_part(folder, receipt) != receipt.sha256:
        raise damaged(path, "file", "sha256 is not the receipt's")
    return receipt


def _read_whole(folder: Path, receipt: Receipt, unit: Unit, index: Index | None) -> None:
    """Every value of a part against its hash, every row against the index, all of them against the receipt."""
    path = part_path(folder, unit.part)
    with open_part(folder, receipt) as part:
        keys, hashes = check_part(part)
        if index is not None:
            first = int(np.searchsorted(index.part, unit.part))
            rows = slice(first, first + receipt.rows)
            got = index_table(keys, hashes, receipt)
            had = index.row_hash[rows], np.asarray(index.ids[rows].to_pylist(), object)
            if len(had[0]) != receipt.rows:
                raise damaged(path, "rows", f"{receipt.rows}, {INDEX} has {len(had[0])}")
            ids = np.asarray(got.column("id").to_pylist(), object)
            differs = np.flatnonzero((got.column("row_hash").to_numpy() != had[0]) | (ids != had[1]))
            if len(differs):
                row = int(differs[0])
                raise damaged(path, f"row {first + row}, example {had[1][row]}", f"not that of {INDEX}")
        check_root(part.schema, hashes, receipt, path)


def _verify_file(folder: Path, name: str) -> None:
    """A file beside the parts: its header, and its bytes."""
    receipt = checked_file(folder, name)[0]  # refuses a file that is not there
    if sha256_of(fetched_file(folder, name)) != receipt.sha256:
        raise ShardError(f"{folder / name}: damaged; {remedy_for_file(folder, name)}")


def _verify_root(manifest: Manifest, name: str, plan: Plan, receipts: Sequence[Receipt]) -> None:
    """The sealed root, and what the folder was made from."""
    section = manifest.sealed(name)
    folder = manifest.shards / name
    files = {extra: checked_file(folder, extra)[0].sha256 for extra in plan.files}
    root = folder_root([receipt.rows_root for receipt in receipts], files)
    if root != section["root"]:
        raise ShardError(f"{folder}: root {root[:12]}, the manifest has {section['root'][:12]}; make the folder again")
    made_from = section.get("made_from", {})
    if set(made_from) != set(plan.made_from):
        raise ShardError(
            f"{folder}: made from {', '.join(plan.made_from) or 'nothing'} by its plan, from "
            f"{', '.join(made_from) or 'nothing'} by the manifest; {command_for(name, manifest.shards)}"
        )
    index = read_index(folder, sha256=section["index_sha256"])
    for base, known in made_from.items():
        facts = manifest.sealed(base)
        if known != facts["root"]:
            roots = f"made from {base} {known[:12]}, the manifest has {facts['root'][:12]}"
            raise ShardError(f"{folder}: {roots}; delete it and {command_for(name, manifest.shards)}")
        rows = read_index(manifest.shards / base, sha256=facts["index_sha256"])
        compare_rows(rows, index, where=folder, granularity=section["granularity"], base_name=base)


# ---------------------------------------------------------------------------------------------------- row by row


def _verify_spans(shards: ShardSet, name: str) -> None:
    """What counts in tokens lies within them: a side's responses and labels, an alignment's spans, a teacher's rows."""
    reader = {"side": shards.side, "alignment": shards.alignment, "teacher": shards.teacher}.get(kind_of(name))
    if reader is None:
        return
    opened = reader(name.partition("/")[2])
    if kind_of(name) == "teacher":
        _verify_span_counts(shards, opened)
        return
    check = _check_side if kind_of(name) == "side" else _check_alignment
    for first in range(0, len(opened), ROWS_AT_ONCE):
        check(shards, opened, np.arange(first, min(first + ROWS_AT_ONCE, len(opened))))


def _check_side(shards: ShardSet, reader: FolderReader, numbers: NDArray[np.int64]) -> None:
    """Responses and labels in order within the tokens; one that was cut off is empty, wherever it stands."""
    for row in reader.read(numbers, ["ids", "response_spans", "label_spans"]):
        for name in ("response_spans", "label_spans"):
            spans: Spans = getattr(row, name)
            where = f"{reader.folder}: example {row.id}, {name}"
            _refuse_bad_spans(spans[spans[:, 0] != spans[:, 1]], len(row.ids), where)


def _check_alignment(shards: ShardSet, reader: FolderReader, numbers: NDArray[np.int64]) -> None:
    """Spans in order within the tokens of both sides, as many on the left as on the right."""
    left, right = (shards.side(side).index.num_tokens[numbers].tolist() for side in sides_of(reader.folder.name))
    for row, num_left, num_right in zip(reader.read(numbers), left, right, strict=True):
        where = f"{reader.folder}: example {row.id}"
        _refuse_bad_spans(row.left_spans, num_left, f"{where}, left_spans")
        _refuse_bad_spans(row.right_spans, num_right, f"{where}, right_spans")
        if len(row.left_spans) != len(row.right_spans):
            counts = f"{len(row.left_spans)} left spans, {len(row.right_spans)} right spans"
            raise ShardError(f"{where}: {counts}; run `sra-data align` again into an empty folder")


def _refuse_bad_spans(spans: Spans, num_tokens: int, where: str) -> None:
    flat = spans.reshape(-1)  # half-open, in order, disjoint: start < stop <= start < stop ...
    is_sound = np.all(spans[:, 0] < spans[:, 1]) and np.all(np.diff(flat) >= 0)
    if len(flat) and not (is_sound and flat[0] >= 0 and flat[-1] <= num_tokens):
        raise ShardError(f"{where}: not in order within {num_tokens} tokens; run `sra-data align` again")


def _verify_span_counts(shards: ShardSet, reader: FolderReader) -> None:
    """Pages by span have as many rows as their alignment has spans; by token, sealing and roots have said it."""
    if reader.facts["granularity"] != "span":
        return
    alignment = shards.alignment(reader.facts["alignment"].partition("/")[2])
    had, spans = reader.index.num_positions, alignment.index.num_spans
    differs = np.flatnonzero(had != spans)
    if len(differs):
        row = int(differs[0])
        raise ShardError(
            f"{reader.folder}: example {reader.index.id_of(row)}: {had[row]} rows, {alignment.section} has "
            f"{spans[row]} spans; delete it and {command_for(reader.section, shards.path)}"
        )


def _verify_deep(shards: ShardSet, teacher: str, options: VerifyOptions, recapture: Recapture, found: Findings) -> None:
    """Ask a teacher again about examples spread over the corpus, and compare with what is cached."""
    pages = shards.teacher(teacher)
    failed = set(pages.facts.get("failed_examples", []))  # zeros stand in their place
    spread = sample_rows(pages.index.num_positions, options.sample)
    numbers = [row for row in spread.tolist() if pages.index.id_of(row) not in failed]
    cached: list[TeacherRow] = pages.read(numbers)
    live = recapture(shards, teacher, numbers)
    exact = (pages.facts.get("imported") or {}).get("exact_k") or None  # behind it values were read off a fitted curve
    for row, now in zip(cached, live, strict=True):
        for name, error in _errors(row, now, exact).items():
            if not error <= options.max_relative_error:  # NaN is not small
                found.add(
                    Broken(pages.section, "rows"),
                    f"{pages.folder}: example {row.id}, {name}: the teacher now says otherwise, error {error:.2g} "
                    f"above {options.max_relative_error}; was the model changed? Delete the folder and run `sra-data "
                    "cache-teacher` again",
                )
    found.num_recaptured += len(cached)


def _errors(cached: TeacherRow, live: TeacherRow, exact: int | None = None) -> dict[str, float]:
    """Relative errors by column, and mean differences of log-probabilities in nats: of the first `exact` of a top k."""
    errors: dict[str, float] = {}
    for layer, tensor in cached.hidden.items():
        errors[f"hidden.{layer}"] = _relative(tensor.float32(), live.hidden[layer].float32())
    for layer, attention in cached.attention.items():
        errors[f"attention.{layer}"] = _relative(attention, live.attention[layer])
    if cached.next_log_prob is not None and live.next_log_prob is not None:
        errors["next_log_prob"] = _mean_difference(cached.next_log_prob, live.next_log_prob)
    if cached.top_k_values is not None and live.top_k_values is not None:
        first = slice(exact)
        errors["top_k.values"] = _mean_difference(cached.top_k_values[:, first], live.top_k_values[:, first])
    return errors


def _mean_difference(cached: NDArray[np.floating], live: NDArray[np.floating]) -> float:
    """In nats. NaN on both sides is agreement: nothing follows the last token of an example that was cut."""
    if cached.shape != live.shape:
        return float("inf")
    differs = np.abs(cached.astype(np.float64) - live.astype(np.float64))
    return float(differs[~(np.isnan(cached) & np.isnan(live))].sum() / max(differs.size, 1))


def _relative(cached: NDArray[np.float32], live: NDArray[np.float32]) -> float:
    if cached.shape != live.shape:
        return float("inf")
    return float(np.linalg.norm(cached - live) / max(float(np.linalg.norm(live)), 1e-30))
