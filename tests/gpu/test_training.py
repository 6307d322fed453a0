"""Training on a GPU: what a CPU measures, in every precision, bit by bit again where asked, without needless waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sra_data.errors import TrainingError
from sra_train.methods import METHODS
from tests.synthetic_shards import SyntheticShards
from tests.training_runs import (
    EPSILON,
    Interrupting,
    Listening,
    losses,
    numbers,
    of_evaluations,
    student_of,
    train,
    weights,
)

EXACT = {"training__precision": "no"}
ALONE = {"evaluation__enabled": False, "training__epochs": 3, "checkpoints__every_steps": 1000}
OPTIONS: dict[str, dict[str, object]] = {
    "boundary": {"name": "sra", "kd_position": "boundary"},
    "boundary-topk": {"name": "sra", "kd_position": "boundary", "kd_source": "top_k"},
}


def trained_on_cpu(made: SyntheticShards, out: Path, method: dict[str, object]) -> list[float]:
    """Losses of the same run in a process that sees no GPU."""
    settings = {
        **{f"method.{name}": value for name, value in method.items()},
        "training.epochs": 2,
        "training.batch_size": 5,
        "training.learning_rate": 3e-3,
        "training.epsilon": EPSILON,
        "training.precision": "no",
        "tracking.plots": "false",
    }
    words = [sys.executable, "-m", "sra_train.cli", "run", str(made.shards), "--output-dir", str(out)]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(words, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return losses(out)


@pytest.mark.parametrize("name", [*METHODS, *OPTIONS])
def test_a_method_measures_on_a_gpu_what_it_measures_on_a_cpu(still, tmp_path, name: str) -> None:
    method = OPTIONS.get(name, {"name": name})
    train(still, tmp_path / "gpu", method=method, **EXACT)
    expected = trained_on_cpu(still, tmp_path / "cpu", method)
    found = losses(tmp_path / "gpu")
    assert len(found) == len(expected) >= 10
    assert found == pytest.approx(expected, rel=2e-4)


def test_bf16_stays_near_float32(still, tmp_path) -> None:
    train(still, tmp_path / "whole", **EXACT)
    train(still, tmp_path / "half", training__precision="bf16")
    assert losses(tmp_path / "half") != losses(tmp_path / "whole")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=0.05)


def test_fp16_scales_its_loss_and_learns(still, tmp_path) -> None:
    """Steps whose scaled gradients overflow are skipped, so it falls a few steps behind float32."""
    train(still, tmp_path / "whole", **EXACT)
    train(still, tmp_path / "half", training__precision="fp16", training__epochs=4)
    found = losses(tmp_path / "half")
    assert found[0] == pytest.approx(losses(tmp_path / "whole")[0], rel=0.01)
    assert found[-1] < 0.95 * found[0]


def test_auto_is_bf16_where_the_gpu_has_it(still, tmp_path) -> None:
    train(still, tmp_path / "auto", training__epochs=1)
    recorded = json.loads((tmp_path / "auto" / "run.json").read_text())
    expected = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    assert recorded["identity"]["training.precision"] == expected


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_deterministic_run_and_its_resume_repeat_bit_by_bit(made, tmp_path, precision: str) -> None:
    settings = {"training__deterministic": True, "training__precision": precision, "checkpoints__every_steps": 2}
    train(made, tmp_path / "one", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "two", Interrupting(3), **settings)
    train(made, tmp_path / "two", **settings)
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def waits_of(made: SyntheticShards, out: Path, **settings: object) -> list[list[str]]:
    """Where the host waited for the GPU, step by step, as torch's own watch says."""
    found: list[list[str]] = [[]]
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def show(message: Warning | str, category: type, filename: str, lineno: int, *_: object) -> None:
            if "synchroniz" in str(message):
                found[-1].append(f"{Path(filename).name}:{lineno}")

        warnings.showwarning = show  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train(made, out, Listening(lambda step: found.append([])), **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


@pytest.mark.parametrize("name", ["sft", "sra", "boundary", "boundary-topk"])
def test_a_step_waits_for_the_gpu_once(still, tmp_path, name: str) -> None:
    method = OPTIONS.get(name, {"name": name})
    found = waits_of(still, tmp_path / "out", method=method, **ALONE)
    steady = found[3:-2]  # neither the first steps, in which AdamW makes its state, nor checkpoints
    assert len(steady) >= 5
    assert [one for one in steady if len(one) > 1] == []


def test_attention_takes_kernels_that_need_no_plan_of_a_shape(still, tmp_path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(still, tmp_path / "out", training__precision="bf16", training__max_steps=2, **ALONE)
    taken = {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}
    assert "aten::_scaled_dot_product_flash_attention" in taken
    assert [name for name in taken if "cudnn" in name] == []


def test_memory_that_runs_out_is_one_line_and_the_run_goes_on_from_its_checkpoint(still, tmp_path) -> None:
    config = GPT2Config(n_layer=4, n_embd=512, n_head=4, n_positions=128, vocab_size=2000)
    student = student_of(still, tmp_path / "student", GPT2LMHeadModel(config))
    settings = {"student__name": student, "checkpoints__every_steps": 1, "training__batch_size": 8, **EXACT}

    def fill(step: int) -> None:
        if step == 3:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1e-9)

    try:
        with pytest.raises(TrainingError, match=r"^step 4 of \d+, \d examples .*: out of memory on cuda") as raised:
            train(still, tmp_path / "out", Listening(fill), **settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(raised.value)
    assert "training.micro_batch_tokens=" in str(raised.value)
    train(still, tmp_path / "out", **settings)
    train(still, tmp_path / "whole", **settings)
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"training__compile": True},
        {"training__gradient_checkpointing": True},
        {"student__lora": {"r": 4}},
        {"student__attention": "eager"},
        {"training__micro_batch_size": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_how_it_is_computed_changes_no_loss(still, tmp_path, settings) -> None:
    train(still, tmp_path / "plain", **EXACT, **({"student__lora": {"r": 4}} if "student__lora" in settings else {}))
    train(still, tmp_path / "so", **EXACT, **settings)
    assert losses(tmp_path / "so") == pytest.approx(losses(tmp_path / "plain"), rel=2e-4)
    for metric in ("loss", "bits_per_byte"):
        found, expected = (of_evaluations(tmp_path / name, metric) for name in ("so", "plain"))
        assert found == pytest.approx(expected, rel=2e-4)


def test_one_process_of_torchrun_trains_over_nccl(still, tmp_path) -> None:
    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    run = ["-m", "sra_train.cli", "run", str(still.shards), "--output-dir", str(tmp_path / "out"), "--epochs", "3"]
    done = subprocess.run([*script, *run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "out")) >= 5


def test_an_exported_student_is_measured_on_the_gpu_as_on_a_cpu(still, tmp_path) -> None:
    train(still, tmp_path / "out", training__epochs=1)
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "ab", "response": "cd ef" + " gh" * number} for number in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "sra_train.cli", "evaluate", str(tmp_path / "out" / "model"), "--data", str(data)]
    found = []
    for device in ("cuda", "cpu"):
        options = ["--device", device, "--json", "--rouge", "--seeds", "1", "--max-new-tokens", "5"]
        done = subprocess.run([*words, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    on_gpu, on_cpu = (one["models"][0]["bits_per_byte"] for one in found)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)
