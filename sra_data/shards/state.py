"""How far a folder that was begun is: what `sra-data list` shows of it, without opening a part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sra_data.shards.manifest import Manifest, Plan, Receipt, is_done, is_in_store
from sra_data.shards.receipts import file_receipt, has_file


@dataclass(frozen=True)
class FolderState:
    """How far a folder is.

    Attributes:
        section: its name.
        num_units: of its plan; `num_done` of them are there.
        num_bytes: of the parts that are there and the files beside them.
        num_part_bytes: of the parts alone.
        is_sealed: whether nothing is missing and the manifest has its root.
    """

    section: str
    num_units: int
    num_done: int
    num_bytes: int
    num_part_bytes: int
    is_sealed: bool


def state_of(shards: Path, section: str) -> FolderState:
    """How far a folder that was begun is.

    Raises:
        ShardError: If its plan is missing or damaged.
    """
    folder = shards / section
    plan = Plan.load(folder)
    done = [unit for unit in plan.units if is_done(folder, unit)]
    part_bytes = sum(Receipt.load(folder, unit.part).bytes for unit in done)
    beside = [size for name in plan.files if (size := _bytes_beside(folder, name)) is not None]
    has_root = (Manifest.load(shards).section(section) or {}).get("root") is not None
    return FolderState(
        section=section,
        num_units=len(plan.units),
        num_done=len(done),
        num_bytes=part_bytes + sum(beside),
        num_part_bytes=part_bytes,
        is_sealed=has_root and len(done) == len(plan.units) and len(beside) == len(plan.files),
    )


def _bytes_beside(folder: Path, name: str) -> int | None:
    """Bytes of a file beside the parts; None where it is not there."""
    if is_in_store(folder):
        return file_receipt(folder, name).bytes if has_file(folder, name) else None
    path = folder / name
    return path.stat().st_size if path.is_file() else None
