"""Verify tells of whatever changed on disk, in any folder, in one line each; whole shards pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import ShardSet, record, seal
from sra_data.stages.verify import VerifyOptions, VerifySummary, verify
from sra_data.terminal import Reporter
from tests.unit.shards.builders import (
    ALIGNMENT,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_SIDE,
    cut_groups,
    make_shards,
    make_units,
    write_section,
)
from tests.unit.shards.test_damage import PART, flip

Sealed = tuple[Path, dict[str, list[Any]]]


@pytest.fixture(scope="module")
def sealed_set(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A folder nobody changes, and its rows."""
    folder = tmp_path_factory.mktemp("sealed") / "shards"
    return folder, make_shards(folder)


@pytest.fixture
def shards(sealed_set: Sealed, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sealed_set[0], tmp_path / "shards"))


def verified(shards: Path) -> VerifySummary:
    """What verify finds."""
    return verify(VerifyOptions(shards), Reporter())


def test_whole_shards_verify(sealed_set: Sealed) -> None:
    summary = verified(sealed_set[0])
    assert summary.problems == ()
    assert summary.folders == SECTIONS
    assert (summary.num_parts, summary.num_rows) == (15, 150)
    summary.refuse_if_damaged()


def test_any_flipped_bit_of_a_part_is_told(shards: Path) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(SECTIONS), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def flipped(section: str, where: float, bit: int) -> None:
        part = shards / section / PART
        place = int(where * part.stat().st_size)
        flip(part, place, bit)
        problems = verified(shards).problems
        flip(part, place, bit)
        assert len(problems) == 1
        assert f"{section}/{PART}" in problems[0]

    flipped()


def test_a_part_of_another_place_is_told(shards: Path) -> None:
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(shards / TEACHER / f"part-00000{ending}", shards / TEACHER / f"part-00001{ending}")
    assert any("part-00001" in problem for problem in verified(shards).problems)


def _delete_receipt(shards: Path) -> None:
    (shards / "corpus" / "part-00002.receipt.json").unlink()


def _truncate(shards: Path) -> None:
    part = shards / ALIGNMENT / PART
    part.write_bytes(part.read_bytes()[:-9])


def _change_head(shards: Path) -> None:
    flip(shards / TEACHER / "head.safetensors", -1)


def _change_vocabulary(shards: Path) -> None:
    flip(shards / ALIGNMENT / "vocabulary.safetensors", -1)


def _change_index(shards: Path) -> None:
    flip(shards / TEACHER / "index.parquet", 40)


def _change_plan(shards: Path) -> None:
    plan = json.loads((shards / TEACHER / "plan.json").read_text())
    plan["fingerprint"]["source"] = "other.jsonl"
    (shards / TEACHER / "plan.json").write_text(json.dumps(plan))


def _change_root(shards: Path) -> None:
    record(shards, TEACHER, root="0" * 64)


def _other_corpus(shards: Path) -> None:
    record(shards, STUDENT_SIDE, made_from={"corpus": "0" * 64})


def _other_side(shards: Path) -> None:
    record(shards, TEACHER, made_from={TEACHER_SIDE: "0" * 64})


def _delete_folder(shards: Path) -> None:
    shutil.rmtree(shards / TEACHER)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_delete_receipt, r"part-00002.receipt.json: missing"),
        (_truncate, r"part-00001.parquet"),
        (_change_head, r"head.safetensors: damaged"),
        (_change_vocabulary, r"vocabulary.safetensors: damaged"),
        (_change_index, r"index.parquet: damaged"),
        (_change_plan, r"name other inputs"),
        (_change_root, r"the manifest has 000000000000"),
        (_other_corpus, r"made from corpus 000000000000"),
        (_other_side, r"made from sides/teacher-00000000 000000000000"),
        (_delete_folder, r"big-00000000/plan.json: missing"),
    ],
)
def test_verify_tells_what_is_wrong(damage: Callable[[Path], None], said: str, shards: Path) -> None:
    damage(shards)
    summary = verified(shards)
    with pytest.raises(ShardError, match=said) as raised:
        summary.refuse_if_damaged()
    assert "\n" not in str(raised.value)


def test_verify_without_a_manifest_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: missing; no shards here; run `sra-data align` first"):
        verified(tmp_path)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        (ALIGNMENT, "right_spans"),
        (ALIGNMENT, "left_spans"),
        (STUDENT_SIDE, "label_spans"),
        (TEACHER_SIDE, "label_spans"),
    ],
)
def test_spans_beyond_their_tokens_are_told(section: str, change: str, sealed_set: Sealed, tmp_path: Path) -> None:
    rows = {name: list(found) for name, found in sealed_set[1].items()}
    row = rows[section][1]
    rows[section][1] = dataclasses.replace(row, **{change: getattr(row, change) + np.int32(9999)})
    for name in SECTIONS:
        write_section(tmp_path, name, rows[name], cut_groups(name, rows, make_units(30, 12)))
    problems = verified(tmp_path).problems
    assert len(problems) == 1
    assert f"{section}: example id-1, {change}: not in order within" in problems[0]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_deep_compares_with_what_the_teacher_says_now(offset: float, sealed_set: Sealed) -> None:
    folder, rows = sealed_set
    said = {row.id: row for row in rows[TEACHER]}
    asked: list[str] = []

    def recapture(shards: ShardSet, *which: Any) -> list[TeacherRow]:
        examples: Sequence[Any] = which[-1]  # before it: which teacher
        asked.extend(row.id for row in examples)
        again = [said[row.id] for row in examples]
        return [dataclasses.replace(row, next_log_prob=row.next_log_prob + offset) for row in again]

    summary = verify(VerifyOptions(folder, deep=True, sample=5), Reporter(), recapture)
    assert len(asked) == summary.num_recaptured == 5
    assert len(summary.problems) == (5 if offset else 0)
    assert all("next_log_prob: the teacher now says otherwise" in problem for problem in summary.problems)


def test_sealing_again_is_no_problem(shards: Path) -> None:
    for section in SECTIONS:
        seal(shards, section)
    assert verified(shards).problems == ()
