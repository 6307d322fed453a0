"""Whole runs of the trainer: what comes out, and that a resume changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sra_train.config import load_config
from sra_train.record.tracking import read_metrics
from tests.synthetic_shards import ALIGNMENT, STUDENT, TEACHERS
from tests.training_runs import Crashing, Interrupting, losses, train, weights

TEACHER = TEACHERS[0]


def test_a_run_ends_in_a_folder_that_hugging_face_loads_and_that_generates(made, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = train(made, tmp_path / "out", tracking__plots=True)
    assert summary.model_folder == str(tmp_path / "out" / "model")
    model = AutoModelForCausalLM.from_pretrained(summary.model_folder)
    tokenizer = AutoTokenizer.from_pretrained(summary.model_folder)
    ids = tokenizer("abc", return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=5, min_new_tokens=5, pad_token_id=tokenizer.pad_token_id)
    assert said.shape[1] == ids["input_ids"].shape[1] + 5
    assert tokenizer.model_max_length > 10**6 or tokenizer.model_max_length == 128
    card = (Path(summary.model_folder) / "README.md").read_text()
    assert "synthetic teacher" in card
    assert "random words" in card
    assert f"| Weights of | step {summary.exported_step} of {summary.total_steps} |" in card
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} >= {"loss.png", "ce.png", "kd.png", "lr.png"}


def test_every_step_says_what_it_cost(made, tmp_path) -> None:
    train(made, tmp_path / "out")
    steps = [record for record in read_metrics(tmp_path / "out" / "metrics.jsonl") if record["kind"] == "step"]
    wanted = {"loss", "ce", "cos", "geo", "kd", "lr", "projector_lr", "grad_norm", "tokens_per_second", "data_wait"}
    assert all(record.keys() >= wanted | {"spans", "peak_memory_bytes", "epoch"} for record in steps)
    assert all(0 <= record["data_wait"] < 1 and record["spans"] > 0 for record in steps)
    table = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert len(table) == 1 + len(read_metrics(tmp_path / "out" / "metrics.jsonl"))


def test_the_run_records_what_it_was_made_of(made, tmp_path) -> None:
    summary = train(made, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    manifest = json.loads((made.shards / "manifest.json").read_text())
    assert record["roots"] == {
        "corpus": manifest["corpus"]["root"],
        f"sides/{STUDENT}": manifest["sides"][STUDENT]["root"],
        f"sides/{TEACHER}": manifest["sides"][TEACHER]["root"],
        f"alignments/{ALIGNMENT}": manifest["alignments"][ALIGNMENT]["root"],
        f"teachers/{TEACHER}": manifest["teachers"][TEACHER]["root"],
    }
    assert record["facts"]["teachers"] == [{"folder": TEACHER, "model": "synthetic teacher", "weight": 1.0}]
    assert record["versions"]["torch"] == version("torch")
    assert load_config(tmp_path / "out" / "config.yaml").training.precision == "no"
    assert summary.steps == summary.total_steps


def test_training_lowers_the_loss_and_the_best_step_is_exported(made, tmp_path) -> None:
    summary = train(made, tmp_path / "out", training__epochs=6, evaluation__metric="bits_per_byte")
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    measured = {record["step"]: record["bits_per_byte"] for record in records if record["kind"] == "evaluation"}
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]
    assert summary.exported_step == min(measured, key=measured.__getitem__)
    assert len(measured) == 6


def test_sft_never_opens_the_teachers_pages(still, tmp_path) -> None:
    alone = tmp_path / "shards"
    shutil.copytree(still.shards, alone)
    for folder in ("teachers", "alignments", f"sides/{TEACHER}"):
        shutil.rmtree(alone / folder)
    summary = train(still, tmp_path / "out", data__shards=str(alone), method__name="sft")
    assert summary.metrics["bits_per_byte"] > 0


def test_a_finished_run_run_again_changes_nothing(made, tmp_path) -> None:
    first = train(made, tmp_path / "out")
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert train(made, tmp_path / "out") == first
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_only_the_last_checkpoints_and_the_best_are_kept(made, tmp_path) -> None:
    summary = train(made, tmp_path / "out", training__epochs=4, checkpoints__keep_last=1)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == sorted({summary.exported_step, summary.total_steps})


def test_training_stops_early_when_nothing_gets_better(still, tmp_path) -> None:
    # the rate is so small that float32 weights do not move after the first steps: no evaluation is ever better
    summary = train(
        still, tmp_path / "out", training__epochs=8, training__learning_rate=1e-30,
        training__min_learning_rate=0, training__projector_learning_rate=1e-30, evaluation__patience=2,
    )  # fmt: skip
    assert summary.stopped_early
    assert summary.steps == 3 * summary.total_steps // 8
    assert summary.exported_step == summary.total_steps // 8


def test_three_resumes_in_one_epoch_give_bit_identical_losses_and_weights(made, tmp_path) -> None:
    whole = train(made, tmp_path / "whole", training__epochs=1)
    assert whole.total_steps == 5
    for after in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "pieces", Interrupting(after), training__epochs=1)
    train(made, tmp_path / "pieces", training__epochs=1)
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stop_where_an_evaluation_is_due_loses_none(made, tmp_path) -> None:
    """The stop comes in the step that ends an epoch, then in the last of all: the next call measures first."""
    whole = train(made, tmp_path / "whole", training__epochs=2)
    folder = tmp_path / "pieces"
    for after in (5, 10):
        with pytest.raises(KeyboardInterrupt):
            train(made, folder, Interrupting(after), training__epochs=2)
    for _ in range(2):  # the second time nothing is left to do, and nothing is measured again
        pieces = train(made, folder, training__epochs=2)
        assert evaluations(folder) == evaluations(tmp_path / "whole")
        assert [step for step, _ in evaluations(folder)] == [5, 10]
        assert pieces.exported_step == whole.exported_step


def test_an_evaluation_made_good_is_not_repeated_after_a_crash(made, tmp_path) -> None:
    settings = {"training__epochs": 2, "training__learning_rate": 1e-30, "training__min_learning_rate": 0}
    settings["training__projector_learning_rate"] = 1e-30  # so that no evaluation but the first is the best
    settings |= {"evaluation__every_steps": 2, "checkpoints__every_steps": 100}
    train(made, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "pieces", Interrupting(4), **settings)
    with pytest.raises(RuntimeError, match="crashed behind step 5"):
        train(made, tmp_path / "pieces", Crashing(5), **settings)
    train(made, tmp_path / "pieces", **settings)
    assert [step for step, _ in evaluations(tmp_path / "pieces")] == [2, 4, 6, 8, 10]
    assert evaluations(tmp_path / "pieces") == evaluations(tmp_path / "whole")


def evaluations(folder: Path) -> list[tuple[int, float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "evaluation"]


def test_a_crash_behind_the_last_checkpoint_repeats_the_lost_steps_exactly(made, tmp_path) -> None:
    train(made, tmp_path / "out", checkpoints__every_steps=2, checkpoints__keep_last=9)
    before = losses(tmp_path / "out")
    for step in (6, 8, 10):
        shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000005", ignore_errors=True)
    train(made, tmp_path / "out", checkpoints__every_steps=2, checkpoints__keep_last=9)
    assert losses(tmp_path / "out") == before


def test_signals_are_given_back_after_the_run(made, tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "out", Interrupting(1, signal.SIGINT))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (tmp_path / "out" / "checkpoints" / "step-00000001" / "state.json").is_file()
