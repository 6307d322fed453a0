"""Who learns and from whom: by name, by side, by the tokenizer, or the only one there is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sra_data.errors import ShardError, TokenizerError
from sra_data.shards.manifest import Manifest, record, record_pairs
from sra_data.shards.store import ShardSet
from sra_train.choosing import ChosenStudent, choose_sources, choose_student
from sra_train.config import StudentConfig, load_config
from sra_train.contract import KnowledgeNeeds
from sra_train.data.knowledge import teacher_settings
from sra_train.record.provenance import ShardFacts, git_state, recorded_versions
from tests.synthetic_shards import (
    ALIGNMENT,
    STUDENT,
    TEACHER_LAYERS,
    TEACHER_WIDTH,
    TEACHERS,
    SyntheticShards,
    make_shards,
    make_tokenizer,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return make_shards(tmp_path_factory.mktemp("choosing"), num_teachers=2)


@pytest.fixture
def shards(made):
    with ShardSet.open(made.shards) as opened:
        yield opened


@pytest.fixture
def apart(made, tmp_path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(made.shards, tmp_path / "shards")
    return tmp_path / "shards"


def chosen_by(path: Path, **options: str) -> ChosenStudent:
    with ShardSet.open(path) as shards:
        return choose_student(shards, StudentConfig(**options))


def sources_of(shards: ShardSet, *teachers: str, needs: KnowledgeNeeds | None = None, **overrides):
    config = load_config(overrides={"data.teachers": list(teachers), **overrides})
    return choose_sources(shards, config, side=STUDENT, needs=needs or KnowledgeNeeds(head=True, embeddings=True))


def another_student(path: Path, name: str, *, side: str = STUDENT) -> None:
    """Remember that a side was aligned for another model too."""
    pair = Manifest.load(path).pairs[0]
    record_pairs(path, [{**pair, "student": {"name": name, "revision": "abc"}, "student_side": side}])


def copy_side(path: Path, name: str) -> str:
    """The student's side once more, under another name."""
    shutil.copytree(path / "sides" / STUDENT, path / "sides" / name)
    record(path, f"sides/{name}", **Manifest.load(path).sealed(f"sides/{STUDENT}"))
    return name


# --------------------------------------------------------------------------- the student


def test_the_only_student_need_not_be_named(made) -> None:
    found = chosen_by(made.shards)
    assert (found.name, found.side) == (str(made.student.resolve()), STUDENT)
    assert found.tokenizer.eos_token == "<|end|>"


def test_a_student_is_found_by_model_by_side_and_by_its_tokenizer(made, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(made.student, moved)
    assert chosen_by(made.shards, name=str(made.student)).side == STUDENT
    assert chosen_by(made.shards, name=STUDENT).name == str(made.student.resolve())
    by_tokenizer = chosen_by(made.shards, name=str(moved))
    assert (by_tokenizer.name, by_tokenizer.side) == (str(moved), STUDENT)


def with_revision(path: Path, revision: str) -> None:
    """Let the shards have been aligned for a revision of the student."""
    manifest = Manifest.load(path)
    for pair in manifest.content["pairs"]:
        pair["student"]["revision"] = revision
    manifest.write()


def test_a_student_nobody_named_has_the_revision_it_was_aligned_with(made, apart) -> None:
    with_revision(apart, "abc")
    found = chosen_by(apart)
    assert (found.name, found.options.revision) == (str(made.student.resolve()), "abc")
    assert chosen_by(apart, name=STUDENT).options.revision == "abc"
    assert chosen_by(apart, revision="def").options.revision == "def"


def test_another_revision_of_a_student_reads_the_side_of_its_name(made, apart) -> None:
    """Two sides are of its tokenizer: the name tells which, whatever the revision."""
    with_revision(apart, "abc")
    copy_side(apart, "student-11111111")
    assert chosen_by(apart, name=str(made.student), revision="def").side == STUDENT


def test_the_whole_name_of_a_side_comes_before_the_start_of_another(apart) -> None:
    copy_side(apart, f"{STUDENT}9")
    assert chosen_by(apart, side=STUDENT).side == STUDENT


def test_of_several_students_one_has_to_be_named(made, apart) -> None:
    another_student(apart, "someone/else")
    with pytest.raises(ShardError, match=r"aligned for 2 students \(.*student, someone/else@abc\).*with --student"):
        chosen_by(apart)
    assert chosen_by(apart, name=str(made.student)).side == STUDENT


def test_of_several_sides_of_one_tokenizer_one_has_to_be_named(made, apart, tmp_path) -> None:
    """A second side with another maximum length: the model's name alone no longer says which."""
    other = copy_side(apart, "student-11111111")
    moved = tmp_path / "moved"
    shutil.copytree(made.student, moved)
    with pytest.raises(ShardError, match=rf"made 2 sides \({STUDENT}, {other}\).*student\.side=NAME"):
        chosen_by(apart, name=str(moved))
    assert chosen_by(apart, name=str(moved), side="student-1").side == other
    with pytest.raises(ShardError, match=r"2 sides are called student- .*choose one with --set student\.side=NAME"):
        chosen_by(apart, name=str(moved), side="student-")


def test_a_student_of_another_tokenizer_is_refused_with_the_command(made, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(made.student, other)
    make_tokenizer(["quite different words here"], 280, other)
    with pytest.raises(TokenizerError, match=rf"is not the one .* was aligned with.*sra-data align --student {other}"):
        chosen_by(made.shards, name=str(other))
    with pytest.raises(TokenizerError, match=rf"that of the side {STUDENT} is"):
        chosen_by(made.shards, name=str(other), side=STUDENT)


# --------------------------------------------------------------------------- the teachers


def test_the_only_teacher_need_not_be_named_and_several_must_be(shards, tmp_path) -> None:
    with pytest.raises(ShardError, match=r"2 teachers \(there are second-00000000, teacher-00000000\).*--teacher NAME"):
        sources_of(shards)
    with ShardSet.open(make_shards(tmp_path).shards) as one:
        (teacher,) = sources_of(one).teachers
        assert (teacher.name, teacher.weight) == (TEACHERS[0], 1.0)


def test_teachers_are_named_by_folder_or_model_and_weigh_what_is_said(shards) -> None:
    found = sources_of(shards, "second", "synthetic teacher:0.75").teachers
    assert [(one.name, one.weight) for one in found] == [(TEACHERS[1], 0.25), (TEACHERS[0], 0.75)]
    assert [one.model for one in found] == ["synthetic second", "synthetic teacher"]
    assert [one.weight for one in sources_of(shards, "second", "teacher").teachers] == [0.5, 0.5]


def test_two_words_for_one_teacher_are_refused(shards) -> None:
    with pytest.raises(ShardError, match=r"second-00000000 is named twice \(as second and synthetic second\)"):
        sources_of(shards, "second", "synthetic second")


def test_a_method_without_teachers_opens_none(shards) -> None:
    config = load_config(overrides={"method": "sft"})
    found = choose_sources(shards, config, side=STUDENT, needs=None)
    assert found.teachers == ()
    assert list(found.roots()) == ["corpus", f"sides/{STUDENT}"]


def test_the_alignment_is_named_where_a_pair_was_aligned_in_several_ways(apart) -> None:
    other = f"{ALIGNMENT}~word"
    shutil.copytree(apart / "alignments" / ALIGNMENT, apart / "alignments" / other)
    record(apart, f"alignments/{other}", **Manifest.load(apart).sealed(f"alignments/{ALIGNMENT}"))
    with ShardSet.open(apart) as shards:
        teachers = TEACHERS[:2]
        assert sources_of(shards, *teachers).teachers[0].pair.name == ALIGNMENT  # the plain one
        named = sources_of(shards, *teachers, **{"student.alignment": other})
        assert named.teachers[0].pair.name == other
        assert named.teachers[1].pair.name != other  # it is not about this teacher
        assert f"alignments/{other}" in named.roots()


# --------------------------------------------------------------------------- what is known of them


def test_the_manifest_says_who_taught_whom_and_with_what(shards) -> None:
    sources = sources_of(shards, *TEACHERS[:2])
    facts = ShardFacts.read(sources)
    first, second = teacher_settings(sources, KnowledgeNeeds(head=True, embeddings=True))
    assert facts.side == STUDENT
    assert [(one.model, one.weight) for one in facts.teachers] == [
        ("synthetic teacher", 0.5),
        ("synthetic second", 0.5),
    ]
    assert facts.sources == ("random words, seed 0",)
    assert facts.other_tokenizers == ["synthetic teacher", "synthetic second"]
    assert (first.shape.num_layers, first.shape.hidden_size) == (TEACHER_LAYERS, TEACHER_WIDTH)
    assert (second.shape.num_layers, second.shape.hidden_size) == (TEACHER_LAYERS + 1, TEACHER_WIDTH + 4)
    for teacher in (first, second):  # each what is its own
        knowledge, size = teacher.knowledge, teacher.shape
        assert len(knowledge.shared_student_ids) == len(knowledge.shared_teacher_ids) > 200
        assert knowledge.head.weight.shape == (size.vocabulary_size, size.hidden_size)
        assert knowledge.embeddings.weight.shape == (len(knowledge.embeddings.ids), size.hidden_size)
        assert int(knowledge.shared_teacher_ids.max()) < len(knowledge.teacher_to_student) <= size.vocabulary_size
        shared = dict(zip(knowledge.shared_teacher_ids.tolist(), knowledge.shared_student_ids.tolist(), strict=True))
        assert all(int(knowledge.teacher_to_student[own]) == student for own, student in shared.items())


def test_a_teacher_is_told_only_what_is_asked_for(shards) -> None:
    (bare,) = teacher_settings(sources_of(shards, "second"), KnowledgeNeeds())
    assert (bare.knowledge.head, bare.knowledge.embeddings) == (None, None)


def test_a_folder_outside_any_repository_has_no_git_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    assert recorded_versions()["torch"]
