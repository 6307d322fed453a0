"""A real pair on one GPU, from text to a trained student: seconds, tokens a second, bytes and memory. One JSON object.

    python -m benchmarks.gpu [--out FOLDER] [--shared ../shared] [--teacher qwen1.5-1.8b] [--steps 60] [--runs ...]

Qwen1.5-1.8B's configuration and tokenizer with random weights (a forward takes as long whatever they are) teach GPT-2's
124 M on Dolly, by the commands themselves. Nothing is held to a target but what `estimate` says beforehand:

    align             seconds of `sra-data align`
    estimate          what `sra-data estimate` says of hours and bytes, the teacher loaded and timed on a few examples
    cache             seconds and bytes of `sra-data cache-teacher`, what it says of faithfulness, and
                      estimate_error_hours, estimate_error_bytes: |estimate / taken - 1|
    train             by method and micro-batch tokens: median tokens a second and seconds of a step (the first ten left
                      out), share of time waited for data, peak of the GPU's memory; sra_over_sft and its like are
                      ratios of tokens a second
    batches           the teacher's tokens a second (without padding) by padded tokens of a batch, and by megabytes of
                      float32 logits held at a time
    attention         the teacher's tokens a second over rows of new shapes: with cuDNN's kernels, which make a plan of
                      each, without (as the commands run), and with the plans made
    head              the teacher's log-probabilities from logits rounded to bfloat16, beside those of float32 sums
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script too

REPOSITORY = Path(__file__).resolve().parents[1]
WARM_STEPS = 10
ROWS_OF_A_UNIT = 690
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"method.name": "sft"},
    "sra": {"method.name": "sra"},
    "boundary": {"method.name": "sra", "method.kd_position": "boundary"},
    "boundary_topk": {"method.name": "sra", "method.kd_position": "boundary", "method.kd_source": "top_k"},
    "sft_64": {"method.name": "sft", "training.batch_size": 64},
    "sra_64": {"method.name": "sra", "training.batch_size": 64},
    "sra_64_by_4096": {"method.name": "sra", "training.batch_size": 64, "training.micro_batch_tokens": 4096},
    "sra_64_by_65536": {"method.name": "sra", "training.batch_size": 64, "training.micro_batch_tokens": 65536},
    "sra_float32": {"method.name": "sra", "training.precision": "no"},
    "sra_compiled": {"method.name": "sra", "training.compile": "true"},
}


def command(package: str, *words: object) -> tuple[str, float]:
    """What a command printed, and the seconds it took, imports included; its errors stop this."""
    started = time.perf_counter()
    call = [sys.executable, "-m", f"{package}.cli", *map(str, words)]
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout, time.perf_counter() - started


def make_teacher(place: Path, source: Path) -> dict[str, Any]:
    """A folder with the configuration and tokenizer of `source` and random weights, made on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    place.mkdir(parents=True)
    model.save_pretrained(place)
    for path in source.iterdir():
        if path.name != "config.json":
            shutil.copyfile(path, place / path.name)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def of_run(out: Path) -> dict[str, float]:
    """Medians of a run's steps."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [one for one in records if one["kind"] == "step"][WARM_STEPS:]
    found = {
        name: statistics.median(one[name] for one in steps) for name in ("tokens_per_second", "seconds", "data_wait")
    }
    return found | {"peak_gb": steps[-1]["peak_memory_bytes"] / 1e9, "steps": len(steps), "loss": steps[-1]["loss"]}


def train(shards: Path, out: Path, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """One run of a few steps, without evaluation."""
    fixed = {
        "student.init": "random",
        "training.max_steps": steps,
        "evaluation.enabled": "false",
        "checkpoints.every_steps": 10**6,
        "tracking.plots": "false",
    }
    words = [word for name, value in (fixed | settings).items() for word in ("--set", f"{name}={value}")]
    _, seconds = command("sra_train", "run", shards, "--output-dir", out, *words)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return of_run(out) | {"seconds_of_command": seconds}


def errors_of(estimate: dict[str, Any], cache: dict[str, Any]) -> dict[str, float]:
    """How far the estimate was from what was taken, the command's imports among it."""
    return {
        "estimate_error_hours": abs(3600 * estimate["cache_hours"] / cache["seconds"] - 1),
        "estimate_error_bytes": abs(estimate["expected_bytes"] / cache["num_bytes"] - 1),
    }


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of every method's run over those of plain fine-tuning with the same batch."""
    rates = {name: found[name]["tokens_per_second"] for name in RUNS if name in found}
    pairs = {name: "sft_64" if "_64" in name else "sft" for name in rates}
    return {f"{name}_over_{base}": rates[name] / rates[base] for name, base in pairs.items() if base in rates}


def loaded_with_rows(teacher: Path, shards: Path, num_units: int) -> tuple[Any, list[list[Any]]]:
    """The teacher's model, and the examples of the first units."""
    from sra_data.shards.store import ShardSet
    from sra_data.stages.cache.examples import ExampleReader
    from sra_data.teacher.loading import load
    from sra_data.teacher.spec import TeacherSpec

    with ShardSet.open(shards) as opened:
        (place,) = (shards / "sides").glob("teacher-*")
        examples = ExampleReader(opened.side(place.name))
        starts = range(0, num_units * ROWS_OF_A_UNIT, ROWS_OF_A_UNIT)
        units = [examples.read(range(start, start + ROWS_OF_A_UNIT)) for start in starts]
    return load(TeacherSpec(str(teacher))).model, units


def rate(model: Any, rows: list[Any], budget: int, megabytes: int = 512, *, warm: bool = True) -> float:
    """Tokens a second of a unit's rows through the teacher, cut into batches of so many tokens."""
    from sra_data.teacher.batching import plan_batches
    from sra_data.teacher.capture import TeacherCapture
    from sra_data.teacher.spec import CaptureOptions

    lengths = [len(one.ids) for one in rows]
    capture = TeacherCapture(model, CaptureOptions(logits_chunk_bytes=megabytes << 20))
    batches = [[rows[index] for index in batch] for batch in plan_batches(lengths, budget)]
    if warm:
        capture(batches[0])
    torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in batches:
        capture(batch)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    capture.close()
    return sum(lengths) / seconds


def batch_rates(teacher: Path, shards: Path) -> dict[str, float]:
    """By padded tokens of a batch, and by megabytes of float32 logits held at a time."""
    model, (rows,) = loaded_with_rows(teacher, shards, 1)
    found: dict[str, float] = {}
    for budget in (4096, 8192, 16384, 32768, 131072):
        for megabytes in (64, 512, 2048) if budget == 16384 else (512,):
            found[f"{budget}_by_{megabytes}"] = rate(model, rows, budget, megabytes)
    return found


def attention_rates(teacher: Path, shards: Path) -> dict[str, dict[str, float]]:
    """Of units that no other has a shape of batches in common with, with cuDNN's attention and without."""
    model, (first, *others) = loaded_with_rows(teacher, shards, 4)
    choose = torch.backends.cuda.enable_cudnn_sdp
    rate(model, first, 16384)

    def with_plans(rows: list[Any]) -> float:
        choose(True)
        with mock.patch.object(torch.backends.cuda, "enable_cudnn_sdp"):  # nothing takes it back
            return rate(model, rows, 16384, warm=False)

    with_plans(first)
    return {
        f"unit_{number}": {
            "with_new_plans": with_plans(rows),
            "without_plans": rate(model, rows, 16384, warm=False),
            "with_known_plans": with_plans(rows),
        }
        for number, rows in enumerate(others)
    }


def head_errors(teacher: Path) -> dict[str, float]:
    """How far log-probabilities of rounded logits are from those of float32 sums, for states of the head's size."""
    from transformers import AutoModelForCausalLM

    from sra_data.models.output_head import OutputHead

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16).cuda().eval()
    head = OutputHead.from_model(model).detach()
    torch.manual_seed(1)
    weight = head.weight
    states = torch.randn(4096, weight.shape[1], device="cuda").bfloat16()
    exact = (states.float() @ weight.float().T).log_softmax(dim=-1)
    top = exact.argmax(dim=-1, keepdim=True)
    found: dict[str, float] = {}
    products: dict[str, Callable[[], torch.Tensor]] = {"rounded": lambda: head.logits(states).float()}
    products["float32_sums"] = lambda: torch.mm(states, weight.T, out_dtype=torch.float32)  # type: ignore[call-overload]
    for name, product in products.items():
        try:
            said = product().log_softmax(dim=-1)
        except (TypeError, RuntimeError) as error:
            found[f"{name}_failed"] = str(error)[:200]  # type: ignore[assignment]
            continue
        found[f"{name}_error_at_top"] = float((said - exact).gather(1, top).abs().mean())
        found[f"{name}_kl"] = float((exact.exp() * (exact - said)).sum(dim=-1).mean())
        times = []
        for _ in range(7):
            torch.cuda.synchronize()
            started = time.perf_counter()
            product()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        found[f"{name}_seconds"] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--teacher", default="qwen1.5-1.8b")
    parser.add_argument("--student", default="gpt2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, help="of Dolly's training rows; all where nothing is said")
    parser.add_argument("--without-estimate", action="store_true")
    parser.add_argument("--without-batches", action="store_true")
    parser.add_argument("--folder", type=Path, help="work in this folder, and leave it")
    parser.add_argument("--out", type=Path, help="keep the result as it grows in this file")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: needs a GPU")
    found: dict[str, Any] = {
        "configuration": {
            "teacher": arguments.teacher,
            "student": arguments.student,
            "device": torch.cuda.get_device_name(),
            **{name: version(name) for name in ("torch", "transformers", "pyarrow")},
        }
    }

    def keep(**values: Any) -> None:
        found.update(values)
        print(json.dumps(values), file=sys.stderr, flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")

    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        teacher, shards, data = folder / "teacher", folder / "shards", arguments.shared / "data" / "dolly"
        student = arguments.shared / "tokenizers" / arguments.student
        keep(teacher=make_teacher(teacher, arguments.shared / "tokenizers" / arguments.teacher))
        torch.cuda.empty_cache()
        text = folder / "train.jsonl"
        lines = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
        text.write_text("".join(lines[: arguments.rows]), "utf-8")
        places = ("--data", text, "--dev-data", data / "dev.jsonl", "--out", shards)
        lengths = ("--max-length", 320, "--overlong", "truncate-prompt")
        said, seconds = command(
            "sra_data", "align", "--teacher", teacher, "--student", student, *places, *lengths, "--json"
        )
        keep(align={"seconds": seconds} | {k: v for k, v in json.loads(said).items() if isinstance(v, int)})
        estimate: dict[str, Any] | None = None
        if not arguments.without_estimate:
            said, seconds = command("sra_data", "estimate", shards, "--teacher", teacher, "--json")
            estimate = json.loads(said)
            keep(estimate={"seconds": seconds, **{k: v for k, v in estimate.items() if not isinstance(v, list)}})
        said, seconds = command("sra_data", "cache-teacher", shards, "--teacher", teacher, "--json")
        keep(cache={"seconds": seconds, **json.loads(said)})
        if estimate is not None:
            keep(**errors_of(estimate, found["cache"]))
        keep(head=head_errors(teacher))
        torch.cuda.empty_cache()
        if not arguments.without_batches:
            keep(attention=attention_rates(teacher, shards))
            torch.cuda.empty_cache()
            keep(batches=batch_rates(teacher, shards))
            torch.cuda.empty_cache()
        for one in arguments.runs:
            keep(**{one: train(shards, folder / "runs" / one, RUNS[one], arguments.steps)})
        keep(**ratios(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
