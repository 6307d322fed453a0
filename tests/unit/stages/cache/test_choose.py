"""Laws of choosing: a teacher's side is found by its tokenizer; what is not clear is asked in one line with a list."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sra_data.errors import ModelError, ShardError
from sra_data.shards.store import Manifest, ShardSet, record_pairs
from sra_data.stages.cache.choose import Chosen, choose
from sra_data.stages.cache.stage import cache_teacher
from sra_data.terminal import Reporter
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level_bpe
from tests.unit.stages.cache.worlds import (
    ALIGNMENT,
    LONGEST,
    NUM_ROWS,
    STUDENT_SIDE,
    TEACHER_SIDE,
    World,
    change_manifest,
    forget,
    pair_of,
    save_teacher,
    write_alignment,
    write_side,
)

OTHER_SIDE = "teacher-cccccccc"


def chosen(world: World, **changes: Any) -> Chosen:
    with ShardSet.open(world.shards) as shards:
        return choose(shards, world.options(**changes))


def refused(world: World, error: type[Exception] = ShardError, **changes: Any) -> str:
    """The refusal, one line that tells what to do; nothing is written."""
    before = hashes(world.shards)
    with pytest.raises(error) as raised:
        cache_teacher(world.options(**changes), Reporter())
    assert "\n" not in str(raised.value)
    assert hashes(world.shards) == before
    return str(raised.value)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------------ the teacher


def test_the_only_teacher_the_shards_were_aligned_for_is_taken(world: World) -> None:
    found = chosen(world)
    assert (found.teacher.name, found.side, found.pair) == (str(world.teacher), TEACHER_SIDE, None)


def test_a_second_teacher_with_a_known_tokenizer_adds_its_folder_and_nothing_else(world: World, tmp_path: Path) -> None:
    cache_teacher(world.options(), Reporter())
    before, manifest = hashes(world.shards), Manifest.load(world.shards).content
    larger = save_teacher(tmp_path / "larger", seed=1, hidden_size=64)
    summary = cache_teacher(world.options(name=str(larger)), Reporter())
    after, grown = hashes(world.shards), Manifest.load(world.shards).content
    assert summary.section.startswith("teachers/larger-")
    assert {name: digest for name, digest in after.items() if name in before and name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }
    assert all(name.startswith(summary.section) for name in after.keys() - before.keys())
    section = grown["teachers"].pop(summary.section.removeprefix("teachers/"))
    assert grown == manifest
    assert (section["name"], section["side"], section["hidden_size"]) == (str(larger), TEACHER_SIDE, 64)


def test_teachers_of_one_name_have_folders_of_their_own(world: World, tmp_path: Path) -> None:
    """The name of a folder tells weights, side and, by span, alignment apart; not how they are captured."""
    same = save_teacher(tmp_path / "again" / "teacher")
    other = save_teacher(tmp_path / "other" / "teacher", seed=1)
    first = cache_teacher(world.options(), Reporter()).section
    assert cache_teacher(world.options(name=str(same)), Reporter()).section == first
    sections = {first, cache_teacher(world.options(name=str(other)), Reporter()).section}
    sections.add(cache_teacher(world.options(granularity="span"), Reporter()).section)
    assert len(sections) == 3
    assert {section.rpartition("-")[0] for section in sections} == {"teachers/teacher"}


def test_several_aligned_teachers_and_none_named_are_listed(world: World, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", seed=1)
    record_pairs(world.shards, [pair_of(other, world.student)])
    message = refused(world)
    assert f"2 teachers were aligned ({world.teacher}, {other}); choose one with --teacher NAME" in message
    cache_teacher(world.options(name=str(other)), Reporter())
    assert refused(world) == message  # one that is cached already does not answer which
    assert chosen(world, name=str(other)).teacher.name == str(other)


def test_shards_that_were_aligned_for_no_teacher_ask_for_one(world: World) -> None:
    change_manifest(world.shards, lambda manifest: manifest.update(pairs=[]))
    assert "0 teachers were aligned (none); choose one with --teacher NAME" in refused(world)


def test_revisions_of_one_name_are_teachers_of_their_own(world: World) -> None:
    pair = pair_of(world.teacher, world.student)
    record_pairs(world.shards, [{**pair, "teacher": {"name": str(world.teacher), "revision": "v2"}}])
    assert f"2 teachers were aligned ({world.teacher}, {world.teacher}@v2)" in refused(world)


def test_a_teacher_named_without_a_revision_has_the_one_it_was_aligned_with(world: World) -> None:
    aligned = {**pair_of(world.teacher, world.student), "teacher": {"name": str(world.teacher), "revision": "v2"}}
    change_manifest(world.shards, lambda manifest: manifest.update(pairs=[aligned]))
    assert chosen(world).teacher.revision == "v2"
    assert chosen(world, name=str(world.teacher)).teacher.revision == "v2"
    assert chosen(world, name=str(world.teacher), revision="v3").teacher.revision == "v3"
    record_pairs(world.shards, [{**aligned, "teacher": {"name": str(world.teacher), "revision": "v4"}}])
    assert chosen(world, name=str(world.teacher)).teacher.revision is None  # which of two, nobody said


def test_a_teacher_that_is_no_model_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refused(world, ModelError, name=str(tmp_path / "empty"))
    assert "cannot be loaded" in refused(world, ModelError, name="no-such-owner/no-such-model")


# --------------------------------------------------------------------------------------------------------- the side


def test_a_teacher_whose_tokenizer_is_no_side_is_refused_with_the_command_that_adds_it(
    world: World, tmp_path: Path
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "stranger")
    train_byte_level_bpe().save_pretrained(tmp_path / "stranger")
    message = refused(world, name=str(tmp_path / "stranger"))
    assert "no side is of the tokenizer " in message
    assert f"of teacher {tmp_path / 'stranger'} (there are {STUDENT_SIDE} of tokenizer " in message
    assert (
        f"`sra-data align --teacher {tmp_path / 'stranger'} --student {world.student} --out {world.shards}`" in message
    )


def test_two_swapped_ids_are_another_tokenizer(world: World, tmp_path: Path) -> None:
    swapped = Path(shutil.copytree(world.teacher, tmp_path / "swapped"))
    content = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = (token for token, number in vocabulary.items() if number in (40, 41))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (swapped / "tokenizer.json").write_text(json.dumps(content))
    assert "no side is of the tokenizer" in refused(world, name=str(swapped))
    # The same where it is the teacher the shards were aligned for, changed since.
    change_manifest(world.shards, lambda manifest: manifest.update(pairs=[pair_of(swapped, world.student)]))
    assert "no side is of the tokenizer" in refused(world)


def test_a_teacher_without_a_tokenizer_needs_the_side_by_name(world: World, tmp_path: Path) -> None:
    bare = tmp_path / "teacher"
    tiny_model("llama").save_pretrained(bare)
    message = refused(world, name=str(bare))
    assert "no tokenizer beside it" in message
    assert f"--side NAME (there are {STUDENT_SIDE} of tokenizer " in message
    expected = cache_teacher(world.options(), Reporter())
    found = cache_teacher(world.options(name=str(bare), side=TEACHER_SIDE), Reporter())
    assert (found.section, found.root, found.num_done) == (expected.section, expected.root, 0)  # the same weights


def test_a_side_of_another_tokenizer_is_refused_whoever_names_it(world: World) -> None:
    message = refused(world, side="student")
    assert f"--side {STUDENT_SIDE}: of tokenizer " in message
    assert f"teacher {world.teacher} has tokenizer " in message
    assert "leave --side out" in message


def test_of_several_sides_of_its_tokenizer_a_teacher_takes_the_one_it_was_aligned_with(
    world: World, tmp_path: Path
) -> None:
    write_side(world.shards, OTHER_SIDE, world.teacher, max_length=32)
    assert chosen(world).side == TEACHER_SIDE
    assert chosen(world, side=OTHER_SIDE).side == OTHER_SIDE
    other = save_teacher(tmp_path / "other", seed=1)
    message = refused(world, name=str(other))
    assert f"2 sides (there are {TEACHER_SIDE}, {OTHER_SIDE}); choose one with --side NAME" in message
    found = cache_teacher(world.options(name=str(other), side="teacher-c"), Reporter())
    assert found.side == OTHER_SIDE


def test_two_sides_that_fit_one_start_are_refused_with_the_list(world: World) -> None:
    write_side(world.shards, OTHER_SIDE, world.teacher, max_length=32)
    assert f"2 sides teacher- (there are {TEACHER_SIDE}, {OTHER_SIDE}); choose one with --side" in refused(
        world, side="teacher-"
    )
    assert "no side nowhere" in refused(world, side="nowhere")


def test_a_teacher_that_reads_fewer_positions_than_its_longest_row_is_refused(world: World, tmp_path: Path) -> None:
    short = save_teacher(tmp_path / "short", max_position_embeddings=LONGEST - 2)
    message = refused(world, name=str(short))
    assert f"its longest row has {LONGEST} tokens, teacher {short} reads {LONGEST - 2}; run `sra-data align`" in message
    assert f"--teacher-max-length {LONGEST - 2}" in message
    enough = save_teacher(tmp_path / "enough", max_position_embeddings=LONGEST)
    assert cache_teacher(world.options(name=str(enough)), Reporter()).num_missing == 0


def test_an_unfinished_side_is_refused_with_the_command_that_goes_on(world: World) -> None:
    change_manifest(world.shards, lambda manifest: manifest["sides"][TEACHER_SIDE].update(root=None))
    assert f"sides/{TEACHER_SIDE}: unfinished; run `sra-data align" in refused(world)


def test_pages_of_another_sides_content_are_refused(world: World) -> None:
    """The side was made anew beneath the pages: they are of what it was."""
    cache_teacher(world.options(), Reporter())
    forget(world.shards, f"sides/{TEACHER_SIDE}")
    write_side(world.shards, TEACHER_SIDE, world.teacher, per_token=2)
    assert r"made from other inputs (side: had" in refused(world)
    with ShardSet.open(world.shards) as shards, pytest.raises(ShardError, match=f"made from sides/{TEACHER_SIDE} "):
        shards.teacher(shards.choose_teacher())


# -------------------------------------------------------------------------------------------------- whose spans


def test_by_span_the_only_student_is_taken_or_the_one_named(world: World) -> None:
    pair = chosen(world, granularity="span").pair
    assert pair is not None
    assert (pair.student, pair.teacher, pair.name) == (STUDENT_SIDE, TEACHER_SIDE, ALIGNMENT)
    # A teacher may be its own student: then two sides were aligned as students'.
    own = {"student": {"name": str(world.teacher), "revision": None}, "student_side": TEACHER_SIDE}
    record_pairs(world.shards, [pair_of(world.teacher, world.student) | own])
    message = refused(world, granularity="span")
    assert f"2 students (there are {STUDENT_SIDE}, {TEACHER_SIDE}); choose one with --student NAME" in message
    for name in (STUDENT_SIDE, "student-", str(world.student)):
        found = chosen(world, granularity="span", student=name).pair
        assert found is not None
        assert found.student == STUDENT_SIDE
    message = refused(world, granularity="span", student=TEACHER_SIDE)
    assert f"the sides {TEACHER_SIDE} and {TEACHER_SIDE} are not aligned; run `sra-data align" in message


def test_of_several_alignments_of_a_pair_the_plain_one_is_taken_or_the_one_named(world: World) -> None:
    words = f"{ALIGNMENT}~words"
    write_alignment(world.shards, words)
    assert chosen(world, granularity="span").pair.name == ALIGNMENT
    assert chosen(world, granularity="span", alignment=words).pair.name == words
    one = cache_teacher(world.options(granularity="span"), Reporter())
    two = cache_teacher(world.options(granularity="span", alignment=words), Reporter())
    assert one.section != two.section


def test_nothing_to_cache_is_refused(world: World) -> None:
    forget(world.shards, f"sides/{TEACHER_SIDE}")
    write_side(world.shards, TEACHER_SIDE, world.teacher, numbers=[3] * NUM_ROWS)  # skipped, all of them
    assert "no example has a response to cache; align data with responses that fit" in refused(world)
