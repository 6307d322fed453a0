"""Laws of `repair`: what is broken goes and nothing else, and the commands make exactly that again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sra_data.errors import ShardError
from sra_data.shards.codecs import encode_float32
from sra_data.shards.heads import EMBEDDINGS, HEAD
from sra_data.shards.kinds import Row
from sra_data.shards.manifest import kind_of
from sra_data.shards.store import (
    VOCABULARY,
    Manifest,
    ShardSet,
    begin,
    has_file,
    is_as_sealed,
    missing_units,
    record_pairs,
    save_embeddings,
    save_head,
    save_vocabulary,
    seal,
    write_part,
)
from sra_data.stages.repair import RepairSummary, repair
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data
from tests.manifests import change_manifest
from tests.unit.shards.builders import (
    ALIGNMENT,
    FACTS,
    FINGERPRINT,
    MADE_FROM,
    PAIR,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_FILES,
    TEACHER_SIDE,
    cut_groups,
    int32,
    make_shards,
    make_units,
    schema_of,
    vocabulary,
)

COUNT, ROWS_PER_PART = 12, 4
UNITS = make_units(COUNT, ROWS_PER_PART)
Rows = dict[str, list[Row]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A sealed set nobody changes, and its rows."""
    folder = tmp_path_factory.mktemp("repair") / "shards"
    return folder, make_shards(folder, count=COUNT, rows_per_part=ROWS_PER_PART)


@pytest.fixture
def shards(whole: tuple[Path, Rows], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole[0], tmp_path / "shards"))


def contents(shards: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(shards)): path.read_bytes() for path in shards.rglob("*") if path.is_file()}


def go_on(shards: Path, rows: Rows) -> list[str]:
    """What the commands do, run again: whatever is missing, and the seals; returns what was made."""
    made = []
    for section in SECTIONS:
        kind, folder = kind_of(section), shards / section
        files = {"teacher": TEACHER_FILES, "alignment": (VOCABULARY,)}.get(kind, ())
        facts = FACTS.get(section)
        how = {"files": files, "made_from": MADE_FROM[section], "facts": facts}
        plan = begin(shards, section, FINGERPRINT, lambda: UNITS, **how)
        groups = cut_groups(section, rows, UNITS)
        for unit in missing_units(folder, plan):
            write_part(folder, schema_of(section), unit, rows[section][unit.start : unit.stop], groups[unit.part])
            made.append(f"{section}/{unit.name}")
        for name in files:
            if not has_file(folder, name):
                write_file(folder, name)
                made.append(f"{section}/{name}")
        if not is_as_sealed(shards, section, Manifest.load(shards).section(section) or {}):
            seal(shards, section, facts)
    record_pairs(shards, [PAIR])
    return made


def write_file(folder: Path, name: str) -> None:
    """A file beside the parts, as the builders write it."""
    if name == HEAD:
        save_head(folder, {"weight": encode_float32(WEIGHT, "bf16")}, {"scale": "1.0"})
    elif name == EMBEDDINGS:
        save_embeddings(folder, int32([1, 4]), None, {"scale": "2.0"})
    else:
        save_vocabulary(folder, vocabulary())


WEIGHT = int32(range(24), 6, 4).astype("float32")


def repaired(shards: Path) -> RepairSummary:
    return repair(shards, Reporter())


def flip(name: str, place: int = 60) -> Callable[[Path], None]:
    """Damage a file by one bit."""

    def damage(shards: Path) -> None:
        content = bytearray((shards / name).read_bytes())
        content[place] ^= 4
        (shards / name).write_bytes(content)

    return damage


def _edit_facts(shards: Path) -> None:
    content = json.loads((shards / "manifest.json").read_text())
    content["teachers"]["big-00000000"]["name"] = "models/forged"
    (shards / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")


def _delete_head(shards: Path) -> None:
    (shards / TEACHER / HEAD).unlink()


def _swap_parts(shards: Path) -> None:
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(shards / STUDENT_SIDE / f"part-00000{ending}", shards / STUDENT_SIDE / f"part-00001{ending}")


# damage, what goes, what repair makes itself, what the commands make
CASES: dict[str, tuple[Callable[[Path], None], list[str], list[str], list[str]]] = {
    "nothing": (lambda shards: None, [], [], []),
    "a part": (
        flip(f"{TEACHER}/part-00001.parquet", 200),
        [f"{TEACHER}/part-00001.receipt.json", f"{TEACHER}/part-00001.parquet"],
        [],
        [f"{TEACHER}/part-00001"],
    ),
    "a receipt": (
        flip("corpus/part-00002.receipt.json"),
        ["corpus/part-00002.receipt.json", "corpus/part-00002.parquet"],
        [],
        ["corpus/part-00002"],
    ),
    "a part of another place": (
        _swap_parts,
        [f"{STUDENT_SIDE}/part-00001.receipt.json", f"{STUDENT_SIDE}/part-00001.parquet"],
        [],
        [f"{STUDENT_SIDE}/part-00001"],
    ),
    "a head": (
        flip(f"{TEACHER}/{HEAD}", -3),
        [f"{TEACHER}/head.receipt.json", f"{TEACHER}/{HEAD}"],
        [],
        [f"{TEACHER}/{HEAD}"],
    ),
    "a head's header": (
        flip(f"{TEACHER}/{HEAD}", 20),
        [f"{TEACHER}/head.receipt.json", f"{TEACHER}/{HEAD}"],
        [],
        [f"{TEACHER}/{HEAD}"],
    ),
    "no head": (_delete_head, [f"{TEACHER}/head.receipt.json"], [], [f"{TEACHER}/{HEAD}"]),
    "a file's receipt": (
        flip(f"{ALIGNMENT}/vocabulary.receipt.json"),
        [f"{ALIGNMENT}/vocabulary.receipt.json", f"{ALIGNMENT}/{VOCABULARY}"],
        [],
        [f"{ALIGNMENT}/{VOCABULARY}"],
    ),
    "an index": (
        flip(f"{ALIGNMENT}/index.parquet"),
        [f"{ALIGNMENT}/index.parquet"],
        [f"{ALIGNMENT}/index.parquet"],
        [],
    ),
    "a plan": (
        flip(f"{TEACHER_SIDE}/plan.json"),
        [f"{TEACHER_SIDE}/plan.json"],
        [f"{TEACHER_SIDE}/plan.json"],
        [],
    ),
    "facts": (_edit_facts, [f"manifest.json: {TEACHER}", "manifest.json: pairs"], [], []),
    "a manifest": (flip("manifest.json", 0), ["manifest.json"], [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_thrown_away_and_exactly_that_is_made_again(
    name: str, whole: tuple[Path, Rows], shards: Path
) -> None:
    damage, gone, remade, made = CASES[name]
    before = contents(whole[0])
    damage(shards)
    summary = repaired(shards)
    assert (list(summary.thrown_away), list(summary.remade), summary.left) == (gone, remade, ())
    left = contents(shards)
    kept = set(before) - set(gone) - {"manifest.json"}
    assert all(left[file] == before[file] for file in kept & set(left))
    assert kept - set(left) <= {f"{TEACHER}/{HEAD}"}
    assert go_on(shards, whole[1]) == made
    assert {**contents(shards), "manifest.json": b""} == {**before, "manifest.json": b""}
    assert Manifest.load(shards).content == Manifest.load(whole[0]).content
    assert verify(VerifyOptions(shards), Reporter()).problems == ()
    assert repaired(shards).lines() == [f"{shards}: nothing is broken"]


def test_a_broken_bit_of_several_folders_is_repaired_at_once(whole: tuple[Path, Rows], shards: Path) -> None:
    for name in ("a part", "a receipt", "an index", "a file's receipt"):
        CASES[name][0](shards)
    summary = repaired(shards)
    assert len(summary.thrown_away) == 7
    assert summary.remade == (f"{ALIGNMENT}/index.parquet",) or f"{ALIGNMENT}/index.parquet" in summary.thrown_away
    assert go_on(shards, whole[1]) == ["corpus/part-00002", f"{ALIGNMENT}/{VOCABULARY}", f"{TEACHER}/part-00001"]
    assert verify(VerifyOptions(shards), Reporter()).problems == ()


def test_the_command_to_run_is_said_for_each_folder(shards: Path) -> None:
    CASES["a part"][0](shards)
    CASES["a receipt"][0](shards)
    align, cache = repaired(shards).commands
    assert align.startswith("corpus: run `sra-data align --teacher models/big@f00d --student models/small --out ")
    assert cache.startswith(f"{TEACHER}: run `sra-data cache-teacher {shards} --teacher models/big`")


def test_until_the_commands_have_run_the_folder_is_unfinished_and_not_damaged(shards: Path) -> None:
    CASES["a part"][0](shards)
    repaired(shards)
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=f"{TEACHER}: unfinished; run `sra-data cac"):
        opened.teacher("big-00000000")
    assert repaired(shards).thrown_away == ()  # interrupted and called again, it goes on


def test_a_broken_part_of_an_unfinished_folder_is_thrown_away_too(shards: Path, whole: tuple[Path, Rows]) -> None:
    (shards / TEACHER / "part-00002.receipt.json").unlink()
    change_manifest(shards, lambda content: content["teachers"]["big-00000000"].update(root=None))
    CASES["a part"][0](shards)
    assert list(repaired(shards).thrown_away) == CASES["a part"][1]
    assert go_on(shards, whole[1]) == [f"{TEACHER}/part-00001", f"{TEACHER}/part-00002"]


def test_what_was_made_from_something_else_is_told_and_left_alone(shards: Path) -> None:
    change_manifest(shards, lambda content: _made_from(content).update({TEACHER_SIDE: "0" * 64}))
    before = contents(shards)
    summary = repaired(shards)
    assert contents(shards) == before
    with pytest.raises(ShardError, match=rf"{TEACHER}: made from {TEACHER_SIDE} 000000000000, the manifest has"):
        summary.refuse_if_left()


def _made_from(content: dict[str, Any]) -> dict[str, str]:
    return content["teachers"]["big-00000000"]["made_from"]


def test_other_folders_are_refused_and_nothing_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shards here"):
        repaired(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "corpus": {}}')
    with pytest.raises(ShardError, match="shard format 1, this build reads 2"):
        repaired(tmp_path)
    assert (tmp_path / "manifest.json").is_file()


def test_the_command_line_says_what_it_did(shards: Path) -> None:
    CASES["a head"][0](shards)
    answer = sra_data("repair", shards)
    assert answer.exit_code == 0
    assert answer.output.splitlines()[:2] == [f"threw away {name}" for name in CASES["a head"][1]]
    again = sra_data("repair", shards, "--json")
    assert json.loads(again.output)["thrown_away"] == []
