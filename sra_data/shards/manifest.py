"""What a folder of shards is made of: the manifest of the whole, one plan per folder, one receipt per part.

The plan is written before any work and never derived from the number of workers: which unit makes which part from
which rows. A receipt says that its part is there and whole; a part without one does not exist. The manifest names the
inputs (fingerprints) of every folder and, once all receipts are there, its sealed root.

Only the coordinating process writes plans and the manifest; workers write parts and receipts. Two coordinators (a job
array) take turns through a lock, and share the parts out by claims (claims.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sra_data.errors import ShardError
from sra_data.shards.columns import FORMAT_VERSION, refuse_version
from sra_data.shards.durable import (
    SEAL,
    Document,
    folder_lock,
    make_folder,
    read_document,
    sealed_bytes,
    write_sealed,
)
from sra_data.shards.metadata import ManifestRecord, PlanRecord, ReceiptRecord, checked
from sra_data.shards.stores.mirror import mirror_of
from sra_data.shards.stores.remote import Seen

MANIFEST = "manifest.json"
PLAN = "plan.json"
TRIES = 20  # to change a manifest in a store that others change at the same time
GROUPS = {"sides": "side", "alignments": "alignment", "teachers": "teacher"}  # folders of folders, and their kinds


@dataclass(frozen=True)
class Unit:
    """One piece of work: rows [start, stop) of the corpus become part number `part`. `hint` is the maker's own."""

    part: int
    start: int
    stop: int
    hint: Any = None

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"part-{self.part:05d}"


@dataclass(frozen=True)
class Plan:
    """A folder's inputs and its units.

    Attributes:
        kind: "corpus", "side", "alignment" or "teacher".
        fingerprint: everything the content depends on.
        units: which part is made of which rows.
        files: names of files it needs beside its parts (say head.safetensors).
        made_from: sections whose rows were read to make it; their roots are recorded when it is sealed.
    """

    kind: str
    fingerprint: dict[str, Any]
    units: tuple[Unit, ...]
    files: tuple[str, ...] = ()
    made_from: tuple[str, ...] = ()

    def save(self, folder: Path) -> bool:
        """Write plan.json, in a store only where there is none; whether the one that is there is this one."""
        units = [[unit.part, unit.start, unit.stop, unit.hint] for unit in self.units]
        said = {"format_version": FORMAT_VERSION, **asdict(self), "units": units}
        mirror = mirror_of(folder)
        if mirror is not None:
            return mirror.publish_plan(folder / PLAN, sealed_bytes(said, is_flat=True))
        write_sealed(folder / PLAN, said, is_flat=True)
        return True

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read plan.json.

        Raises:
            ShardError: If it is missing, damaged or of another format version.
        """
        return cls.read(folder)[0]

    @classmethod
    def read(cls, folder: Path) -> tuple[Plan, str]:
        """It and its seal; raises as `load` does."""
        path = folder / PLAN
        document = read_document(path, remedy=f"run the command that makes {folder.name} again")
        check_version(document.value, path)
        found = checked(PlanRecord, document.value, where=path, remedy=repair_for(folder))
        refuse_if_changed_on_disk(document, path, remedy=repair_for(folder))
        units = tuple(Unit(*unit) for unit in found.units)
        return cls(found.kind, found.fingerprint, units, tuple(found.files), tuple(found.made_from)), found.seal


@dataclass(frozen=True)
class Receipt:
    """Proof that a part is there and whole.

    Attributes:
        part: its number.
        rows: rows in it.
        row_groups: rows of each row group.
        bytes: size of the file.
        sha256: of the file's bytes.
        footer: xxh3_64 of the file's Parquet footer: checked whenever the part is opened.
        rows_root: sha256 over the columns' definition and every row's hash: the content, whatever the file's bytes.
        notes: what its maker counted (any JSON).
    """

    part: int
    rows: int
    row_groups: list[int]
    bytes: int
    sha256: str
    footer: str
    rows_root: str
    notes: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write part-NNNNN.receipt.json."""
        write_sealed(receipt_path(folder, self.part), asdict(self), is_flat=True)

    @classmethod
    def load(cls, folder: Path, part: int) -> Receipt:
        """Read it.

        Raises:
            ShardError: If it is missing or damaged.
        """
        return cls.read(folder, part)[0]

    @classmethod
    def read(cls, folder: Path, part: int) -> tuple[Receipt, str]:
        """It and its seal; raises as `load` does."""
        path, remedy = receipt_path(folder, part), repair_for(folder)
        document = read_document(path, remedy=remedy)
        found = checked(ReceiptRecord, document.value, where=path, remedy=remedy)
        refuse_if_changed_on_disk(document, path, remedy=remedy)
        if found.part != part:
            raise ShardError(f"{path}: says it is of part {found.part}; {remedy}")
        return cls(**{name: value for name, value in found if name != SEAL}), found.seal


def receipt_bytes(receipt: Receipt) -> bytes:
    """What `Receipt.save` writes."""
    return sealed_bytes(asdict(receipt), is_flat=True)


def refuse_if_changed_on_disk(document: Document, path: Path, *, remedy: str) -> None:
    """Refuse a file whose own seal is not that of its bytes.

    Raises:
        ShardError: If so.
    """
    if not document.is_whole:
        raise ShardError(f"{path}: damaged or edited, its seal is not that of its content; {remedy}")


def shards_of(folder: Path) -> Path:
    """The whole folder of shards that a folder of parts is in."""
    return folder.parent if folder.name == "corpus" else folder.parent.parent


def repair_for(folder: Path) -> str:
    """The remedy for metadata of a folder of parts that is damaged."""
    return f"run `sra-data repair {shards_of(folder)}`"


def part_path(folder: Path, part: int) -> Path:
    """Where a part is."""
    return folder / f"part-{part:05d}.parquet"


def receipt_path(folder: Path, part: int) -> Path:
    """Where its receipt is."""
    return folder / f"part-{part:05d}.receipt.json"


def check_version(found: Mapping[str, Any], path: Path) -> None:
    """Refuse another format version.

    Raises:
        ShardError: With the remedy.
    """
    refuse_version(found.get("format_version") if isinstance(found, Mapping) else None, where=path)


# --------------------------------------------------------------------------- the manifest


class SealedFacts(dict[str, Any]):
    """What the manifest says of a sealed section; a fact that it does not say is refused in one line."""

    def __init__(self, facts: Mapping[str, Any], *, where: Path) -> None:
        super().__init__(facts)
        self.where = where

    def __missing__(self, name: str) -> Any:
        shards = shards_of(self.where)
        section = self.where.relative_to(shards).as_posix()
        raise ShardError(f"{self.where}: {MANIFEST} does not say its {name}; {command_for(section, shards)}")


class ManifestChanged(ShardError):
    """A manifest in a store is no longer what was read."""


class Manifest:
    """manifest.json of a folder of shards, as read at one moment.

    Sections are "corpus", "sides/<name>", "alignments/<name>" and "teachers/<name>": the folders' own names. A section
    is a dictionary with ``fingerprint`` (its inputs), ``root`` (None until sealed) and whatever its stage recorded.
    ``pairs`` remembers which teacher and student were asked to be aligned: what a command takes where it is not told.
    """

    def __init__(self, shards: Path, content: dict[str, Any]) -> None:
        self.shards = shards
        self.content = content
        self.seen: Seen | None = None  # of a folder in a store: what it was read from

    @classmethod
    def load(cls, shards: Path) -> Manifest:
        """Read it.

        Raises:
            ShardError: If there is none, or it is damaged or of another format version.
        """
        manifest, problem = cls.load_anyway(shards)
        if problem is not None:
            raise problem
        return manifest

    @classmethod
    def load_anyway(cls, shards: Path) -> tuple[Manifest, ShardError | None]:
        """Read it, damaged or edited by hand as it may be, as long as it has the form of one; and what is wrong.

        Raises:
            ShardError: If there is none, or it is of another format version, or not even of its form.
        """
        path, remedy = shards / MANIFEST, f"run `sra-data repair {shards}`"
        document = read_document(path, remedy="no shards here; run `sra-data align` first")
        check_version(document.value, path)
        checked(ManifestRecord, document.value, where=path, remedy=remedy)
        manifest = cls(shards, {name: value for name, value in document.value.items() if name != SEAL})
        if document.is_whole:
            return manifest, None
        wrong = [name for name in manifest.sections if not manifest.has_its_facts(name)]
        what = f"what it says of {', '.join(wrong)} was changed" if wrong else "its seal is not that of its content"
        return manifest, ShardError(f"{path}: damaged or edited, {what}; {remedy}")

    @classmethod
    def exists(cls, shards: Path) -> bool:
        """Whether the folder holds shards at all."""
        return (shards / MANIFEST).is_file()

    def names(self, group: str) -> list[str]:
        """Names of the sides, alignments or teachers, sorted."""
        return sorted(self.content.get(group, {}))

    @property
    def sections(self) -> list[str]:
        """All sections, in the order in which one is made from another."""
        found = ["corpus"] if "corpus" in self.content else []
        return found + [f"{group}/{name}" for group in GROUPS for name in self.names(group)]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """The (teacher, student) pairs that were aligned, in the order in which they were."""
        return list(self.content.get("pairs", []))

    def section(self, name: str) -> dict[str, Any] | None:
        """A section, or None if that folder was never begun."""
        group, _, key = name.partition("/")
        found = self.content.get(group)
        return found.get(key) if found is not None and key else found

    def has_its_facts(self, name: str) -> bool:
        """Whether a section that is sealed says what it said when it was written."""
        found = self.section(name) or {}
        return found.get("root") is None or found[SEAL]["facts"] == facts_digest(found)

    def write(self) -> None:
        """Write it, sealed anew: every sealed section's facts, and the whole.

        Raises:
            ShardError: If it says what no manifest may, or the disk refuses.
        """
        for name in self.sections:
            found = self.section(name) or {}
            if found.get("root") is None:
                found.pop(SEAL, None)
            elif SEAL in found:
                found[SEAL] = {**found[SEAL], "facts": facts_digest(found)}
        path = self.shards / MANIFEST
        content = json.loads(json.dumps(self.content))  # as it will be read back
        checked(ManifestRecord, {**content, SEAL: ""}, where=path, remedy="nothing was written; report this")
        mirror = mirror_of(self.shards)
        if mirror is None:
            write_sealed(path, self.content)
        elif not mirror.replace_manifest(sealed_bytes(self.content), self.seen):
            raise ManifestChanged(f"{path}: changed by another machine meanwhile; run the same command again")

    def record(self, sections: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]] = ()) -> None:
        """Set values of sections and add pairs that are not there, and write it if anything changes by that."""
        for section, values in sections.items():
            self.update(section, values)
        known = self.pairs
        for pair in pairs:
            if dict(pair) not in known:
                known.append(dict(pair))
        if sections or known != self.pairs:
            self.content |= {"pairs": known} if known else {}
            self.write()

    def update(self, name: str, values: Mapping[str, Any]) -> None:
        """Set values of a section, in memory alone."""
        group, _, key = name.partition("/")
        place = self.content.setdefault(group, {})
        (place.setdefault(key, {}) if key else place).update(values)

    def sealed(self, name: str) -> SealedFacts:
        """A section that is sealed.

        Raises:
            ShardError: If it was never begun or is unfinished; with the command that makes it.
        """
        found = self.section(name)
        if found is None or found.get("root") is None:
            state = "missing" if found is None else "unfinished"
            remedy = command_for(name, self.shards, imported=(found or {}).get("imported"))
            raise ShardError(f"{self.shards / name}: {state}; {remedy}")
        return SealedFacts(found, where=self.shards / name)


def facts_digest(section: Mapping[str, Any]) -> str:
    """sha256 of what a section says, its seal aside, whatever the order."""
    facts = {name: value for name, value in section.items() if name != SEAL}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def kind_of(section: str) -> str:
    """ "corpus", "side", "alignment" or "teacher"."""
    return GROUPS.get(section.partition("/")[0], "corpus")


def command_for(section: str, shards: Path, *, imported: Mapping[str, Any] | None = None) -> str:
    """The remedy for a missing or unfinished section; `imported`: what it says of its origin."""
    if imported:
        return f"run `sra-data import {imported['format']} CAPTURE {shards}` (run again, it does what is missing)"
    if kind_of(section) == "teacher":
        return f"run `sra-data cache-teacher {shards}` (run again, it does what is missing)"
    return f"run `sra-data align ... --out {shards}` with the same arguments, it does what is missing"


def record(shards: Path, section: str, **values: Any) -> Manifest:
    """Set values of a section in the manifest, creating either; atomic, one process at a time.

    Returns:
        The manifest as written.
    """
    return record_all(shards, {section: values})


def record_all(
    shards: Path, sections: Mapping[str, Mapping[str, Any]], *, pairs: Sequence[Mapping[str, Any]] = ()
) -> Manifest:
    """`record` of several sections in one write; `pairs` are added, those that are there already aside."""
    return change_manifest(shards, lambda manifest: manifest.record(sections, pairs))


def change_manifest(shards: Path, change: Callable[[Manifest], None]) -> Manifest:
    """Change the manifest as it is, an empty one where there is none; nobody else changes it meanwhile.

    In a store it is replaced only if it still is what was read; if not, it is read and changed again.

    Args:
        shards: the whole folder.
        change: what to do with it; it calls `record` or `write` of the manifest.

    Returns:
        It as written.

    Raises:
        ShardError: If it is damaged, the disk or the store refuses, or others change it all the time.
    """
    make_folder(shards)
    with folder_lock(shards):
        for _ in range(TRIES):
            seen = pull_manifest(shards)
            manifest = Manifest.load(shards) if Manifest.exists(shards) else Manifest(shards, _empty())
            manifest.seen = seen
            try:
                change(manifest)
                return manifest
            except ManifestChanged:
                continue
    raise ShardError(f"{shards / MANIFEST}: others changed it {TRIES} times meanwhile; run the same command again")


def pull_manifest(shards: Path) -> Seen | None:
    """Make the manifest what it is in its store; what was seen of it there, None where there is none or no store."""
    mirror = mirror_of(shards)
    return None if mirror is None else mirror.pull_manifest()


def record_pairs(shards: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Add pairs to the manifest, those that are there already aside; atomic, one process at a time."""
    record_all(shards, {}, pairs=pairs)


def _empty() -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION}


def is_begun(shards: Path, section: str) -> bool:
    """Whether a folder has a plan; of a folder in a store its small files are brought here."""
    pull(shards / section)
    return (shards / section / PLAN).is_file()


def is_in_store(folder: Path) -> bool:
    """Whether a folder stands for one in a store: parts are here only while they are made."""
    return mirror_of(folder) is not None


def pull(folder: Path) -> bool:
    """Make the small files of a folder of parts what they are in its store; False where it is in none."""
    mirror = mirror_of(folder)
    if mirror is None:
        return False
    mirror.pull(mirror.key(folder))
    return True


def missing_units(folder: Path, plan: Plan) -> list[Unit]:
    """The units still to do: those without a receipt, or whose part is gone or has another size than it says."""
    pull(folder)
    return [unit for unit in plan.units if not is_done(folder, unit)]


def is_done(folder: Path, unit: Unit) -> bool:
    """Whether a unit's part exists: its receipt does, and the file has the size it says.

    Of a folder in a store the receipt alone says it: it was put there after its part, which is not here.
    """
    if not receipt_path(folder, unit.part).exists():
        return False
    receipt = Receipt.load(folder, unit.part)
    path = part_path(folder, unit.part)
    return is_in_store(folder) or (path.exists() and path.stat().st_size == receipt.bytes)


def notes_of(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """What the makers of the parts that are there counted, in order."""
    return [Receipt.load(folder, unit.part).notes for unit in plan.units if is_done(folder, unit)]


def rows_root(canonical: str, row_hashes: bytes) -> str:
    """sha256 over a part's column definitions and its rows' hashes (uint64, little endian): the content."""
    return hashlib.sha256(canonical.encode() + b"\n" + row_hashes).hexdigest()


def folder_root(rows_roots: Sequence[str], files: Mapping[str, str]) -> str:
    """sha256 over the parts' rows_roots in order and the other files' sha256: what a folder is sealed with."""
    return hashlib.sha256(json.dumps([list(rows_roots), dict(sorted(files.items()))]).encode()).hexdigest()
