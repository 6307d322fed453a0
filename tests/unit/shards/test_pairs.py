"""A pair is an alignment seen in one direction, and a word of the user's means one folder or is refused with a list."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sra_data.errors import ShardError
from sra_data.shards.choosing import choose, model_name, names_of_model
from sra_data.shards.manifest import Manifest
from sra_data.shards.schema import AlignmentRow, SideRow
from sra_data.shards.store import ShardSet, alignment_name, record, record_pairs, sides_of
from tests.manifests import change_manifest
from tests.unit.shards.builders import (
    ALIGNED,
    ALIGNMENT,
    LEFT,
    MADE_FROM,
    PAIR,
    RIGHT,
    SECOND_TEACHER,
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

Sealed = tuple[Path, dict[str, list[Any]]]


# --------------------------------------------------------------------------- directions


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("b", "a"), ("a", "a")])
def test_an_alignments_name_does_not_depend_on_the_direction(one: str, other: str) -> None:
    assert alignment_name(one, other) == alignment_name(other, one) == "~".join(sorted((one, other)))
    assert sides_of(alignment_name(one, other)) == sides_of(alignment_name(one, other, "words-1234"))
    assert sides_of(alignment_name(one, other, "words-1234")) == tuple(sorted((one, other)))


def test_a_pair_seen_from_the_other_side_has_its_spans_swapped(sealed_set: Sealed) -> None:
    folder, rows = sealed_set
    numbers = [29, 3, 0, 0, 17, 6]
    with ShardSet.open(folder) as shards:
        forth, back = shards.pair(student=LEFT, teacher=RIGHT), shards.pair(student=RIGHT, teacher=LEFT)
        assert (forth.name, forth.root) == (back.name, back.root) == (ALIGNED, shards.alignment(ALIGNED).root)
        assert (forth.student, forth.teacher) == (back.teacher, back.student) == (LEFT, RIGHT)
        assert forth.index is back.index
        for one, other, number in zip(forth.read(numbers), back.read(numbers), numbers, strict=True):
            row: AlignmentRow = rows[ALIGNMENT][number]
            assert (one.id, one.status) == (other.id, other.status) == (row.id, row.status)
            for had, got in ((row.left_spans, one.student_spans), (row.right_spans, one.teacher_spans)):
                assert np.array_equal(had, got)
            for had, got in ((row.left_spans, other.teacher_spans), (row.right_spans, other.student_spans)):
                assert np.array_equal(had, got)
        assert [len(one.student_spans) > 0 for one in forth.read(numbers)] == [True, False, True, True, False, False]


def test_left_and_right_are_told_by_what_they_do_here(sealed_set: Sealed) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        forth, back = shards.pair(student=LEFT, teacher=RIGHT), shards.pair(student=RIGHT, teacher=LEFT)
    assert (forth.roles, back.roles) == (("student", "teacher"), ("teacher", "student"))
    told = {
        "skipped:left_overlong": ("skipped:student_overlong", "skipped:teacher_overlong"),
        "skipped:right_left_out": ("skipped:teacher_left_out", "skipped:student_left_out"),
        "ok": ("ok", "ok"),
    }
    for status, words in told.items():
        assert (forth.in_roles(status), back.in_roles(status)) == words


def test_the_vocabulary_of_a_pair_follows_its_direction_sorted_by_student(sealed_set: Sealed) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        forth = shards.pair(student=LEFT, teacher=RIGHT).vocabulary()
        back = shards.pair(student=RIGHT, teacher=LEFT).vocabulary()
    assert list(zip(forth.student_ids, forth.teacher_ids, strict=True)) == [(0, 4), (2, 1), (3, 2)]
    assert list(zip(back.student_ids, back.teacher_ids, strict=True)) == [(1, 2), (2, 3), (4, 0)]
    assert forth.teacher_of_student.tolist() == back.student_of_teacher.tolist() == [4, -1, 1, 2, -1]
    assert forth.student_of_teacher.tolist() == back.teacher_of_student.tolist() == [-1, 2, 3, 2, 0, -1]
    assert (forth.end_of_sequence, back.end_of_sequence) == ((1, 5), (5, 1))
    for vocabulary in (forth, back):
        assert {getattr(vocabulary, name).dtype for name in ("student_ids", "teacher_ids")} == {np.dtype(np.int32)}
        assert np.array_equal(vocabulary.teacher_of_student[vocabulary.student_ids], vocabulary.teacher_ids)
        assert np.array_equal(vocabulary.student_of_teacher[vocabulary.teacher_ids], vocabulary.student_ids)


def test_a_side_is_aligned_with_itself(shards: Path) -> None:
    sides: list[SideRow] = make_rows(30, full_teacher_schema())[STUDENT_SIDE]
    rows = []
    for side in sides:
        tokens = np.arange(len(side.ids), dtype=np.int32)
        spans = np.stack([tokens, tokens + 1], axis=1)
        rows.append(AlignmentRow(side.id, side.status.replace(":", ":left_"), spans, spans))
    name = alignment_name(LEFT, LEFT)
    section = f"alignments/{name}"
    groups = cut_groups(section, make_rows(30, full_teacher_schema()), make_units(30, 12))
    write_section(shards, section, rows, groups, made_from=(STUDENT_SIDE, STUDENT_SIDE))
    with ShardSet.open(shards) as opened:
        pair = opened.pair(student=LEFT, teacher=LEFT)
        assert pair.name == name == f"{LEFT}~{LEFT}"
        assert pair.reader.facts["made_from"].keys() == {STUDENT_SIDE}
        for found, written in zip(pair.read(range(30)), rows, strict=True):
            assert (found.id, found.status) == (written.id, written.status)
            assert np.array_equal(found.student_spans, written.left_spans)
            assert np.array_equal(found.teacher_spans, written.right_spans)
        assert opened.pair(student=LEFT, teacher=RIGHT).name == ALIGNED


def test_sides_that_were_never_aligned_are_refused_with_the_command(shards: Path) -> None:
    said = (
        f"the sides {RIGHT} and {RIGHT} are not aligned; run `sra-data align --teacher models/big --student models/big "
        f"--out {shards}` with the same data"
    )
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=said):
        opened.pair(student=RIGHT, teacher=RIGHT)


def test_a_pair_aligned_in_several_ways_takes_the_plain_one_or_a_name(shards: Path) -> None:
    names = [f"{ALIGNED}~lines-1111", f"{ALIGNED}~words-2222"]
    rows = make_rows(30, full_teacher_schema())
    for name in names:
        section = f"alignments/{name}"
        groups = cut_groups(section, rows, make_units(30, 12))
        write_section(shards, section, rows[ALIGNMENT], groups, made_from=MADE_FROM[ALIGNMENT])
    with ShardSet.open(shards) as opened:
        assert opened.pair(student=LEFT, teacher=RIGHT).name == ALIGNED
        for name in (ALIGNED, *names):
            assert opened.pair(student=RIGHT, teacher=LEFT, name=name).name == name
        assert opened.pair(student=LEFT, teacher=RIGHT, name=f"{ALIGNED}~w").name == names[1]
        with pytest.raises(ShardError, match=f"2 alignments {ALIGNED}~ .there are {', '.join(names)}.; choose one"):
            opened.pair(student=LEFT, teacher=RIGHT, name=f"{ALIGNED}~")
        with pytest.raises(ShardError, match=r"no alignment other \(there are student.*\); choose one with"):
            opened.pair(student=LEFT, teacher=RIGHT, name="other")
    _forget(shards, "alignments", ALIGNED)
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"2 alignments \(there are .*lines.*words"):
        opened.pair(student=LEFT, teacher=RIGHT)


def _forget(shards: Path, group: str, name: str) -> None:
    change_manifest(shards, lambda content: content[group].pop(name))
    shutil.rmtree(shards / group / name)


# --------------------------------------------------------------------------- pairs that were asked for


def test_pairs_are_recorded_once_in_the_order_aligned(shards: Path) -> None:
    other = {**PAIR, "student": {"name": "models/tiny", "revision": "v1"}}
    again = {**PAIR, "student": {"name": "models/tiny", "revision": "v2"}}
    record_pairs(shards, [other, PAIR, other])
    before = (shards / "manifest.json").stat().st_mtime_ns
    record_pairs(shards, [PAIR, other])
    record_pairs(shards, [])
    assert (shards / "manifest.json").stat().st_mtime_ns == before  # nothing new, nothing written
    record_pairs(shards, [again])
    assert Manifest.load(shards).pairs == [PAIR, other, again]
    with ShardSet.open(shards) as opened:
        assert opened.models_of(LEFT, "student") == [PAIR["student"], other["student"], again["student"]]
        assert opened.models_of(RIGHT, "teacher") == [PAIR["teacher"]]
        assert opened.models_of(RIGHT, "student") == opened.models_of(LEFT, "teacher") == []


# --------------------------------------------------------------------------- choosing


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers; the side of one also learns, from the other's."""
    shards = tmp_path_factory.mktemp("two") / "shards"
    make_shards(shards, num_teachers=2)
    swapped = {"teacher_side": LEFT, "student_side": RIGHT, "alignment": ALIGNED}
    record_pairs(shards, [{"teacher": PAIR["student"], "student": {"name": "models/mid", "revision": None}, **swapped}])
    return shards


Choose = Callable[[ShardSet, str | None], str]
CHOICES: Sequence[tuple[str, Choose, str, dict[str, str]]] = [
    (
        "teacher",
        ShardSet.choose_teacher,
        "big-00000000",
        {"other-11111111": "other-11111111", "other": "other-11111111", "models/other": "other-11111111"},
    ),
    ("student", ShardSet.choose_student, LEFT, {RIGHT: RIGHT, "tea": RIGHT, "models/mid": RIGHT, LEFT: LEFT}),
    ("teacher", ShardSet.choose_teacher_side, RIGHT, {LEFT: LEFT, "stu": LEFT, "models/small": LEFT, RIGHT: RIGHT}),
]


@pytest.mark.parametrize(("what", "choose_one", "only", "words"), CHOICES)
def test_the_only_one_is_chosen_without_a_word(
    what: str, choose_one: Choose, only: str, words: dict[str, str], sealed_set: Sealed
) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        assert choose_one(shards, None) == only


@pytest.mark.parametrize(("what", "choose_one", "only", "words"), CHOICES)
def test_one_of_several_is_chosen_by_name_start_or_model_and_else_refused_with_the_list(
    what: str, choose_one: Choose, only: str, words: dict[str, str], two_teachers: Path
) -> None:
    with ShardSet.open(two_teachers) as shards:
        for word, expected in words.items():
            assert choose_one(shards, word) == expected
        there = sorted({only, *words.values()})
        with pytest.raises(ShardError) as raised:
            choose_one(shards, None)
        assert f": 2 {what}s (there are " in str(raised.value)
        assert all(name in str(raised.value) for name in there)
        assert str(raised.value).endswith(f"; choose one with --{what} NAME")
        with pytest.raises(
            ShardError, match=f"no {what} gpt2 .there are .*; choose one with --{what} NAME, or make it"
        ):
            choose_one(shards, "gpt2")


@pytest.mark.parametrize(("what", "choose_one", "only", "words"), CHOICES)
def test_none_is_refused_with_the_command_that_makes_one(
    what: str, choose_one: Choose, only: str, words: dict[str, str], shards: Path
) -> None:
    change_manifest(shards, lambda content: (content.pop("teachers"), content.pop("pairs")))
    command = f"sra-data cache-teacher {shards}" if only.startswith("big") else f"sra-data align --{what} ... --out "
    with ShardSet.open(shards) as opened:
        for word in (None, "gpt2"):
            with pytest.raises(ShardError, match=rf"no {what}.* \(there are none\); run `{command}"):
                choose_one(opened, word)


def test_a_side_that_was_never_a_students_is_taken_by_its_whole_name_only(sealed_set: Sealed) -> None:
    with ShardSet.open(sealed_set[0]) as shards:
        assert shards.choose_student(RIGHT) == RIGHT
        with pytest.raises(
            ShardError, match=rf"no student teacher \(there is {LEFT}\); choose one with --student NAME"
        ):
            shards.choose_student("teacher")


def test_revisions_of_one_model_are_told_apart(shards: Path) -> None:
    known = Manifest.load(shards).sealed(TEACHER)
    record(shards, "teachers/big-22222222", **{**known, "name": "models/big", "revision": "beef"})
    with ShardSet.open(shards) as opened:
        assert opened.choose_teacher("models/big@f00d") == "big-00000000"
        assert opened.choose_teacher("models/big@beef") == "big-22222222"
        with pytest.raises(ShardError, match=r"2 teachers models/big \(there are big-00000000, big-22222222\)"):
            opened.choose_teacher("models/big")
        with pytest.raises(ShardError, match=r"2 teachers big \(there are big-00000000, big-22222222\)"):
            opened.choose_teacher("big")


def test_a_whole_name_comes_before_a_model_and_a_model_before_a_start(tmp_path: Path) -> None:
    def chosen(wanted: str | None, known: dict[str, tuple[str, ...]]) -> str:
        return choose(wanted, known, where=tmp_path, what="side", flag="--side NAME", command="make")

    assert chosen("gpt2", {"gpt2": (), "other": ("gpt2",), "gpt2-large": ()}) == "gpt2"
    assert chosen("gpt2", {"gpt2-large": (), "other": ("gpt2",)}) == "other"
    assert chosen("gpt2", {"gpt2-large": (), "other": ()}) == "gpt2-large"
    assert chosen("gpt2@main", {"gpt2-large": (), "other": names_of_model("gpt2", "main")}) == "other"
    with pytest.raises(ShardError, match=r"2 sides gpt2 \(there are gpt2-a, gpt2-b\)"):  # and not the third
        chosen("gpt2", {"gpt2-a": (), "gpt2-b": (), "third": ()})


def test_a_local_model_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_name("model") == model_name("./model") == str(tmp_path / "model")
    assert model_name("gpt2") == "gpt2"
    known = {"one": (str(tmp_path / "model"),), "two": ("model-of-the-hub",)}
    assert choose("model", known, where=tmp_path, what="side", flag="--side", command="make") == "one"


def test_the_sides_of_teachers_are_told(two_teachers: Path) -> None:
    with ShardSet.open(two_teachers) as shards:
        assert shards.side_of_teacher(TEACHER.partition("/")[2]) == TEACHER_SIDE.partition("/")[2]
        assert shards.side_of_teacher(SECOND_TEACHER.partition("/")[2]) == STUDENT_SIDE.partition("/")[2]
        with pytest.raises(ShardError, match="teachers/nobody: missing; run `sra-data cache-teacher"):
            shards.side_of_teacher("nobody")
