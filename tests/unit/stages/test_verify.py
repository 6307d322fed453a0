"""Laws of `verify`: nothing on disk, and nothing between the folders, can be wrong without a line that says what."""

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
from sra_data.shards.durable import write_sealed
from sra_data.shards.schema import AlignmentRow, SideRow, TeacherRow
from sra_data.shards.store import ShardSet, seal
from sra_data.stages.verify import VerifyOptions, VerifySummary, verify
from sra_data.terminal import Reporter
from tests.manifests import change_manifest
from tests.unit.shards.builders import (
    ALIGNMENT,
    SECOND_TEACHER,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_SIDE,
    TEXT_SECTIONS,
    cut_groups,
    full_teacher_schema,
    int32,
    make_shards,
    make_units,
    write_section,
)

SECTIONS = (*TEXT_SECTIONS, TEACHER, SECOND_TEACHER)
PART = "part-00001.parquet"
NUM_ROWS, ROWS_PER_PART = 30, 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """A sealed set of two sides, one alignment and two teachers that nobody changes, and its rows."""
    folder = tmp_path_factory.mktemp("verify") / "shards"
    return folder, make_shards(folder, count=NUM_ROWS, rows_per_part=ROWS_PER_PART, num_teachers=2)


@pytest.fixture
def shards(whole: tuple[Path, dict[str, list[Any]]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole[0], tmp_path / "shards"))


def verified(shards: Path) -> VerifySummary:
    return verify(VerifyOptions(shards), Reporter())


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_whole_shards_verify(whole: tuple[Path, dict[str, list[Any]]]) -> None:
    summary = verified(whole[0])
    assert summary.problems == ()
    assert summary.folders == (
        "corpus",
        *sorted((STUDENT_SIDE, TEACHER_SIDE)),
        ALIGNMENT,
        *sorted((TEACHER, SECOND_TEACHER)),
    )
    assert (summary.num_parts, summary.num_rows) == (3 * len(SECTIONS), NUM_ROWS * len(SECTIONS))
    summary.refuse_if_damaged()
    assert summary.lines()[-1] == "all is as the manifest says"


def test_a_flipped_bit_of_any_part_is_one_problem_that_names_it(shards: Path) -> None:
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


def _delete_receipt(shards: Path) -> None:
    (shards / "corpus" / "part-00002.receipt.json").unlink()


def _truncate(shards: Path) -> None:
    part = shards / ALIGNMENT / PART
    part.write_bytes(part.read_bytes()[:-9])


def _swap_parts(shards: Path) -> None:
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(shards / TEACHER / f"part-00000{ending}", shards / TEACHER / f"part-00001{ending}")


def _change_head(shards: Path) -> None:
    flip(shards / SECOND_TEACHER / "head.safetensors", -1)


def _change_vocabulary(shards: Path) -> None:
    flip(shards / ALIGNMENT / "vocabulary.safetensors", -1)


def _change_index(shards: Path) -> None:
    flip(shards / STUDENT_SIDE / "index.parquet", 40)


def _change_plan(shards: Path) -> None:
    plan = json.loads((shards / TEACHER / "plan.json").read_text())
    plan["fingerprint"]["source"] = "other.jsonl"
    write_sealed(shards / TEACHER / "plan.json", plan, is_flat=True)


def _section(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    group, _, key = name.partition("/")
    return manifest[group][key] if key else manifest[group]


def _change_root(shards: Path) -> None:
    change_manifest(shards, lambda manifest: _section(manifest, TEACHER).update(root="0" * 64))


def _other_side(shards: Path) -> None:
    change_manifest(shards, lambda manifest: _section(manifest, TEACHER)["made_from"].update({TEACHER_SIDE: "0" * 64}))


def _other_corpus(shards: Path) -> None:
    change_manifest(shards, lambda manifest: _section(manifest, STUDENT_SIDE).update(made_from={"corpus": "0" * 64}))


def _other_bases(shards: Path) -> None:
    change_manifest(shards, lambda manifest: _section(manifest, ALIGNMENT).update(made_from={}))


def _delete_side(shards: Path) -> None:
    """From the manifest: what stands on it has nothing to be compared with."""
    change_manifest(shards, lambda manifest: manifest["sides"].pop(TEACHER_SIDE.partition("/")[2]))


def _delete_folder(shards: Path) -> None:
    shutil.rmtree(shards / SECOND_TEACHER)


def _unseal(shards: Path) -> None:
    change_manifest(shards, lambda manifest: _section(manifest, SECOND_TEACHER).update(root=None))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_delete_receipt, r"corpus/part-00002.receipt.json: missing"),
        (_truncate, rf"{ALIGNMENT}/part-00001.parquet"),
        (_swap_parts, rf"{TEACHER}/part-00001.receipt.json: says it is of part 0"),
        (_change_head, rf"{SECOND_TEACHER}/head.safetensors: damaged"),
        (_change_vocabulary, rf"{ALIGNMENT}/vocabulary.safetensors: damaged"),
        (_change_index, rf"{STUDENT_SIDE}/index.parquet: damaged"),
        (_change_plan, rf"{TEACHER}/plan.json: not the plan that was sealed"),
        (_change_root, r"the manifest has 000000000000"),
        (
            _other_corpus,
            rf"{STUDENT_SIDE}: made from corpus 000000000000, the manifest has \w+; delete it and run `sra-",
        ),
        (
            _other_side,
            rf"{TEACHER}: made from {TEACHER_SIDE} 000000000000, the manifest has \w+; delete it and run `sra-",
        ),
        (
            _other_bases,
            rf"{ALIGNMENT}: made from {STUDENT_SIDE}, {TEACHER_SIDE} by its plan, from nothing by the manif",
        ),
        (_delete_side, rf"{TEACHER_SIDE}: missing; run `sra-data align"),
        (_delete_folder, rf"{SECOND_TEACHER}/plan.json: missing"),
        (_unseal, rf"{SECOND_TEACHER}: unfinished; run `sra-data cache-teacher"),
    ],
)
def test_verify_tells_what_is_wrong(damage: Callable[[Path], None], said: str, shards: Path) -> None:
    damage(shards)
    summary = verified(shards)
    with pytest.raises(ShardError, match=said) as raised:
        summary.refuse_if_damaged()
    assert "\n" not in str(raised.value)


def test_sealing_again_is_no_problem(shards: Path) -> None:
    for section in SECTIONS:
        seal(shards, section)
    assert verified(shards).problems == ()


def rewritten(shards: Path, rows: dict[str, list[Any]], section: str, changed: Sequence[Any], **how: Any) -> None:
    """The folder again with other rows: everything fits its receipts, only what it says is wrong."""
    shutil.rmtree(shards / section)
    change_manifest(shards, lambda manifest: manifest[section.partition("/")[0]].pop(section.partition("/")[2]))
    groups = cut_groups(section, rows, make_units(NUM_ROWS, ROWS_PER_PART))
    write_section(shards, section, changed, groups, **how)


@pytest.mark.parametrize("column", ["response_spans", "label_spans"])
def test_spans_of_a_side_beyond_its_tokens_are_told(
    column: str, whole: tuple[Path, dict[str, list[Any]]], tmp_path: Path
) -> None:
    shards, rows = tmp_path / "shards", make_shards(tmp_path / "shards", num_teachers=0)
    side: list[SideRow] = rows[STUDENT_SIDE]
    first = next(place for place, row in enumerate(side) if row.status == "ok")
    spans = getattr(side[first], column) + int32([0, len(side[first].ids)])
    side[first] = dataclasses.replace(side[first], **{column: spans})
    shutil.rmtree(shards / ALIGNMENT)
    change_manifest(shards, lambda manifest: manifest.pop("alignments"))
    rewritten(shards, rows, STUDENT_SIDE, side)
    (problem,) = verified(shards).problems
    assert f"{STUDENT_SIDE}: example {side[first].id}, {column}: not in order within" in problem


def test_responses_that_were_cut_off_are_no_damage(tmp_path: Path) -> None:
    shards, rows = tmp_path / "shards", make_shards(tmp_path / "shards", num_teachers=0)
    side: list[SideRow] = rows[STUDENT_SIDE]
    place = next(place for place, row in enumerate(side) if len(row.response_spans) == 2)
    cut = side[place].response_spans * int32([[1], [0]])  # (0, 0) behind a response that is whole
    side[place] = dataclasses.replace(side[place], response_spans=cut, label_spans=cut)
    shutil.rmtree(shards / ALIGNMENT)
    change_manifest(shards, lambda manifest: manifest.pop("alignments"))
    rewritten(shards, rows, STUDENT_SIDE, side)
    assert verified(shards).problems == ()


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ([[0, 4], [2, 6]], [[0, 1], [1, 2]], "left_spans: not in order within"),
        ([[0, 1], [1, 2]], [[0, 1], [1, 9999]], "right_spans: not in order within"),
        ([[0, 9999], [9999, 10000]], [[0, 1], [1, 2]], "left_spans: not in order within"),
        ([[0, 1]], [[0, 1], [1, 2]], "1 left spans, 2 right spans"),
    ],
)
def test_spans_of_an_alignment_beyond_the_tokens_of_its_sides_are_told(
    left: list, right: list, said: str, tmp_path: Path
) -> None:
    shards, rows = tmp_path / "shards", make_shards(tmp_path / "shards", num_teachers=0)
    aligned: list[AlignmentRow] = rows[ALIGNMENT]
    aligned[1] = dataclasses.replace(aligned[1], left_spans=int32(left), right_spans=int32(right))
    rewritten(shards, rows, ALIGNMENT, aligned)
    (problem,) = verified(shards).problems
    assert f"{ALIGNMENT}: example {aligned[1].id}" in problem
    assert said in problem


def test_pages_by_span_of_another_number_of_spans_are_told(tmp_path: Path) -> None:
    shards, rows = tmp_path / "shards", make_shards(tmp_path / "shards")
    schema = dataclasses.replace(full_teacher_schema(), granularity="span")
    facts = {"name": "models/big", "side": TEACHER_SIDE.partition("/")[2], "alignment": ALIGNMENT}
    bases = (TEACHER_SIDE, ALIGNMENT)
    rewritten(shards, rows, TEACHER, rows[TEACHER], schema=schema, facts=facts, made_from=bases)
    (problem,) = verified(shards).problems
    assert f"{TEACHER}: example id-0: " in problem
    assert f"rows, {ALIGNMENT} has " in problem


def test_verify_without_a_manifest_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: missing; no shards here; run `sra-data align` first"):
        verified(tmp_path)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_deep_compares_with_what_the_teacher_says_now(offset: float, whole: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, rows = whole
    asked: list[tuple[str, str]] = []

    def recapture(shards: ShardSet, teacher: str, numbers: Sequence[int]) -> list[TeacherRow]:
        again = [rows[f"teachers/{teacher}"][number] for number in numbers]
        asked.extend((teacher, row.id) for row in again)
        return [dataclasses.replace(row, next_log_prob=row.next_log_prob + np.float32(offset)) for row in again]

    options = VerifyOptions(folder, deep=True, teacher="models/other", sample=5)
    summary = verify(options, Reporter(), recapture)
    assert len(asked) == summary.num_recaptured == 5
    assert {f"teachers/{teacher}" for teacher, _ in asked} == {SECOND_TEACHER}
    assert len(summary.problems) == (5 if offset else 0)
    assert all("next_log_prob: the teacher now says otherwise" in problem for problem in summary.problems)


def test_deep_asks_which_of_several_teachers_before_it_reads_anything(shards: Path) -> None:
    flip(shards / "corpus" / PART, 9)  # would be a problem of the summary
    with pytest.raises(ShardError, match=r"2 teachers \(there are .*\); choose one with --teacher NAME"):
        verify(VerifyOptions(shards, deep=True), Reporter(), lambda *asked: [])
    with pytest.raises(ShardError, match=r"no teacher nobody \(there are "):
        verify(VerifyOptions(shards, deep=True, teacher="nobody"), Reporter(), lambda *asked: [])
