"""What a folder of shards is made of: the manifest of the whole, one plan per folder, one receipt per part.

The plan is written before any work and never derived from the number of workers: which unit makes which part from
which rows. A receipt says that its part is there and whole; a part without one does not exist. The manifest names the
inputs (fingerprints) of every folder and, once all receipts are there, its sealed root.

Only the coordinating process writes plans and the manifest; workers write parts and receipts. Two coordinators (a job
array) take turns through a lock.
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
from sra_data.shards.durable import folder_lock, read_json, write_json

MANIFEST = "manifest.json"
PLAN = "plan.json"
GROUPS = {"sides": "side", "alignments": "alignment", "teachers": "teacher"}  # folders of folders, and their kinds
LONGEST_VALUE_SHOWN = 90


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

    def save(self, folder: Path) -> None:
        """Write plan.json."""
        units = [[unit.part, unit.start, unit.stop, unit.hint] for unit in self.units]
        write_json(folder / PLAN, {"format_version": FORMAT_VERSION, **asdict(self), "units": units}, is_flat=True)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read plan.json.

        Raises:
            ShardError: If it is missing, damaged or of another format version.
        """
        found = read_json(folder / PLAN, remedy=f"run the command that makes {folder.name} again")
        check_version(found, folder / PLAN)
        units = tuple(Unit(*unit) for unit in found["units"])
        return cls(found["kind"], found["fingerprint"], units, tuple(found["files"]), tuple(found["made_from"]))


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
        write_json(receipt_path(folder, self.part), asdict(self), is_flat=True)

    @classmethod
    def load(cls, folder: Path, part: int) -> Receipt:
        """Read it.

        Raises:
            ShardError: If it is missing or damaged.
        """
        path = receipt_path(folder, part)
        found = read_json(path, remedy=f"delete it and run the command that makes {folder.name} again")
        try:
            return cls(**found)
        except TypeError as error:
            raise ShardError(f"{path}: damaged ({error}); delete it and run the same command again") from error


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


class Manifest:
    """manifest.json of a folder of shards, as read at one moment.

    Sections are "corpus", "sides/<name>", "alignments/<name>" and "teachers/<name>": the folders' own names. A section
    is a dictionary with ``fingerprint`` (its inputs), ``root`` (None until sealed) and whatever its stage recorded.
    ``pairs`` remembers which teacher and student were asked to be aligned: what a command takes where it is not told.
    """

    def __init__(self, shards: Path, content: dict[str, Any]) -> None:
        self.shards = shards
        self.content = content

    @classmethod
    def load(cls, shards: Path) -> Manifest:
        """Read it.

        Raises:
            ShardError: If there is none, or it is damaged or of another format version.
        """
        path = shards / MANIFEST
        content = read_json(path, remedy="no shards here; run `sra-data align` first")
        check_version(content, path)
        return cls(shards, content)

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

    def update(self, name: str, values: Mapping[str, Any]) -> None:
        """Set values of a section, in memory alone."""
        group, _, key = name.partition("/")
        place = self.content.setdefault(group, {})
        (place.setdefault(key, {}) if key else place).update(values)

    def sealed(self, name: str) -> dict[str, Any]:
        """A section that is sealed.

        Raises:
            ShardError: If it was never begun or is unfinished; with the command that makes it.
        """
        found = self.section(name)
        if found is None or found.get("root") is None:
            state = "missing" if found is None else "unfinished"
            raise ShardError(f"{self.shards / name}: {state}; {command_for(name, self.shards)}")
        return found


def kind_of(section: str) -> str:
    """ "corpus", "side", "alignment" or "teacher"."""
    return GROUPS.get(section.partition("/")[0], "corpus")


def command_for(section: str, shards: Path) -> str:
    """The remedy for a missing or unfinished section."""
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
    shards.mkdir(parents=True, exist_ok=True)
    with folder_lock(shards):
        manifest = Manifest.load(shards) if Manifest.exists(shards) else Manifest(shards, _empty())
        for section, values in sections.items():
            manifest.update(section, values)
        known = manifest.pairs
        for pair in pairs:
            if dict(pair) not in known:
                known.append(dict(pair))
        if sections or known != manifest.pairs:
            manifest.content |= {"pairs": known} if known else {}
            write_json(shards / MANIFEST, manifest.content)
    return manifest


def record_pairs(shards: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Add pairs to the manifest, those that are there already aside; atomic, one process at a time."""
    record_all(shards, {}, pairs=pairs)


def _empty() -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION}


# --------------------------------------------------------------------------- beginning and going on


@dataclass(frozen=True)
class Beginning:
    """A folder to start, or to go on with.

    Attributes:
        section: "corpus", "sides/<name>", "alignments/<name>" or "teachers/<name>".
        fingerprint: everything the content depends on (JSON values), under names people understand.
        make_units: called only if there is no plan yet.
        files: names of files beside the parts without which the folder is not complete.
        made_from: sections it is made from.
        facts: what the manifest is to say of the folder from its beginning on (JSON values).
    """

    section: str
    fingerprint: Mapping[str, Any]
    make_units: Callable[[], Sequence[Unit]]
    files: Sequence[str] = ()
    made_from: Sequence[str] = ("corpus",)
    facts: Mapping[str, Any] | None = None


def begin(
    shards: Path, section: str, fingerprint: Mapping[str, Any], make_units: Callable[[], Sequence[Unit]], **others: Any
) -> Plan:
    """Start a folder, or go on with it: the plan that is there, or a new one written before any work.

    Args:
        shards: the whole folder; the others as in `Beginning`.

    Raises:
        ShardError: If the folder was begun from other inputs; names each that differs.
    """
    return begin_all(shards, [Beginning(section, fingerprint, make_units, **others)])[section]


def begin_all(
    shards: Path, beginnings: Sequence[Beginning], *, pairs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Plan]:
    """`begin` of several folders of one whole folder, which hears of all of them, and of `pairs`, in one write."""
    manifest = Manifest.load(shards) if Manifest.exists(shards) else None  # refuses another format, before all else
    plans: dict[str, Plan] = {}
    news: dict[str, Mapping[str, Any]] = {}
    for one in beginnings:
        plan, is_new = _plan_of(shards, one)
        known = (manifest and manifest.section(one.section)) or {}
        if is_new or known.get("fingerprint") != plan.fingerprint:
            news[one.section] = {"fingerprint": plan.fingerprint, "root": None, **(one.facts or {})}
        plans[one.section] = plan
    record_all(shards, news, pairs=pairs)
    return plans


def _plan_of(shards: Path, one: Beginning) -> tuple[Plan, bool]:
    """A folder's plan, written where there was none; whether it is new."""
    folder, kind = shards / one.section, kind_of(one.section)
    inputs: dict[str, Any] = json.loads(json.dumps(dict(one.fingerprint)))  # as they will be read back
    sources = () if kind == "corpus" else tuple(one.made_from)
    is_there = is_begun(shards, one.section)
    new = None if is_there else Plan(kind, inputs, tuple(one.make_units()), tuple(one.files), sources)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        if new is None or is_begun(shards, one.section):  # there before, or by another coordinator meanwhile
            plan = Plan.load(folder)
            refuse_if_changed(plan.fingerprint, inputs, where=folder)
            return plan, False
        _refuse_orphans(folder, new)
        new.save(folder)
    return new, True


def is_begun(shards: Path, section: str) -> bool:
    """Whether a folder has a plan."""
    return (shards / section / PLAN).is_file()


def _refuse_orphans(folder: Path, plan: Plan) -> None:
    """Parts without a plan were made from who knows what."""
    for unit in plan.units:
        path = receipt_path(folder, unit.part)
        if path.exists():
            raise ShardError(f"{path}: a receipt without {PLAN}; delete the folder {folder} and run the command again")


def refuse_if_changed(old: Mapping[str, Any], new: Mapping[str, Any], *, where: Path) -> None:
    """Refuse different inputs.

    Raises:
        ShardError: One line, field by field: ``teacher tokenizer: had X, got Y``.
    """
    had, got = _flat(old), _flat(new)
    names = [name for name in {**had, **got} if had.get(name, "nothing") != got.get(name, "nothing")]
    if names:
        listed = "; ".join(
            f"{name}: had {_short(had.get(name, 'nothing'))}, got {_short(got.get(name, 'nothing'))}" for name in names
        )
        raise ShardError(f"{where}: made from other inputs ({listed}); choose another folder or delete this one")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        words = f"{prefix}{str(name).replace('_', ' ')}"
        flat.update(_flat(item, f"{words}.") if isinstance(item, Mapping) else {words: item})
    return flat


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE_SHOWN else f"{text[:LONGEST_VALUE_SHOWN]}..."


def missing_units(folder: Path, plan: Plan) -> list[Unit]:
    """The units still to do: those without a receipt, or whose part is gone or has another size than it says."""
    return [unit for unit in plan.units if not is_done(folder, unit)]


def is_done(folder: Path, unit: Unit) -> bool:
    """Whether a unit's part exists: its receipt does, and the file has the size it says."""
    if not receipt_path(folder, unit.part).exists():
        return False
    receipt = Receipt.load(folder, unit.part)
    path = part_path(folder, unit.part)
    return path.exists() and path.stat().st_size == receipt.bytes


def notes_of(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """What the makers of the parts that are there counted, in order."""
    return [Receipt.load(folder, unit.part).notes for unit in plan.units if is_done(folder, unit)]


def rows_root(canonical: str, row_hashes: bytes) -> str:
    """sha256 over a part's column definitions and its rows' hashes (uint64, little endian): the content."""
    return hashlib.sha256(canonical.encode() + b"\n" + row_hashes).hexdigest()


def folder_root(rows_roots: Sequence[str], files: Mapping[str, str]) -> str:
    """sha256 over the parts' rows_roots in order and the other files' sha256: what a folder is sealed with."""
    return hashlib.sha256(json.dumps([list(rows_roots), dict(sorted(files.items()))]).encode()).hexdigest()
