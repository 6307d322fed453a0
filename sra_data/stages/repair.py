"""`sra-data repair`: throws away exactly what is broken, and says which command makes it again.

A part goes with its receipt, a file beside the parts with its own, a section of the manifest that does not say what it
said goes from there; what was whole stays. The folder is unsealed, so that the command that made it does what is
missing and seals it again. What needs neither a model nor the user's text is made here: an index from its parts, a plan
from the manifest and a neighbour's plan (all folders are cut alike). What does not belong together although every file
is whole is told and left alone: throwing away days of a teacher's work is the user's to decide.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra_data.endings import Ending, Told
from sra_data.errors import ShardError
from sra_data.shards.columns import FORMAT_VERSION
from sra_data.shards.durable import SEAL, read_document
from sra_data.shards.index import INDEX
from sra_data.shards.manifest import (
    GROUPS,
    MANIFEST,
    PLAN,
    Manifest,
    Plan,
    Unit,
    command_for,
    is_begun,
    kind_of,
    missing_units,
    pull_manifest,
    record,
)
from sra_data.shards.receipts import UNPLANNED, check_metadata, file_receipt_path
from sra_data.shards.store import folder_of, seal, take_away
from sra_data.stages.list import go_on
from sra_data.stages.verify import Broken, Findings, verify_folder
from sra_data.terminal import Reporter


@dataclass(frozen=True)
class RepairSummary(Told):
    """What was done, and what is to do.

    Attributes:
        thrown_away: files (and sections of the manifest) that were broken.
        remade: files that were made again here.
        commands: what makes the rest again, each once, with the folders it is for.
        left: problems that no deleting mends, one line each.
    """

    shards: str
    thrown_away: tuple[str, ...]
    remade: tuple[str, ...]
    commands: tuple[str, ...]
    left: tuple[str, ...]

    def ending(self) -> Ending:
        """It in words."""
        did = [f"threw away {name}" for name in self.thrown_away] + [f"made {name} again" for name in self.remade]
        title = f"{self.shards}: nothing is broken" if not did and not self.left else ""
        following = None if self.commands or self.left else f"sra-data list {shlex.quote(self.shards)}"
        return Ending(title, (), (*did, *self.commands), next=following)

    def refuse_if_left(self) -> None:
        """Raise what could not be repaired as one error.

        Raises:
            ShardError: If there is anything.
        """
        if self.left:
            more = f" (and {len(self.left) - 1} more problems)" if len(self.left) > 1 else ""
            raise ShardError(self.left[0] + more)


@dataclass
class _Work:
    """What has been done so far."""

    shards: Path
    thrown_away: list[str] = field(default_factory=list)
    remade: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def throw_away(self, path: Path) -> None:
        """Delete a file, if it is there."""
        if take_away(path):
            self.thrown_away.append(str(path.relative_to(self.shards)))


def repair(shards: str | Path, reporter: Reporter) -> RepairSummary:
    """Repair a folder of shards. Interrupted, it does the rest when it is called again.

    Raises:
        ShardError: If there are no shards, or of another format version.
    """
    work = _Work(folder_of(shards, whole=True))
    manifest = _trusted_manifest(work)
    known = _with_what_is_on_disk(manifest)
    found = Findings()
    with reporter.task(
        "repair", sum((known.section(name) or {}).get("num_bytes") or 0 for name in known.sections)
    ) as t:
        for name in known.sections:
            verify_folder(known, name, found, t)
    by_section: dict[str, list[tuple[Broken, str]]] = {}
    for broken, problem in zip(found.broken, found.problems, strict=True):
        by_section.setdefault(broken.section, []).append((broken, problem))
    for name, problems in by_section.items():
        _repair_folder(work, manifest, name, problems)
    return RepairSummary(
        str(shards), tuple(work.thrown_away), tuple(work.remade), _commands(work.shards, known), tuple(work.left)
    )


# --------------------------------------------------------------------------- the manifest


def _trusted_manifest(work: _Work) -> Manifest:
    """The manifest without what it does not vouch for; thrown away where it is not even of its form."""
    path = work.shards / MANIFEST
    try:
        manifest, edited = Manifest.load_anyway(work.shards)
    except ShardError:
        if not path.is_file() or _is_of_another_format(path):
            raise
        work.throw_away(path)
        return Manifest(work.shards, {"format_version": FORMAT_VERSION})
    if edited is not None:
        # A sealed section vouches for itself. Of the others and the pairs nothing does; the commands write them anew.
        wrong = [name for name in manifest.sections if not _vouches_for_itself(manifest, name)]
        for name in wrong:
            group, _, key = name.partition("/")
            del (manifest.content[group] if key else manifest.content)[key or group]
        manifest.content.pop("pairs", None)
        manifest.seen = pull_manifest(work.shards)
        manifest.write()
        work.thrown_away += [f"{MANIFEST}: {name}" for name in (*wrong, "pairs")]
    return manifest


def _vouches_for_itself(manifest: Manifest, name: str) -> bool:
    return (manifest.section(name) or {}).get("root") is not None and manifest.has_its_facts(name)


def _is_of_another_format(path: Path) -> bool:
    """Whether it is whole and says so; one that seals itself and does not fit its seal is only damaged."""
    try:
        document = read_document(path, remedy="")
    except ShardError:
        return False
    is_damaged = SEAL in document.value and not document.is_whole
    return document.value.get("format_version") != FORMAT_VERSION and not is_damaged


def _with_what_is_on_disk(manifest: Manifest) -> Manifest:
    """The manifest, in memory, with the folders it does not know as unfinished ones: their parts can be checked."""
    shards = manifest.shards
    folders = ["corpus", *(f"{group}/{path.name}" for group in GROUPS for path in sorted((shards / group).glob("*")))]
    content: dict[str, Any] = {**manifest.content, **{group: dict(manifest.content.get(group, {})) for group in GROUPS}}
    known = Manifest(shards, content)
    for name in folders:
        if known.section(name) is None and is_begun(shards, name):
            known.update(name, {"root": None})
    return known


# --------------------------------------------------------------------------- one folder


def _repair_folder(work: _Work, manifest: Manifest, name: str, problems: list[tuple[Broken, str]]) -> None:
    folder, section = work.shards / name, manifest.section(name)
    whats = {broken.what for broken, _ in problems} - {"unfinished"}
    for broken, problem in problems:
        if broken.what == "part":
            stem = broken.name.removesuffix(".parquet")
            work.throw_away(folder / f"{stem}.receipt.json")  # first: a part without a receipt does not exist
            work.throw_away(folder / broken.name)
        elif broken.what == "file":
            work.throw_away(file_receipt_path(folder, broken.name))
            work.throw_away(folder / broken.name)
        elif broken.what == "index":
            work.throw_away(folder / INDEX)
        elif broken.what == "plan":
            _repair_plan(work, manifest, name, problem)
        elif broken.what == "rows":
            work.left.append(problem)
    if section is None or section.get("root") is None or not whats or whats == {"rows"}:
        return
    if whats != {"index"} or not _is_indexed_again(work, name, section):
        record(work.shards, name, root=None)


def _is_indexed_again(work: _Work, name: str, section: Mapping[str, Any]) -> bool:
    """Whether the index could be written from the parts, and the root is what it was."""
    try:
        check_metadata(work.shards, name, section)
        is_same = seal(work.shards, name).root == section["root"]
    except ShardError:
        return False  # what it is made from is not sealed: the command does it
    if is_same:
        work.remade.append(f"{name}/{INDEX}")
    return is_same


def _repair_plan(work: _Work, manifest: Manifest, name: str, problem: str) -> None:
    """A plan from the manifest's word and the units of a neighbour; without any part there is nothing to plan for."""
    folder, section = work.shards / name, manifest.section(name) or {}
    has_parts = any(folder.glob("part-*.receipt.json"))
    units = _units_of_a_neighbour(manifest, name)
    if has_parts and (units is None or section.get("root") is None):
        work.left.append(f"{problem}; its parts are of no use without it: delete the folder {folder}")
        return
    work.throw_away(folder / PLAN)
    if has_parts and units is not None:
        files = tuple(file for file in section["seal"]["files"] if file not in UNPLANNED)
        made_from = tuple(section.get("made_from", {}))
        Plan(kind_of(name), section["fingerprint"], units, files, made_from).save(folder)
        work.remade.append(f"{name}/{PLAN}")


def _units_of_a_neighbour(manifest: Manifest, name: str) -> tuple[Unit, ...] | None:
    """All folders are cut alike; the hints of the maker, which only the corpus has, are found anew by its command."""
    for other in manifest.sections:
        try:
            units = Plan.load(manifest.shards / other).units if other != name else ()
        except ShardError:
            continue
        if units:
            return tuple(Unit(unit.part, unit.start, unit.stop) for unit in units)
    return None


# --------------------------------------------------------------------------- what is to do


def _commands(shards: Path, known: Manifest) -> tuple[str, ...]:
    """The commands that make what is missing, in the order in which one folder is made from another."""
    manifest = Manifest.load(shards) if Manifest.exists(shards) else Manifest(shards, {})
    steps: dict[str, list[str]] = {}
    for name in known.sections:
        section = manifest.section(name)
        if section is None:
            steps.setdefault(command_for(name, shards), []).append(name)
        elif section.get("root") is None or not _is_complete(shards, name):
            steps.setdefault(go_on(manifest, name), []).append(name)
    return tuple(f"{', '.join(names)}: {step}" for step, names in steps.items())


def _is_complete(shards: Path, name: str) -> bool:
    try:
        return not missing_units(shards / name, Plan.load(shards / name))
    except ShardError:
        return False
