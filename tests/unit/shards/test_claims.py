"""Any number of processes on one folder: who claims a part makes it, others wait or go on, the dead hold nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sra_data.errors import ShardError
from sra_data.shards import beginning, tensor_file
from sra_data.shards.claims import claimed, claimed_file
from sra_data.shards.durable import BeingWritten
from sra_data.shards.manifest import Manifest, Receipt, is_done, receipt_path
from sra_data.shards.store import begin, corpus_schema, seal, write_part
from sra_data.shards.tensor_file import save_tensors
from tests.unit.shards.builders import FINGERPRINT
from tests.unit.shards.test_crash import UNITS, contents, rows_of, undisturbed, write_all

__all__ = ["undisturbed"]


class Child:
    """A forked process that does some work, tells when it has begun, and goes on when it is told."""

    def __init__(self, work: Callable[[Callable[[], None]], Any]) -> None:
        begun, go_on = os.pipe(), os.pipe()
        self.begun, self.go_on = begun[0], go_on[1]
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:

                def pause() -> None:
                    os.write(begun[1], b".")
                    os.read(go_on[0], 1)

                work(pause)
                status = 0
            finally:
                os._exit(status)

    def wait_until_it_has_begun(self) -> None:
        assert os.read(self.begun, 1) == b"."

    def let_go_on(self) -> int:
        os.write(self.go_on, b".")
        return self.wait()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def write(folder: Path, part: int, pause: Callable[[], None] = lambda: None) -> Receipt:
    def rows() -> Iterator[Any]:
        pause()
        yield from rows_of(UNITS[part])

    return write_part(folder, corpus_schema(), UNITS[part], rows(), [3, 1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    begin(tmp_path, "corpus", FINGERPRINT, lambda: UNITS)
    return tmp_path / "corpus"


def test_a_claim_keeps_others_out_and_ends_with_its_process_however_that_ends(folder: Path) -> None:
    def hold(pause: Callable[[], None]) -> None:
        with claimed(folder, UNITS[0]):
            pause()

    child = Child(hold)
    child.wait_until_it_has_begun()
    with pytest.raises(BeingWritten, match="another process is writing it"), claimed(folder, UNITS[0], wait=False):
        pass
    with claimed(folder, UNITS[1], wait=False) as other:
        assert other is not None
    child.kill()
    with claimed(folder, UNITS[0]) as mine:
        assert mine is not None
    assert not list(folder.glob("*.tmp"))


def test_who_waits_finds_the_part_and_does_not_make_it_again(folder: Path) -> None:
    child = Child(lambda pause: write(folder, 0, pause))
    child.wait_until_it_has_begun()
    found: list[Receipt] = []
    rows_were_asked_for = threading.Event()
    waiting = threading.Thread(target=lambda: found.append(write(folder, 0, rows_were_asked_for.set)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert child.let_go_on() == 0
    waiting.join(60)
    assert not rows_were_asked_for.is_set()
    assert found == [Receipt.load(folder, 0)]


def test_who_waits_for_one_that_is_killed_makes_the_part(folder: Path, undisturbed: Path) -> None:
    child = Child(lambda pause: write(folder, 0, pause))
    child.wait_until_it_has_begun()
    waiting = threading.Thread(target=write, args=(folder, 0))
    waiting.start()
    child.kill()
    waiting.join(60)
    assert is_done(folder, UNITS[0])
    write_all(folder.parent)
    assert contents(folder.parent) == contents(undisturbed)


def test_a_part_that_is_there_stays_and_a_receipt_without_its_part_goes(folder: Path) -> None:
    receipt = write(folder, 0)
    with claimed(folder, UNITS[0]) as claim:
        assert claim is None
    assert write(folder, 0, lambda: pytest.fail("rows were asked for")) == receipt
    (folder / "part-00000.parquet").unlink()
    with claimed(folder, UNITS[0]) as claim:
        assert claim is not None
        assert not receipt_path(folder, 0).exists()  # whoever looks now finds it missing
    assert write(folder, 0) == receipt


def test_a_part_is_there_in_the_moment_in_which_its_claim_ends(folder: Path) -> None:
    with claimed(folder, UNITS[0]) as claim:
        receipt = write_part(folder, corpus_schema(), UNITS[0], rows_of(UNITS[0]), [3, 1], claim=claim)
        assert Receipt.load(folder, 0) == receipt
        with claimed(folder, UNITS[0], wait=False) as other:
            assert other is None
    assert sorted(path.name for path in folder.iterdir()) == [
        "part-00000.parquet",
        "part-00000.receipt.json",
        "plan.json",
    ]


def test_many_processes_leave_the_bytes_of_one(tmp_path: Path, undisturbed: Path) -> None:
    def work(pause: Callable[[], None]) -> None:
        pause()
        write_all(tmp_path / "shards")

    children = [Child(work) for _ in range(6)]
    for child in children:
        child.wait_until_it_has_begun()
    for child in children:
        os.write(child.go_on, b".")
    assert [child.wait() for child in children] == [0] * 6
    assert contents(tmp_path / "shards") == contents(undisturbed)


def test_processes_share_the_parts_out(folder: Path) -> None:
    """One that holds a part does not keep another from the rest."""
    child = Child(lambda pause: write(folder, 1, pause))
    child.wait_until_it_has_begun()
    made = []
    for unit in UNITS:
        try:
            with claimed(folder, unit, wait=False) as claim:
                write_part(folder, corpus_schema(), unit, rows_of(unit), [3, 1], claim=claim)
                made.append(unit.part)
        except BeingWritten:
            continue
    assert made == [0, 2]
    assert child.let_go_on() == 0
    seal(folder.parent, "corpus")


def test_a_file_beside_the_parts_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Path] = []
    original = tensor_file.publish

    def publish(file: Any, path: Path) -> None:
        published.append(path)
        original(file, path)

    monkeypatch.setattr(tensor_file, "publish", publish)
    tensors = {"ids": np.arange(5, dtype=np.int32)}
    threads = [threading.Thread(target=save_tensors, args=(folder, "a.safetensors", tensors, {})) for _ in range(4)]
    with claimed_file(folder, "a.safetensors"):  # all of them wait
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(60)
    assert published == [folder / "a.safetensors"]
    assert not list(folder.glob("*.tmp"))


def test_a_folder_sealed_between_the_look_and_the_word_is_not_unsealed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`begin` decides under the lock of the manifest: what another process sealed meanwhile stays sealed."""
    shards = folder.parent
    for part in range(3):
        write(folder, part)
    seal(shards, "corpus")
    receipt_path(folder, 0).unlink()
    write_part(folder, corpus_schema(), UNITS[0], rows_of(UNITS[0]), [3, 1], notes={"made": "anew"})
    original = beginning._plan_of

    def another_seals_meanwhile(*arguments: Any) -> Any:
        found = original(*arguments)
        seal(shards, "corpus")
        return found

    monkeypatch.setattr(beginning, "_plan_of", another_seals_meanwhile)
    begin(shards, "corpus", FINGERPRINT, lambda: UNITS)
    assert Manifest.load(shards).sealed("corpus")["root"]
    monkeypatch.undo()
    write_part(folder, corpus_schema(), UNITS[0], rows_of(UNITS[0]), [3, 1])  # is there: changes nothing
    begin(shards, "corpus", FINGERPRINT, lambda: UNITS)
    assert Manifest.load(shards).sealed("corpus")["root"]


def test_a_damaged_receipt_is_refused_and_not_made_anew(folder: Path) -> None:
    write(folder, 0)
    receipt_path(folder, 0).write_text("{")
    with pytest.raises(ShardError, match="sra-data repair"), claimed(folder, UNITS[0]):
        pass
