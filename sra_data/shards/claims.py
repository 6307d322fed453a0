"""Who makes what: any number of processes on one folder, by one rule.

A part is claimed before it is made: by the lock on the temporary file of its receipt, which ends with the process that
holds it, however that ends. Nothing has to be cleaned up, and no clock is asked. The receipt, that very file renamed,
ends the claim in the same moment in which the part is there. Who finds a part claimed does others first, and then
waits: either the receipt comes, or the lock is his, and he makes the part. Files beside the parts are claimed likewise.

Plans, the index and the manifest need no claim: they are written whole, one process at a time, and two processes that
write them write the same.

In a folder that stands for a store (stores/mirror.py) claims are among the processes of one machine. Between machines
the receipt decides: it is put once, by whoever is first, and who comes second takes that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sra_data.shards.durable import publish, staged
from sra_data.shards.manifest import Unit, is_done, part_path, receipt_path
from sra_data.shards.receipts import file_receipt_path, has_file
from sra_data.shards.stores.mirror import mirror_of


@dataclass(frozen=True, eq=False)
class Claim:
    """The right to make what a receipt is for, and its duty: to write it last.

    Attributes:
        receipt: where it goes; `file` is its temporary file.
        made: what it is for.
    """

    receipt: Path
    file: IO[bytes]
    made: Path

    def fulfil(self, content: bytes) -> bytes:
        """Write the receipt: what it is for exists from now on, and the claim is no more.

        Returns:
            The receipt; in a store, of two machines that made the same the first one's.
        """
        mirror = mirror_of(self.receipt.parent)
        if mirror is not None:
            content = mirror.publish(self.receipt, self.made, content)
        self.write(content)
        return content

    def write(self, content: bytes) -> None:
        """Write the receipt here."""
        self.file.write(content)
        publish(self.file, self.receipt)


def claimed(folder: Path, unit: Unit, *, wait: bool = True) -> AbstractContextManager[Claim | None]:
    """Claim a part for as long as the context lasts; it gives None where the part is there already.

    An old receipt without its part goes: a part to be made again does not exist.

    Args:
        folder: of parts.
        unit: which.
        wait: whether to wait for a process that has claimed it.

    Raises:
        BeingWritten: if another process has claimed it, and `wait` is false.
        ShardError: if the receipt that is there is damaged, or the disk refuses.
    """
    made = part_path(folder, unit.part)
    return _claimed(receipt_path(folder, unit.part), made, lambda: is_done(folder, unit), wait)


def claimed_file(folder: Path, name: str) -> AbstractContextManager[Claim | None]:
    """Claim a file beside the parts, as `claimed` does a part; waits."""
    return _claimed(file_receipt_path(folder, name), folder / name, lambda: has_file(folder, name), True)


@contextmanager
def _claimed(receipt: Path, made: Path, is_made: Callable[[], bool], wait: bool) -> Iterator[Claim | None]:
    with staged(receipt, wait=wait) as file:
        claim = Claim(receipt, file, made)
        if is_made() or _is_in_its_store(claim):
            yield None
        else:
            receipt.unlink(missing_ok=True)
            yield claim


def _is_in_its_store(claim: Claim) -> bool:
    """Whether another machine has put it into the store meanwhile, or it only has to be put; the receipt is here then.

    Raises:
        ShardError: If the store does not answer, or has an unlike one.
    """
    mirror = mirror_of(claim.receipt.parent)
    if mirror is None:
        return False
    waiting = mirror.publish_pending(claim.receipt, claim.made)
    if waiting is not None:
        claim.write(waiting)
    return waiting is not None or mirror.pull_receipt(claim.receipt)
