"""Laws of the seals: no bit of any metadata changes, and no edit of it passes, without a line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.durable import write_sealed
from sra_data.shards.manifest import Manifest
from sra_data.shards.receipts import write_file_receipt
from sra_data.shards.store import ShardSet, begin, record, seal, state_of
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.unit.shards.builders import (
    ALIGNMENT,
    FINGERPRINT,
    LEFT,
    MADE_FROM,
    RIGHT,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    make_shards,
)

KINDS = {
    "manifest": "manifest.json",
    "plan": "{}/plan.json",
    "receipt": "{}/part-00001.receipt.json",
    "index": "{}/index.parquet",
    "receipt of a file": f"{TEACHER}/head.receipt.json",
    "receipt of another": f"{ALIGNMENT}/vocabulary.receipt.json",
    "header": f"{TEACHER}/head.safetensors",
    "header of another": f"{TEACHER}/embeddings.safetensors",
    "header of a vocabulary": f"{ALIGNMENT}/vocabulary.safetensors",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows in two parts; nobody changes it."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    make_shards(folder, count=12, rows_per_part=6)
    return folder


@pytest.fixture
def shards(small: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(small, tmp_path / "shards"))


def open_whole(shards: Path) -> None:
    """Open everything a run opens, and its indexes; no part is read."""
    with ShardSet.open(shards) as opened:
        pair = opened.pair(student=LEFT, teacher=RIGHT)
        for reader in (opened.corpus, opened.side(LEFT), opened.side(RIGHT), pair, opened.teacher("big-00000000")):
            assert len(reader.index) == 12


def refusal(step: Callable[..., object], *arguments: object) -> str:
    """What a step refuses with, one line; empty where it passes."""
    said = ""
    try:
        step(*arguments)
    except ShardError as error:
        said = str(error)
    assert "\n" not in said
    return said


def problems_of(shards: Path) -> str:
    """All that `verify` says, one line each."""
    try:
        problems = verify(VerifyOptions(shards), Reporter()).problems
    except ShardError as error:
        problems = (str(error),)
    assert not any("\n" in problem for problem in problems)
    return "\n".join(problems)


def header_size(path: Path) -> int:
    """Of a safetensors file, with the 8 bytes of its length; of others the whole size."""
    content = path.read_bytes()
    return 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_metadata_is_refused_on_opening_and_named_by_verify(kind: str, shards: Path) -> None:
    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(SECTIONS), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def flipped(section: str, where: float, bit: int) -> None:
        path = shards / KINDS[kind].format(section)
        before = path.read_bytes()
        changed = bytearray(before)
        changed[int(where * header_size(path))] ^= 1 << bit
        path.write_bytes(changed)
        name = path.name.split(".")[0]
        assert name in refusal(open_whole, shards)
        assert name in problems_of(shards)
        path.write_bytes(before)

    flipped()
    open_whole(shards)


# --------------------------------------------------------------------------- edits, with care


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file and let it seal itself anew: only what binds the files together can notice."""
    content = json.loads(path.read_bytes())
    change(content)
    write_sealed(path, content, is_flat=path.name != "manifest.json")


def _other_scale(shards: Path) -> None:
    """In the header of the head, of the same length; the tensors are what they were."""
    path = shards / TEACHER / "head.safetensors"
    content = path.read_bytes()
    assert b'"scale": "1.0"' in content
    path.write_bytes(content.replace(b'"scale": "1.0"', b'"scale": "3.0"'))


def _other_scale_with_receipt(shards: Path) -> None:
    _other_scale(shards)
    write_file_receipt(shards / TEACHER, "head.safetensors")


def _hint_of_a_plan(shards: Path) -> None:
    edit(shards / "corpus" / "plan.json", lambda plan: plan["units"][0].__setitem__(3, {"file": "other.jsonl"}))


def _notes_of_a_receipt(shards: Path) -> None:
    edit(shards / STUDENT_SIDE / "part-00001.receipt.json", lambda receipt: receipt["notes"].update(seen=7))


def _teacher_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["teachers"]["big-00000000"]


def _edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Without a seal of its own."""

    def damage(shards: Path) -> None:
        content = json.loads((shards / "manifest.json").read_bytes())
        change(content)
        (shards / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    return damage


def _facts_under_a_new_seal(shards: Path) -> None:
    """The whole manifest's seal fits; the counts are no longer those of plan and receipts."""
    record(shards, TEACHER, num_rows=11)


EDITS = {
    "scale of the head": (_other_scale, r"head.safetensors: header damaged", r"head.safetensors: header damaged"),
    "scale and receipt": (_other_scale_with_receipt, r"head.receipt.json: not the receipt that was sealed", None),
    "hint of a plan": (_hint_of_a_plan, r"corpus/plan.json: not the plan that was sealed", None),
    "notes of a receipt": (_notes_of_a_receipt, rf"{STUDENT_SIDE}: its parts' receipts are not those", None),
    "number of layers": (
        _edit_manifest(lambda manifest: _teacher_of(manifest).update(num_layers=5)),
        rf"manifest.json: damaged or edited, what it says of {TEACHER} was changed; run `sra-data repair",
        None,
    ),
    "failed examples": (
        _edit_manifest(lambda manifest: _teacher_of(manifest).update(failed_examples=["id-1"])),
        rf"manifest.json: damaged or edited, what it says of {TEACHER} was changed; run `sra-data repair",
        None,
    ),
    "a section removed": (
        _edit_manifest(lambda manifest: manifest.pop("teachers")),
        r"manifest.json: damaged or edited, its seal is not that of its content; run `sra-data repair",
        None,
    ),
    "a pair": (
        _edit_manifest(lambda manifest: manifest["pairs"][0]["student"].update(name="models/other")),
        r"manifest.json: damaged or edited, its seal is not that of its content",
        None,
    ),
    "a count": (_facts_under_a_new_seal, rf"{TEACHER}: num_rows 11 in the manifest, 12 on disk", None),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_metadata_is_refused_on_opening_and_named_by_verify(name: str, shards: Path) -> None:
    damage, said, verified = EDITS[name]
    damage(shards)
    with pytest.raises(ShardError, match=said):
        open_whole(shards)
    with pytest.raises(ShardError, match=verified or said):
        verify(VerifyOptions(shards), Reporter()).refuse_if_damaged()


@pytest.mark.parametrize("name", ["head.safetensors", "embeddings.safetensors", "head.receipt.json"])
def test_verify_names_a_file_that_is_gone(name: str, shards: Path) -> None:
    (shards / TEACHER / name).unlink()
    assert f"{TEACHER}/{name}: missing" in problems_of(shards)


def test_verify_names_the_row_of_a_part_that_is_not_the_indexs(shards: Path) -> None:
    """A part of the same folder made of other rows, whole in itself."""
    other = shards.parent / "other"
    make_shards(other, count=13, rows_per_part=6, hidden_dtype="fp16")
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(other / TEACHER / f"part-00001{ending}", shards / TEACHER / f"part-00001{ending}")
    assert f"{TEACHER}/part-00001.parquet: row 6, example id-6: not that of index.parquet" in problems_of(shards)


# --------------------------------------------------------------------------- who writes keeps them


def test_what_is_recorded_after_sealing_is_sealed_too(shards: Path) -> None:
    heard = {"share": 0.5, "log2_prob": None}
    reach = {"student": LEFT, "starts": 1, "own": -1.0, "equal_bytes": heard, "first_piece": heard}
    record(shards, TEACHER, faithfulness={"examples": 3}, reach=[reach])
    open_whole(shards)
    assert problems_of(shards) == ""
    assert Manifest.load(shards).sealed(TEACHER)["faithfulness"] == {"examples": 3}


def test_what_no_manifest_may_say_is_not_written(shards: Path) -> None:
    before = (shards / "manifest.json").read_bytes()
    for wrong in ({"num_layers": "many"}, {"failed_examples": "id-1"}, {"made_from": {"../else": "0" * 64}}):
        with pytest.raises(ShardError, match=r"manifest.json: damaged \(teachers.big-00000000.* nothing was written"):
            record(shards, TEACHER, **wrong)
    assert (shards / "manifest.json").read_bytes() == before


def test_a_folder_that_is_not_as_it_was_sealed_is_unsealed_when_work_goes_on_and_sealed_again(shards: Path) -> None:
    """A part made anew by another machine, and a kill before sealing: the rerun does what is left."""
    _notes_of_a_receipt(shards)
    assert refusal(open_whole, shards)
    begin(shards, STUDENT_SIDE, FINGERPRINT, list, made_from=MADE_FROM[STUDENT_SIDE])
    assert not state_of(shards, STUDENT_SIDE).is_sealed
    seal(shards, STUDENT_SIDE)
    open_whole(shards)
    assert problems_of(shards) == ""
