"""A crash at any moment loses nothing, publishes nothing half, and a rerun does exactly what is missing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sra_data.errors import ShardError
from sra_data.shards import durable
from sra_data.shards.beginning import refuse_if_changed
from sra_data.shards.durable import (
    BeingWritten,
    folder_lock,
    make_folder,
    publish,
    remove_abandoned,
    staged,
    write_sealed,
)
from sra_data.shards.kinds import Row
from sra_data.shards.manifest import Manifest, Plan
from sra_data.shards.store import ShardSet, Unit, begin, corpus_schema, missing_units, record, seal, write_part
from tests.manifests import change_manifest
from tests.unit.shards.builders import (
    ALIGNED,
    ALIGNMENT,
    FINGERPRINT,
    LEFT,
    RIGHT,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_SIDE,
    cut_groups,
    full_teacher_schema,
    make_rows,
    make_shards,
    make_units,
    write_section,
)

UNITS = make_units(12, 4)
REPOSITORY = Path(__file__).resolve().parents[3]


def rows_of(unit: Unit) -> list[Row]:
    """The unit's rows: a pure function of the unit."""
    return make_rows(12, full_teacher_schema())["corpus"][unit.start : unit.stop]


def write_all(shards: Path) -> list[int]:
    """What a stage does; returns the parts it made."""
    plan = begin(shards, "corpus", FINGERPRINT, lambda: UNITS)
    made = []
    for unit in missing_units(shards / "corpus", plan):
        write_part(shards / "corpus", corpus_schema(), unit, rows_of(unit), [3, 1])
        made.append(unit.part)
    seal(shards, "corpus")
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without a crash leaves."""
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    assert write_all(folder) == [0, 1, 2]
    return folder


def contents(shards: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(shards)): path.read_bytes() for path in shards.rglob("*") if path.is_file()}


# The calls at which the process dies: a whole run makes ten renames and twenty-odd fsyncs.
STEPS = [(step, count) for step in ("replace", "before_replace") for count in range(1, 11)]
STEPS += [("fsync", count) for count in range(1, 21, 2)]


@pytest.mark.parametrize("chunk", range(4))
def test_a_process_killed_between_any_two_steps_leaves_a_folder_that_goes_on(
    chunk: int, undisturbed: Path, tmp_path: Path
) -> None:
    """os._exit at the n-th fsync or rename; then a rerun gives the very bytes of a run without a crash."""
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from tests.unit.shards.test_crash import write_all
        jobs = [job.split(":") for job in sys.argv[1:]]
        for step, count, folder in jobs:
            if os.fork() == 0:
                left = int(count)
                name = step.removeprefix("before_")
                real = getattr(os, name)
                def dying(*args):
                    global left
                    left -= 1
                    if left == 0 and step.startswith("before_"):
                        os._exit(9)
                    real(*args)
                    if left == 0:
                        os._exit(9)
                setattr(os, name, dying)
                write_all(Path(folder))
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.wait()[1]))
        """
    )
    jobs = [(step, count, tmp_path / f"{step}-{count}") for step, count in STEPS[chunk::4]]
    arguments = [f"{step}:{count}:{folder}" for step, count, folder in jobs]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    codes = [int(line) for line in done.stdout.split()]
    assert codes.count(9) >= len(jobs) // 2
    for (_, _, folder), code in zip(jobs, codes, strict=True):
        assert code in (0, 9)
        had = {path.name for path in (folder / "corpus").glob("*.receipt.json")} if folder.exists() else set()
        for receipt in had:  # a receipt is only there once its part is
            whole = undisturbed / "corpus" / receipt.replace(".receipt.json", ".parquet")
            assert (folder / "corpus" / whole.name).read_bytes() == whole.read_bytes()
        assert write_all(folder) == [unit.part for unit in UNITS if f"{unit.name}.receipt.json" not in had]
        assert contents(folder) == contents(undisturbed)


def test_an_exception_in_the_middle_publishes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[Row]:
        yield from rows_of(UNITS[0])[:3]
        raise KeyboardInterrupt

    begin(tmp_path, "corpus", FINGERPRINT, lambda: UNITS)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path / "corpus", corpus_schema(), UNITS[0], failing(), [3, 1])
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["plan.json"]
    assert write_all(tmp_path) == [0, 1, 2]
    assert contents(tmp_path) == contents(undisturbed)


def test_a_full_disk_is_one_line_and_finished_parts_stay(tmp_path: Path) -> None:
    begin(tmp_path, "corpus", FINGERPRINT, lambda: UNITS)
    write_part(tmp_path / "corpus", corpus_schema(), UNITS[0], rows_of(UNITS[0]), [3, 1])
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(ShardError, match=r"corpus: .* while writing part-00001.parquet; free space") as raised:
            write_part(tmp_path / "corpus", corpus_schema(), UNITS[1], rows_of(UNITS[1]), [3, 1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before


def test_no_space_left_names_the_folder_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", full)
    expected = f"{tmp_path}: No space left on device while writing a.json; free space there and run the same command"
    with pytest.raises(ShardError, match=expected):
        write_sealed(tmp_path / "a.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="check that the folder exists and may be written"):
        write_sealed(tmp_path / "file" / "a.json", {})


READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def refusing(*arguments: object, **named: object) -> None:
    """What a folder that may only be read says to whoever wants to write."""
    raise READ_ONLY


def test_a_folder_that_may_only_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tried first: making a folder, locking one, writing a file, removing what was written of it."""
    said = f"{tmp_path}: Read-only file system while {{}}; check that the folder exists and may be written"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refusing)
        with pytest.raises(ShardError, match=said.format("making corpus")):
            make_folder(tmp_path / "corpus")
    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "open", refusing)
        with pytest.raises(ShardError, match="Read-only file system while locking"), folder_lock(tmp_path):
            raise AssertionError("nobody has the lock")
    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", refusing)
        patched.setattr(Path, "unlink", refusing)
        with pytest.raises(ShardError, match=said.format("writing a.json")):
            write_sealed(tmp_path / "a.json", {"a": 1})
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_deleted_meanwhile_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ShardError, match="No such file or directory while locking corpus"),
        folder_lock(tmp_path / "corpus"),
    ):
        pass
    path = tmp_path / "sides" / "a.json"

    def write_into_nothing() -> None:
        with staged(path) as file:
            shutil.rmtree(path.parent)
            publish(file, path)

    with pytest.raises(ShardError, match=r"No such file or directory while writing a\.json"):
        write_into_nothing()


def test_what_nobody_holds_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    (tmp_path / "part-00000.receipt.json.tmp").write_bytes(b"of a process that was killed")
    (tmp_path / "plan.json").write_bytes(b"{}")
    with staged(tmp_path / "part-00001.parquet"):
        remove_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"part-00001.parquet.tmp", "plan.json"}
    remove_abandoned(tmp_path / "nowhere")


def test_two_writers_of_one_part_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    with staged(path), pytest.raises(BeingWritten, match="another process is writing it"), staged(path, wait=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_reads_back_differently_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sra_data.shards.writer.row_hash", lambda keys, hashes: 7)
    with pytest.raises(ShardError, match="reads back differently"):
        write_part(tmp_path, corpus_schema(), UNITS[0], rows_of(UNITS[0]), [3, 1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("section", SECTIONS)
def test_other_inputs_are_refused_field_by_field(section: str, sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    changed = {**FINGERPRINT, "chat_tokenizer": "bbbb", "options": {"max_length": 65}}
    before = contents(sealed_set[0])
    said = r"made from other inputs \(options.max length: had 64, got 65; chat tokenizer: had nothing, got bbbb\)"
    with pytest.raises(ShardError, match=f"{section}: {said}"):
        begin(sealed_set[0], section, changed, list)
    assert contents(sealed_set[0]) == before


def test_a_field_that_is_new_or_gone_is_a_difference(tmp_path: Path) -> None:
    said = r"\(dtype: had bf16, got nothing; adapter: had nothing, got lora\)"
    with pytest.raises(ShardError, match=said):
        refuse_if_changed({"dtype": "bf16"}, {"adapter": "lora"}, where=tmp_path)
    refuse_if_changed({"dtype": "bf16"}, {"dtype": "bf16"}, where=tmp_path)


def test_sealing_again_changes_nothing_and_an_unfinished_folder_is_refused(shards: Path) -> None:
    before = contents(shards)
    for section in SECTIONS:
        root = Manifest.load(shards).sealed(section)["root"]
        assert seal(shards, section).root == root
    assert contents(shards) == before
    remedies = {
        TEACHER: f"run `sra-data cache-teacher {shards}` \\(run again",
        ALIGNMENT: "run `sra-data align ... --out",
    }
    for section, remedy in remedies.items():
        (shards / section / "part-00001.parquet").unlink()
        with pytest.raises(ShardError, match=f"1 of 3 parts missing, the first part-00001; {remedy}"):
            seal(shards, section)
        assert [unit.part for unit in missing_units(shards / section, Plan.load(shards / section))] == [1]


def test_the_root_depends_on_content_alone(sealed_set: tuple[Path, dict[str, list[Any]]], tmp_path: Path) -> None:
    make_shards(tmp_path / "again")
    make_shards(tmp_path / "other", hidden_dtype="fp32")
    folders = (sealed_set[0], tmp_path / "again", tmp_path / "other")
    for section in SECTIONS:
        roots = [Manifest.load(folder).sealed(section)["root"] for folder in folders]
        assert roots[0] == roots[1]
        assert (roots[0] == roots[2]) == (section != TEACHER)


def test_parts_without_a_plan_are_refused(shards: Path) -> None:
    (shards / "corpus" / "plan.json").unlink()
    with pytest.raises(ShardError, match=r"a receipt without plan.json; delete the folder"):
        begin(shards, "corpus", FINGERPRINT, lambda: make_units(30, 12))


@pytest.mark.parametrize("section", [STUDENT_SIDE, ALIGNMENT, TEACHER])
def test_what_a_folder_is_made_from_is_sealed_first(section: str, tmp_path: Path) -> None:
    rows, units = make_rows(12, full_teacher_schema()), make_units(12, 12)
    order = {STUDENT_SIDE: [], ALIGNMENT: ["corpus", TEACHER_SIDE], TEACHER: ["corpus"]}[section]
    missing = {STUDENT_SIDE: "corpus", ALIGNMENT: STUDENT_SIDE, TEACHER: TEACHER_SIDE}[section]
    for name in order:
        write_section(tmp_path, name, rows[name], cut_groups(name, rows, units))
    record(tmp_path, missing, fingerprint={}, root=None)
    with pytest.raises(ShardError, match=f"{missing}: unfinished; run `sra-data align ... --out {tmp_path}`"):
        write_section(tmp_path, section, rows[section], cut_groups(section, rows, units))


def test_a_missing_or_unfinished_folder_is_one_line_with_the_command(shards: Path) -> None:
    record(shards, TEACHER, root=None)
    with ShardSet.open(shards) as opened:
        with pytest.raises(ShardError, match=r"big-00000000: unfinished; run `sra-data cache-teacher"):
            opened.teacher("big-00000000")
        assert len(opened.corpus) == 30
    change_manifest(shards, lambda content: content.pop("teachers"))
    with ShardSet.open(shards) as opened:
        with pytest.raises(ShardError, match=r"teachers/big-00000000: missing; run `sra-data cache-teacher"):
            opened.teacher("big-00000000")
        with pytest.raises(ShardError, match=r"sides/nobody: missing; run `sra-data align ... --out"):
            opened.side("nobody")
        with pytest.raises(ShardError, match=r"alignments/a~b: missing; run `sra-data align ... --out"):
            opened.alignment("a~b")
    record(shards, "corpus", root=None)
    with pytest.raises(ShardError, match=r"corpus: unfinished; run `sra-data align ... --out"):
        ShardSet.open(shards)


MADE = [("corpus", STUDENT_SIDE), ("corpus", TEACHER_SIDE), (TEACHER_SIDE, TEACHER), (TEACHER_SIDE, ALIGNMENT)]


@pytest.mark.parametrize(("base", "section"), [*MADE, (STUDENT_SIDE, ALIGNMENT)])
def test_a_folder_made_from_another_root_of_its_base_is_refused_by_name(base: str, section: str, shards: Path) -> None:
    had = Manifest.load(shards).sealed(base)["root"]
    record(shards, base, root="0" * 64)
    said = f"{section}: made from {base} {had[:12]}, the folder holds 000000000000; delete it and run `sra-data "
    with ShardSet.open(shards) as opened:
        assert opened.corpus is opened.corpus  # made from nothing
        with pytest.raises(ShardError, match=said) as raised:
            _open(opened, section)
    command = f"cache-teacher {shards}`" if section == TEACHER else f"align ... --out {shards}`"
    assert command in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("section", [TEACHER, ALIGNMENT])
def test_what_a_base_was_made_from_counts_too(section: str, shards: Path) -> None:
    record(shards, "corpus", root="0" * 64)
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"sides/\w+-00000000: made from corpus"):
        _open(opened, section)


def _open(shards: ShardSet, section: str) -> object:
    group, _, name = section.partition("/")
    return {"sides": shards.side, "alignments": shards.alignment, "teachers": shards.teacher}[group](name)


def test_a_folder_is_opened_once(shards: Path) -> None:
    with ShardSet.open(shards) as opened:
        assert opened.side(LEFT) is opened.side(LEFT)
        assert opened.teacher("big-00000000") is opened.teacher("big-00000000")
        assert opened.pair(student=LEFT, teacher=RIGHT).reader is opened.alignment(ALIGNED)


def test_a_new_name_is_forced_to_disk_with_its_folder_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before its rename, the folder behind it: else a power cut takes a name that a receipt vouches for."""
    calls: list[tuple[str, int]] = []  # what, and the inode of which
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        calls.append(("fsync", os.fstat(handle).st_ino))

    def watched_replace(old: Path, new: Path) -> None:
        replace(old, new)
        calls.append(("file", new.stat().st_ino))
        calls.append(("folder", new.parent.stat().st_ino))

    monkeypatch.setattr(durable.os, "fsync", watched_fsync)
    monkeypatch.setattr(durable.os, "replace", watched_replace)
    write_all(tmp_path / "shards")
    renamed = [place for place, (what, _) in enumerate(calls) if what == "file"]
    assert len(renamed) >= 8  # three parts with their receipts, plan, index, manifest
    for place in renamed:
        (_, file), (_, folder) = calls[place : place + 2]
        assert calls[place - 1] == ("fsync", file)
        assert calls[place + 2] == ("fsync", folder)
