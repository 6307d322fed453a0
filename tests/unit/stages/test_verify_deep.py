"""Laws of `verify --deep`: the same teacher says the same; another one, or other pages, are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sra_data.errors import ModelError, ShardError
from sra_data.shards.store import FolderReader, ShardSet, record
from sra_data.stages.cache.recapture import recapture, settings_of_pages
from sra_data.stages.cache.unit import CacheWorker
from sra_data.stages.verify import VerifyOptions, VerifySummary, verify
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data, write_examples, write_pair
from tests.model_zoo import tiny_model

OPTIONS = {
    "bf16": ("--top-k", 8),
    "int8 of two layers": ("--hidden-dtype", "int8", "--layers", "1,last", "--top-k", 0),
    "by span": ("--granularity", "span", "--top-k", 8),
    "no states": ("--hidden-dtype", "none", "--top-k", 3),
}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 14 examples, cut so that nothing follows the last token of some."""
    folder = tmp_path_factory.mktemp("deep")
    teacher, student = write_pair(folder)
    data = write_examples(folder / "train.jsonl", 14)
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--max-length", 60)
    answer = sra_data("align", *arguments, "--out", folder / "shards")
    assert answer.exit_code == 0, answer.error
    return folder


def cached(aligned: Path, place: Path, *options: object) -> Path:
    """A copy with the teacher's pages, and with a teacher of its own."""
    shutil.copytree(aligned / "teacher", place / "teacher")
    shards = Path(shutil.copytree(aligned / "shards", place / "shards"))
    answer = sra_data("cache-teacher", shards, "--teacher", place / "teacher", "--device", "cpu", *options)
    assert answer.exit_code == 0, answer.error
    return shards


def deep(shards: Path, sample: int = 6, teacher: str | None = None) -> VerifySummary:
    return verify(VerifyOptions(shards, deep=True, teacher=teacher, sample=sample), Reporter(), recapture)


def pages_of(opened: ShardSet) -> FolderReader:
    """The only teacher's."""
    return opened.teacher(opened.choose_teacher())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_teacher_says_the_same(aligned: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    shards = cached(aligned, tmp_path, *options)
    with ShardSet.open(shards) as opened:
        if "span" not in options:
            last = [row.next_log_prob[-1] for row in pages_of(opened).read(range(14), ["next_log_prob"])]
            assert np.isnan(last).any()  # nothing follows there: no disagreement
    summary = deep(shards)
    assert summary.problems == ()
    assert summary.num_recaptured == 6
    assert "the teacher said the same about 6 examples" in summary.lines()


def test_what_is_said_again_is_encoded_as_it_is_stored(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path, *OPTIONS["int8 of two layers"])
    with ShardSet.open(shards) as opened:
        rows = [1, 5]
        live = recapture(opened, opened.choose_teacher(), rows, TeacherSpec(device="cpu"))
        for now, stored in zip(live, pages_of(opened).read(rows), strict=True):
            assert now.id == stored.id
            assert now.hidden.keys() == stored.hidden.keys() == {1, 3}
            for layer, tensor in stored.hidden.items():
                assert now.hidden[layer].dtype == tensor.dtype == "int8"
                np.testing.assert_array_equal(now.hidden[layer].channel_scales, tensor.channel_scales)
                np.testing.assert_allclose(now.hidden[layer].float32(), tensor.float32(), atol=0.05)


def test_the_settings_of_the_pages_have_their_very_columns(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path, *OPTIONS["int8 of two layers"])
    with ShardSet.open(shards) as opened:
        settings = settings_of_pages(opened, opened.choose_teacher(), TeacherSpec(device="cpu"))
        assert settings.schema() == pages_of(opened).schema


def test_a_teacher_is_asked_again_as_its_pages_know_it_and_where_the_asker_says(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path, "--dtype", "bf16", "--top-k", 0)
    with ShardSet.open(shards) as opened:
        how = TeacherSpec(name="another", dtype="fp32", device="cpu", trust_remote_code=True)
        asked = settings_of_pages(opened, opened.choose_teacher(), how).teacher
    assert (asked.name, asked.dtype, asked.quantization) == (str(tmp_path / "teacher"), "bf16", None)
    assert (asked.device, asked.trust_remote_code) == ("cpu", True)


def test_a_teacher_that_was_trained_on_is_told(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path)
    positions = json.loads((tmp_path / "teacher" / "config.json").read_text())["max_position_embeddings"]
    vocabulary = json.loads((tmp_path / "teacher" / "config.json").read_text())["vocab_size"]
    other = tiny_model("llama", seed=9, vocab_size=vocabulary, max_position_embeddings=positions)
    other.save_pretrained(tmp_path / "teacher")
    (problem,) = deep(shards).problems
    assert "made with a teacher of fingerprint" in problem
    answer = sra_data("verify", shards, "--deep", "--device", "cpu")
    assert answer.exit_code == 1
    assert "put that model back, or delete the folder" in answer.error
    assert sra_data("verify", shards).exit_code == 0  # what is on disk is whole


def test_pages_that_hold_something_else_are_told_with_example_and_column(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = cached(aligned, tmp_path)
    say = CacheWorker.say
    monkeypatch.setattr(CacheWorker, "say", lambda worker, rows: say(worker, [*rows[1:], rows[0]]))
    problems = deep(shards).problems
    assert problems
    assert any("example example-" in line and "hidden.3" in line for line in problems)
    assert any("next_log_prob: the teacher now says otherwise" in line for line in problems)


def test_examples_that_failed_are_not_asked_about(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path)
    with ShardSet.open(shards) as opened:
        failed = [opened.corpus.index.id_of(0)]
        record(shards, f"teachers/{opened.choose_teacher()}", failed_examples=failed)
    assert deep(shards, sample=14).num_recaptured == 13


def test_a_teacher_that_is_gone_is_one_line(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises((ModelError, ShardError), match=r"cannot be loaded") as raised:
        deep(shards)
    assert "\n" not in str(raised.value)


def test_the_command_says_so(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path)
    answer = sra_data("verify", shards, "--deep", "--sample", 3, "--json")
    assert answer.exit_code == 0, answer.error
    assert json.loads(answer.output)["num_recaptured"] == 3


def test_of_several_teachers_the_one_named_is_asked_again(aligned: Path, tmp_path: Path) -> None:
    shards = cached(aligned, tmp_path)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    other = Path(shutil.copytree(tmp_path / "teacher", tmp_path / "other"))
    sizes = {name: config[name] for name in ("max_position_embeddings", "vocab_size")}
    tiny_model("llama", seed=9, **sizes).save_pretrained(other)
    assert sra_data("cache-teacher", shards, "--teacher", other, "--device", "cpu").exit_code == 0
    with pytest.raises(ShardError, match=r"2 teachers \(there are other-\w+, teacher-\w+\); choose one with --teacher"):
        deep(shards)
    shutil.rmtree(tmp_path / "teacher")  # the other one is asked
    for name in ("other", "other-", str(other)):
        assert deep(shards, teacher=name).num_recaptured == 6
    answer = sra_data("verify", shards, "--deep", "--teacher", "teacher")
    assert "cannot be loaded" in answer.error
