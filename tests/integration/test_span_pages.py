"""Pages by span: the same five numbers as pages by token, a whole run from them, and what they cannot serve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sra_data.shards.store import FolderReader, ShardSet
from tests.integration.command_lines import sra_data, sra_train, write_examples, write_pair
from tests.integration.lessons import FIVE, lesson

EXAMPLES = 8
SHORT = ("--max-steps", 2, "--set", "tracking.plots=false")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Student, shards by token, the same by span; float32, all of the teacher's vocabulary in the top k."""
    folder = tmp_path_factory.mktemp("world")
    teacher, student = write_pair(folder)
    data, by_token, by_span = write_examples(folder / "train.jsonl", EXAMPLES), folder / "token", folder / "span"
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--dev-share", 0)
    assert sra_data("align", *arguments, "--out", by_token).exit_code == 0
    shutil.copytree(by_token, by_span)
    vocabulary = json.loads((teacher / "config.json").read_text())["vocab_size"]
    options = ("--hidden-dtype", "fp32", "--layers", "1,last", "--top-k", vocabulary)
    assert sra_data("cache-teacher", by_token, *options).exit_code == 0
    answer = sra_data("cache-teacher", by_span, *options, "--granularity", "span")
    assert answer.exit_code == 0, answer.error
    return student, by_token, by_span


def per_example(student: Path, out: Path, options: dict[str, object]) -> dict[str, torch.Tensor]:
    """The method's numbers of every example, one batch of them all."""
    with lesson(out, student, range(EXAMPLES), **options) as taught:
        return taught.per_example()


def the_only(shards: ShardSet, group: str) -> FolderReader:
    (name,) = shards.manifest.names(group)
    return shards.teacher(name) if group == "teachers" else shards.alignment(name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kd_vocabulary": "rest", "kd_reduction": "salience", "salience_power": 2.0},
        {"layer_pairs": ("1:1:0.5", "last:last:0.5")},
    ],
)
def test_pages_by_span_give_the_numbers_of_pages_by_token(world, options: dict[str, object]) -> None:
    student, by_token, by_span = world
    expected, found = per_example(student, by_token, options), per_example(student, by_span, options)
    for name in FIVE:
        assert float(expected[name].abs().sum()) > 0
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_the_top_k_at_the_centre_of_mass_are_the_heads_distribution_there(world) -> None:
    """With all ids in the top k they say what head and rest say; values are stored in 16 bits."""
    student, by_token, by_span = world
    expected = per_example(student, by_token, {"kd_vocabulary": "rest"})["kd"]
    found = per_example(student, by_span, {"kd_source": "top_k"})["kd"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=5e-3)


def test_pages_by_span_name_their_alignment_and_hold_one_row_a_span(world) -> None:
    _, by_token, by_span = world
    with ShardSet.open(by_span) as shards, ShardSet.open(by_token) as tokens:
        alignment, pages, other = (
            the_only(shards, "alignments"),
            the_only(shards, "teachers"),
            the_only(tokens, "teachers"),
        )
        assert pages.facts["made_from"][alignment.section] == alignment.root
        assert (pages.facts["granularity"], pages.facts["alignment"]) == ("span", alignment.section)
        assert pages.index.num_positions.tolist() == alignment.index.num_spans.tolist()
        assert pages.schema.column("next_log_prob") is None
        assert pages.index.num_positions.sum() < other.index.num_positions.sum()
        section = pages.facts
    assert section["faithfulness"]["cache"]["relative_error"] < 1e-5
    assert "next_log_prob_difference" not in section["faithfulness"]["cache"]
    assert sra_data("verify", by_span, "--deep").exit_code == 0


def test_pages_by_token_stand_beside_pages_by_span_and_one_is_named(world, tmp_path: Path) -> None:
    student, _, by_span = world
    shards = tmp_path / "shards"
    shutil.copytree(by_span, shards)
    assert sra_data("cache-teacher", shards, "--hidden-dtype", "fp32").exit_code == 0
    with ShardSet.open(shards) as opened:
        kinds = {opened.teacher(name).facts["granularity"]: name for name in opened.manifest.names("teachers")}
    arguments = ("--student", student, "--epochs", 1, "--batch-size", 4, "--set", "method.kd_position=boundary")
    refused = sra_train("run", shards, "--output-dir", tmp_path / "out", *arguments)
    assert "2 teachers (there are" in refused.error
    assert "choose one with --teacher NAME" in refused.error
    answer = sra_train("run", shards, "--output-dir", tmp_path / "out", *arguments, "--teacher", kinds["token"])
    assert answer.exit_code == 0, answer.error
    reads = sra_train("run", shards, "--output-dir", tmp_path / "other", *arguments, "--teacher", kinds["span"])
    assert "kd_position=boundary reads single tokens" in reads.error


def test_a_whole_run_trains_from_pages_by_span(world, tmp_path: Path) -> None:
    student, _, by_span = world
    arguments = ("--student", student, "--output-dir", tmp_path / "out", "--epochs", 1, "--batch-size", 4)
    answer = sra_train("run", by_span, *arguments, "--set", "method.kd_source=top_k")
    assert answer.exit_code == 0, answer.error
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.kd_position=boundary", "kd_position=boundary reads single tokens"),
        ("method.pooling=mean", "pooling=mean reads single tokens"),
        ("method.pooling=last", "pooling=last reads single tokens"),
    ],
)
def test_what_reads_single_tokens_is_refused_with_the_remedy(world, tmp_path: Path, setting, message) -> None:
    student, _, by_span = world
    arguments = ("--student", student, "--output-dir", tmp_path / "out", "--batch-size", 4)
    answer = sra_train("run", by_span, *arguments, "--set", setting)
    assert answer.exit_code == 1
    assert message in answer.error
    assert "; set " in answer.error
    assert "--granularity token`" in answer.error
    assert "\n" not in answer.error
    assert not (tmp_path / "out").exists()


def test_top_k_at_the_centre_of_mass_is_refused_on_pages_by_token(world, tmp_path: Path) -> None:
    student, by_token, _ = world
    arguments = ("--student", student, "--output-dir", tmp_path / "out", "--batch-size", 4)
    answer = sra_train("run", by_token, *arguments, "--set", "method.kd_source=top_k")
    assert answer.exit_code == 1
    assert "set kd_position=boundary or kd_source=head, or run `sra-data cache-teacher" in answer.error
    assert "--granularity span`" in answer.error


def test_another_students_spans_are_refused_and_the_flag_chooses(world, tmp_path: Path) -> None:
    _, by_token, by_span = world
    shards = tmp_path / "shards"
    shutil.copytree(by_span, shards)
    other = tmp_path / "other"
    shutil.copytree(by_token.parent / "teacher", other)  # a student with the teacher's own tokenizer
    teacher, data = by_token.parent / "teacher", by_token.parent / "train.jsonl"
    arguments = ("--teacher", teacher, "--student", other, "--data", data, "--dev-share", 0, "--out", shards)
    assert sra_data("align", *arguments).exit_code == 0
    answer = sra_train("run", shards, "--student", other, "--output-dir", tmp_path / "out", "--batch-size", 4)
    assert "train the other student, or run `sra-data cache-teacher" in answer.error
    options = ("--hidden-dtype", "fp32", "--granularity", "span", "--json")
    assert "2 students (there are" in sra_data("cache-teacher", shards, *options).error
    name = json.loads(sra_data("cache-teacher", shards, *options, "--student", other).output)["section"]
    with ShardSet.open(shards) as opened:
        pages = opened.manifest.sealed(name)
        # the other student has the teacher's tokenizer, so the two are one side
        assert pages["alignment"] == f"alignments/{pages['side']}~{pages['side']}"
    chosen = ("--student", other, "--teacher", name.removeprefix("teachers/"))
    answer = sra_train("run", shards, *chosen, "--output-dir", tmp_path / "out", "--batch-size", 4, *SHORT)
    assert answer.exit_code == 0, answer.error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--granularity", "span", "--no-attention"), "--granularity span: a span's centre of mass needs attention"),
        (("--granularity", "span", "--hidden-dtype", "none"), "--hidden-dtype none leaves no centre of mass"),
        (("--student", "x"), "--student x: pages by token serve every student"),
        (("--granularity", "span", "--student", "x"), "no student x"),
    ],
)
def test_flags_that_contradict_are_refused(world, flags: tuple[str, ...], message: str) -> None:
    assert message in sra_data("cache-teacher", world[1], *flags).error
