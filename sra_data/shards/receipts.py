"""Receipts of the files beside the parts, and the seal over all metadata of a folder.

Every JSON file seals itself (durable.py), so a flipped bit is named by its file. A sealed section of the manifest binds
them together: ``seal`` holds the sha256 of its own facts, the seal of its plan, one digest over the seals of all
receipts in order, and the seals of the receipts of the files beside the parts. A receipt holds the hash of its file's
header (a part's footer), the facts the sha256 of the index, and the manifest the seal of all of it. So nothing that is
read can be another file's, an older one or an edited one, and opening a folder reads no more than its small files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from sra_data.errors import ShardError
from sra_data.shards.durable import explain, read_document, sealed_bytes, sha256_of, write_sealed
from sra_data.shards.manifest import (
    PLAN,
    Plan,
    Receipt,
    command_for,
    facts_digest,
    is_in_store,
    pull,
    receipt_path,
    refuse_if_changed_on_disk,
    repair_for,
)
from sra_data.shards.metadata import LONGEST_HEADER, FileReceiptRecord, HeaderRecord, checked, checked_header
from sra_data.shards.stores.mirror import mirror_of

# Files beside the parts that are in no plan: written only where they are asked for, at any time.
UNPLANNED = ("nearest.safetensors",)
LENGTH_BYTES = 8  # of a safetensors file's header


@dataclass(frozen=True)
class FileReceipt:
    """The receipt of a file beside the parts: its size, its sha256, the xxh3_64 of its header, and its own seal."""

    bytes: int
    sha256: str
    header: str
    seal: str


def write_file_receipt(folder: Path, name: str) -> None:
    """Write the receipt of a file beside the parts."""
    write_sealed(file_receipt_path(folder, name), _said_of_file(folder / name), is_flat=True)


def file_receipt_bytes(folder: Path, name: str) -> bytes:
    """What `write_file_receipt` writes."""
    return sealed_bytes(_said_of_file(folder / name), is_flat=True)


def _said_of_file(path: Path) -> dict[str, Any]:
    text = header_bytes(path, remedy="report this")
    header = xxhash.xxh3_64_hexdigest(text)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path), "header": header}


def file_receipt_path(folder: Path, name: str) -> Path:
    """head.safetensors -> head.receipt.json."""
    return (folder / name).with_suffix(".receipt.json")


def has_file(folder: Path, name: str) -> bool:
    """Whether a file beside the parts is there with its receipt (the receipt is written last)."""
    return file_receipt_path(folder, name).is_file()


def file_receipt(folder: Path, name: str) -> FileReceipt:
    """The receipt of a file beside the parts, checked against the file's size.

    Raises:
        ShardError: If either is missing or damaged, or the size differs.
    """
    remedy = remedy_for_file(folder, name)
    document = read_document(file_receipt_path(folder, name), remedy=remedy)
    found = checked(FileReceiptRecord, document.value, where=file_receipt_path(folder, name), remedy=remedy)
    refuse_if_changed_on_disk(document, file_receipt_path(folder, name), remedy=remedy)
    path = folder / name
    is_there = is_in_store(folder) and not path.exists()  # there its receipt was put after it
    if not is_there and (not path.is_file() or path.stat().st_size != found.bytes):
        raise ShardError(f"{path}: missing or not {found.bytes} bytes long; {remedy}")
    return FileReceipt(found.bytes, found.sha256, found.header, found.seal)


def remedy_for_file(folder: Path, name: str) -> str:
    """What to do about a file beside the parts that is damaged."""
    return f"{repair_for(folder)}, or delete {name} with its receipt and run the command that makes {folder.name} again"


def header_bytes(path: Path, *, remedy: str) -> bytes:
    """The JSON header of a safetensors file, with the 8 bytes of its length.

    Raises:
        ShardError: If the file is too short to have one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= LONGEST_HEADER else b""
    except OSError as error:
        raise explain(error, path, "reading") from error
    if len(start) != LENGTH_BYTES or len(text) != length:
        raise ShardError(f"{path}: damaged (a header of {length} bytes in {path.stat().st_size}); {remedy}")
    return start + text


def checked_file(folder: Path, name: str) -> tuple[FileReceipt, HeaderRecord, int]:
    """A file beside the parts: its receipt, its header as the receipt knows it, and where its tensors begin.

    Raises:
        ShardError: If one is missing or damaged; the tensors themselves are not read.
    """
    receipt, path, remedy = file_receipt(folder, name), folder / name, remedy_for_file(folder, name)
    mirror = mirror_of(folder)
    if mirror is None or path.exists():
        text = header_bytes(path, remedy=remedy)
    else:
        text = mirror.header(path, receipt.sha256, LONGEST_HEADER)
    if xxhash.xxh3_64_hexdigest(text) != receipt.header:
        raise ShardError(f"{path}: header damaged, its hash is not the receipt's; {remedy}")
    num_bytes = receipt.bytes - len(text)
    return receipt, checked_header(text[LENGTH_BYTES:], num_bytes=num_bytes, where=path, remedy=remedy), len(text)


def fetched_file(folder: Path, name: str) -> Path:
    """Where a file beside the parts is, whole; one in a store is brought here.

    Raises:
        ShardError: If it or its receipt is missing or damaged.
    """
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.fetch(folder / name, file_receipt(folder, name).sha256)
    return folder / name


# --------------------------------------------------------------------------- the seal of a folder


@dataclass(frozen=True)
class FolderMetadata:
    """All metadata of a folder, as it is now.

    Attributes:
        plan: its plan.
        receipts: of all parts by number.
        files: receipts of the files beside the parts, of the plan or not.
        seal: what a section that is sealed with it says, its facts aside.
    """

    plan: Plan
    receipts: dict[int, Receipt]
    files: dict[str, FileReceipt]
    seal: dict[str, Any]


def read_metadata(folder: Path, *, unplanned: tuple[str, ...] | None = None) -> FolderMetadata:
    """Read and check it; `unplanned` files are looked for, those that are there by default.

    Raises:
        ShardError: If a file is missing or damaged, or a receipt is not of its unit of the plan.
    """
    plan, plan_seal = Plan.read(folder)
    receipts: dict[int, Receipt] = {}
    digest = hashlib.sha256()
    for unit in plan.units:
        receipt, sealed = Receipt.read(folder, unit.part)
        if receipt.rows != unit.stop - unit.start:
            problem = f"{receipt.rows} rows, the plan says {unit.start}:{unit.stop}"
            raise ShardError(f"{receipt_path(folder, unit.part)}: {problem}; {repair_for(folder)}")
        receipts[unit.part] = receipt
        digest.update(sealed.encode())
    others = [name for name in UNPLANNED if has_file(folder, name)] if unplanned is None else unplanned
    files = {name: checked_file(folder, name)[0] for name in (*plan.files, *others)}
    seals = {name: receipt.seal for name, receipt in files.items()}
    return FolderMetadata(plan, receipts, files, {"plan": plan_seal, "receipts": digest.hexdigest(), "files": seals})


def check_metadata(shards: Path, section: str, facts: Mapping[str, Any]) -> FolderMetadata:
    """The metadata of a sealed folder, which must be what it was sealed with.

    Args:
        shards: the whole folder.
        section: which folder of it.
        facts: its section of the manifest.

    Raises:
        ShardError: Naming the file that is not what was sealed, or the folder that is gone.
    """
    try:
        return _checked_metadata(shards, section, facts)
    except ShardError:
        if not pull(shards / section):
            raise
    return _checked_metadata(shards, section, facts)  # as the store has it now


def _checked_metadata(shards: Path, section: str, facts: Mapping[str, Any]) -> FolderMetadata:
    folder, sealed = shards / section, facts["seal"]
    if not folder.is_dir():
        raise ShardError(f"{folder}: missing; {command_for(section, shards)}")
    known = tuple(name for name in UNPLANNED if name in sealed["files"])
    found = read_metadata(folder, unplanned=known)
    remedy = f"{repair_for(folder)}, or {command_for(section, shards)}"
    if found.seal["plan"] != sealed["plan"]:
        raise ShardError(f"{folder / PLAN}: not the plan that was sealed; {remedy}")
    if found.seal["receipts"] != sealed["receipts"]:
        raise ShardError(f"{folder}: its parts' receipts are not those that were sealed; {remedy}")
    for name in {**found.seal["files"], **sealed["files"]}:
        if found.seal["files"].get(name) != sealed["files"].get(name):
            raise ShardError(f"{file_receipt_path(folder, name)}: not the receipt that was sealed; {remedy}")
    _refuse_other_counts(folder, facts, found)
    return found


def _refuse_other_counts(folder: Path, facts: Mapping[str, Any], found: FolderMetadata) -> None:
    """What the manifest counts is what plan and receipts count."""
    receipts = found.receipts.values()
    planned = [receipt.bytes for name, receipt in found.files.items() if name in found.plan.files]
    counts = {
        "fingerprint": found.plan.fingerprint,
        "num_parts": len(found.plan.units),
        "num_rows": sum(receipt.rows for receipt in receipts),
        "num_bytes": sum(receipt.bytes for receipt in receipts) + sum(planned),
    }
    for name, count in counts.items():
        if facts[name] != count:
            raise ShardError(f"{folder}: {name} {facts[name]} in the manifest, {count} on disk; {repair_for(folder)}")


def is_as_sealed(shards: Path, section: str, facts: Mapping[str, Any]) -> bool:
    """Whether the metadata of a folder is what it was sealed with, all files beside its parts included."""
    if facts.get("root") is None:
        return False
    return _is_as_sealed(shards / section, facts) or (
        pull(shards / section) and _is_as_sealed(shards / section, facts)  # as the store has it now
    )


def _is_as_sealed(folder: Path, facts: Mapping[str, Any]) -> bool:
    try:
        found = read_metadata(folder)
    except ShardError:
        return False
    return {**found.seal, "facts": facts_digest(facts)} == facts["seal"]
