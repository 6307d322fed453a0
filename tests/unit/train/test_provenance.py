"""Whose words the shards hold, and which alignment a run reads."""

import shutil

import pytest

from sra_data.errors import ShardError
from sra_data.shards.manifest import record
from sra_data.shards.store import ShardSet
from sra_train.record.provenance import (
    ShardFacts,
    choose_alignment,
    git_state,
    recorded_versions,
    teacher_knowledge,
    teacher_shape,
)
from tests.synthetic_shards import ALIGNMENT, TEACHER_LAYERS, TEACHER_WIDTH, make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("provenance"))


def second_alignment(made, folder, student: str):
    """The same shards with a second alignment under another student's name."""
    shards = folder / "shards"
    shutil.copytree(made.shards, shards)
    shutil.copytree(shards / "alignments" / ALIGNMENT, shards / "alignments" / "other-11111111")
    with ShardSet.open(shards) as opened:
        facts = dict(opened.manifest.section(f"alignments/{ALIGNMENT}"))
    record(shards, "alignments/other-11111111", **{**facts, "student": {**facts["student"], "name": student}})
    return shards


def test_the_manifest_says_who_taught_whom_and_with_what(made) -> None:
    with ShardSet.open(made.shards) as shards:
        facts = ShardFacts.read(shards, shards.alignment())
        shape = teacher_shape(shards)
        knowledge = teacher_knowledge(shards, shards.alignment())
    assert facts.student == str(made.student)
    assert (facts.teacher, facts.data) == ("synthetic teacher", "random words, seed 0")
    assert (shape.num_layers, shape.hidden_size) == (TEACHER_LAYERS, TEACHER_WIDTH)
    assert len(knowledge.shared_student_ids) == len(knowledge.shared_teacher_ids) > 200
    assert knowledge.head.weight.shape[1] == TEACHER_WIDTH


def test_the_alignment_of_the_named_student_is_read(made, tmp_path) -> None:
    path = second_alignment(made, tmp_path, "someone/else")
    with ShardSet.open(path) as shards:
        chosen = choose_alignment(shards, student="someone/else", name=None)
        assert chosen.section == "alignments/other-11111111"
        assert choose_alignment(shards, student=str(made.student), name=None).section == f"alignments/{ALIGNMENT}"
        assert choose_alignment(shards, student=None, name="other").section == "alignments/other-11111111"


def test_several_alignments_without_a_choice_are_refused(made, tmp_path) -> None:
    path = second_alignment(made, tmp_path, "someone/else")
    with ShardSet.open(path) as shards:
        with pytest.raises(ShardError, match=r"several alignments .*--student"):
            choose_alignment(shards, student=None, name=None)
        with pytest.raises(ShardError, match=r"0 alignments were made for third/one; .*student\.alignment=NAME"):
            choose_alignment(shards, student="third/one", name=None)


def test_a_folder_outside_any_repository_has_no_git_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    assert recorded_versions()["torch"]
