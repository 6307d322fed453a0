"""What capture costs beside plain forwards of the same model: speed, memory and bytes. Prints one JSON object.

    python -m benchmarks.cache [--quick]

Ratios, each with its `..._numerator` and `..._denominator`:

* capture_over_forward: tokens per second of cache units, shards written and read back, over the same model's plain SDPA
  forward with logits, same examples, same length-sorted batches (target: at least 0.85). The plain forward gets a
  padding mask, as users pass it; capture_over_unmasked_forward compares with the same forward without one.
* body_over_eager_body: positions per second of the body with capture over the eager body with output_attentions and
  output_hidden_states, at 1,024 tokens (at least 1.5).
* eager_memory_over_ours: peak memory beyond the loaded model at 4,096 tokens (at least 5); memory_over_body: ours over
  a plain forward without head plus one 64 MB chunk of logits (at most 1.25). Each in a process of its own.
* bytes_per_token: a teacher's part-* over cached positions at hidden size 2,048 and vocabulary 151,936 (at most
  2 x hidden + 290); int8_over_bf16 the same with int8 states (at most 0.55), both of a part of 4,096 positions or more,
  so that the channel scales it names once do not show. Its rows are a random wide teacher's; their bf16 states are
  encoded again for int8, whose size depends on nothing else.
* int8_kl, int8_non_outlier_error: KL(live || cache) in nats (at most 1e-3) and relative error outside the outlier
  channels (at most 0.01), on a small TRAINED teacher given outliers: see trained_teacher.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script too

from benchmarks.cache_shards import LONGEST, REPOSITORY, SIDE, write_random_side
from benchmarks.trained_teacher import OUTLIER_FACTOR, OUTLIERS, give_outliers, text_ids, train_teacher
from sra_data.shards.codecs import encode_float32, estimate_channel_scales, scales_to_text
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import FolderReader, Plan, Receipt, Unit, begin, seal, write_part
from sra_data.stages.cache.faithfulness import next_token_divergences
from sra_data.stages.cache.parts import UnitSettings
from sra_data.stages.cache.unit import CacheWorker
from sra_data.teacher.batching import CPU_BUDGET, plan_batches
from sra_data.teacher.capture import LOGITS_CHUNK_BYTES, Example, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, load
from sra_data.teacher.spec import CaptureOptions, TeacherSpec

PAGES = "teachers/benchmark-00000000"
EXAMPLES = 96


def teacher_config(quick: bool) -> dict[str, Any]:
    """The benchmark's teacher: 6 layers x 512, 8 heads, vocabulary 32,000."""
    if quick:
        return {"layers": 2, "hidden": 64, "heads": 2, "vocabulary": 2000}
    return {"layers": 6, "hidden": 512, "heads": 8, "vocabulary": 32000}


def make_teacher(config: dict[str, Any], *, intermediate: int | None = None) -> Any:
    """A randomly initialised Llama of that size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocabulary"],
            hidden_size=config["hidden"],
            intermediate_size=intermediate or config["hidden"] * 8 // 3,
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            max_position_embeddings=4096,
            tie_word_embeddings=intermediate is not None,  # the wide model: half the memory
        )
    ).eval()


def measure_capture(folder: Path, *, quick: bool, repeats: int) -> dict[str, Any]:
    """capture_over_forward: whole units against plain forwards, in turns."""
    config = teacher_config(quick)
    examples = 16 if quick else EXAMPLES
    num_tokens, source = write_random_side(folder / "shards", examples, config["vocabulary"])
    teacher = load(TeacherSpec(str(folder / "teacher"), device="cpu"))
    settings = settings_of(folder / "shards", config)
    units = Plan.load(folder / "shards" / "corpus").units
    worker = CacheWorker(settings, teacher)
    times: dict[str, list[float]] = {"capture": [], "forward": [], "unmasked": []}
    for number in range(repeats + 1):
        for name in times:
            started = time.perf_counter()
            for unit in units:
                if name == "capture":
                    worker(unit, lambda tokens: None)
                else:
                    plain_forward(worker, unit, masked=name == "forward")
            if number:  # the first round warms caches and allocators up
                times[name].append(time.perf_counter() - started)
    worker.close()
    rates = {name: num_tokens / median(values) for name, values in times.items()}
    found = ratio("capture_over_forward", rates["capture"], rates["forward"])
    found |= ratio("capture_over_unmasked_forward", rates["capture"], rates["unmasked"])
    configuration = {**config, "examples": examples, "tokens": num_tokens, "lengths": source}
    return found | {"configuration": {**configuration, "batch_tokens": CPU_BUDGET, "longest": LONGEST}}


def settings_of(shards: Path, config: dict[str, Any]) -> UnitSettings:
    """What a unit of these shards is captured with: the command's defaults."""
    return UnitSettings(
        shards=shards,
        section=PAGES,
        teacher=TeacherSpec("benchmark", dtype="fp32", device="cpu"),
        capture=CaptureOptions().resolved(config["layers"]),
        side=SIDE,
        hidden_size=config["hidden"],
        vocabulary_size=config["vocabulary"],
        batch_tokens=CPU_BUDGET,
    )


@torch.inference_mode()
def plain_forward(worker: CacheWorker, unit: Unit, *, masked: bool) -> None:
    """The same examples in the same batches through the whole model, logits of every position."""
    rows = worker.examples.read(range(unit.start, unit.stop))
    for batch in plan_batches([len(row.ids) for row in rows], worker.settings.batch_tokens):
        width = max(len(rows[index].ids) for index in batch)
        ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
        for place, index in enumerate(batch):
            length = len(rows[index].ids)
            ids[place, :length] = torch.from_numpy(rows[index].ids)
            mask[place, :length] = 1
        worker.teacher.model(input_ids=ids, attention_mask=mask if masked else None, use_cache=False)


def measure_body(folder: Path, *, quick: bool, repeats: int) -> dict[str, Any]:
    """body_over_eager_body: the body with capture against the eager body with everything returned."""
    from transformers import AutoModelForCausalLM

    config, length = teacher_config(quick), 128 if quick else 1024
    ids = torch.randint(0, config["vocabulary"], (1, length))
    eager = AutoModelForCausalLM.from_pretrained(folder / "teacher", attn_implementation="eager").eval()
    capture = capture_of(folder, config)
    rows, columns = torch.zeros(length, dtype=torch.long), torch.arange(length)
    times: dict[str, list[float]] = {"ours": [], "eager": []}
    with torch.inference_mode():
        for _ in range(2 * repeats + 1):
            started = time.perf_counter()
            capture._forward(ids, torch.tensor([length - 1]), rows, columns)
            middle = time.perf_counter()
            eager.model(input_ids=ids, output_attentions=True, output_hidden_states=True, use_cache=False)
            times["ours"].append(middle - started)
            times["eager"].append(time.perf_counter() - middle)
    rates = {name: length / median(values[1:]) for name, values in times.items()}  # the first round warms up
    return ratio("body_over_eager_body", rates["ours"], rates["eager"])


def capture_of(folder: Path, config: dict[str, Any]) -> TeacherCapture:
    """A capture of the benchmark's teacher."""
    teacher = load(TeacherSpec(str(folder / "teacher"), device="cpu"))
    return TeacherCapture(teacher.model, CaptureOptions(layers=(config["layers"],)))


def measure_memory(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Peak memory beyond the loaded model, each way in a process of its own."""
    peaks = {}
    for way in ("ours", "body", "eager"):
        command = [sys.executable, "-m", "benchmarks.cache", "--memory-of", way, "--folder", str(folder)]
        done = subprocess.run(
            command + (["--quick"] if quick else []), cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        peaks[way] = int(done.stdout.strip().splitlines()[-1])
    found = ratio("eager_memory_over_ours", peaks["eager"], peaks["ours"])
    return found | ratio("memory_over_body", peaks["ours"], peaks["body"] + LOGITS_CHUNK_BYTES["cpu"])


def memory_of(way: str, folder: Path, *, quick: bool) -> int:
    """Bytes above the loaded model at the highest point of one forward."""
    from transformers import AutoModelForCausalLM

    config, length = teacher_config(quick), 512 if quick else 4096
    ids = np.random.default_rng(0).integers(0, config["vocabulary"], length).astype(np.int32)
    if way == "ours":
        capture = capture_of(folder, config)
        positions = np.arange(length // 4, length, dtype=np.int32)

        def run(count: int) -> None:
            capture([Example("e", ids[:count], positions[positions < count])])
    else:
        implementation = "eager" if way == "eager" else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(folder / "teacher", attn_implementation=implementation).eval()

        def run(count: int) -> None:
            batch, everything = torch.from_numpy(ids[:count])[None].long(), way == "eager"
            with torch.inference_mode():
                model.model(
                    input_ids=batch, output_attentions=everything, output_hidden_states=everything, use_cache=False
                )

    run(length // 2 if way != "eager" else 64)  # libraries' own buffers come with the first call
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status_bytes("VmRSS")
    run(length)
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure_bytes(folder: Path, *, quick: bool) -> dict[str, Any]:
    """bytes_per_token and int8_over_bf16: what a unit of the command writes, and its rows with int8 states."""
    hidden, vocabulary, least = (256, 5000, 256) if quick else (2048, 151936, 4096)
    config = {"layers": 1, "hidden": hidden, "heads": 8, "vocabulary": vocabulary}
    model = make_teacher(config, intermediate=64)
    teacher = LoadedTeacher(model, model.config, fingerprint="random", name="random", revision=None)
    shards = folder / "wide"
    write_random_side(shards, 2000, vocabulary, least_positions=least)
    settings = settings_of(shards, config)
    (unit,) = units = Plan.load(shards / "corpus").units
    begin(shards, PAGES, {"corpus": "benchmark"}, lambda: units, made_from=(f"sides/{SIDE}",))
    worker = CacheWorker(settings, teacher)
    notes = worker(unit, lambda tokens: None)
    worker.close()
    seal(shards, PAGES)
    with FolderReader(shards, PAGES) as reader:
        rows: list[TeacherRow] = reader.read(range(len(reader)))
    states = {row.id: row.hidden[1].float32() for row in rows}
    scales = estimate_channel_scales(np.concatenate(list(states.values())))
    coarse = [replace(row, hidden={1: encode_float32(states[row.id], "int8", scales)}) for row in rows]
    as_int8 = replace(settings, capture=replace(settings.capture, hidden_dtype="int8"))
    as_int8 = replace(as_int8, channel_scales={1: scales_to_text(scales)})
    groups = Receipt.load(shards / PAGES, unit.part).row_groups
    (folder / "int8").mkdir()
    receipt = write_part(folder / "int8", as_int8.schema(), unit, coarse, groups)
    found = ratio("bytes_per_token", notes["bytes"], notes["positions"])
    found["bytes_per_token_target"] = 2 * hidden + 290
    found |= ratio("int8_over_bf16", receipt.bytes / notes["positions"], notes["bytes"] / notes["positions"])
    rows_of = "random teacher of 1 layer, tied; int8: the same rows encoded again"
    return found | {"bytes_configuration": {**config, "top_k": 64, "positions": notes["positions"], "rows": rows_of}}


def measure_int8(*, quick: bool) -> dict[str, Any]:
    """int8_kl and int8_non_outlier_error, on a small trained teacher with outlier channels."""
    steps, length = (20 if quick else 300), 96
    model = train_teacher(steps=steps)
    ids = text_ids()
    starts = np.linspace(0, len(ids) - length, 64, dtype=int)
    stretches = np.stack([ids[start : start + length] for start in starts])
    with torch.inference_mode():
        probe = torch.from_numpy(stretches)
        plain = model(probe).logits
        give_outliers(model)
        change = float((model(probe).logits - plain).abs().max())
        nats = float(model(probe, labels=probe).loss)
    positions = np.arange(length, dtype=np.int32)
    examples = [Example(f"e{place}", row.astype(np.int32), positions) for place, row in enumerate(stretches)]
    capture = TeacherCapture(model, CaptureOptions(layers=(2,), hidden_dtype="fp32", attention=False, top_k=0))
    live = np.concatenate([one.hidden[2].float32() for one in capture(examples)])
    # Scales from one half, errors on the other: the command's scales come from a sample too.
    half = len(live) // 2
    scales = estimate_channel_scales(live[:half])
    live, cached = live[half:], encode_float32(live[half:], "int8", scales).float32()
    normal = np.setdiff1d(np.arange(live.shape[1]), OUTLIERS)
    error = float(np.linalg.norm((cached - live)[:, normal]))
    found = ratio("int8_non_outlier_error", error, float(np.linalg.norm(live[:, normal])))
    found["int8_kl"] = float(next_token_divergences(capture.head, live, cached).mean())
    configuration = {"teacher": "2 layers x 128 over bytes, trained", "steps": steps, "nats_of_next_byte": nats}
    configuration |= {"outlier_channels": len(OUTLIERS), "outlier_factor": OUTLIER_FACTOR, "positions": len(live)}
    return found | {"int8_configuration": {**configuration, "largest_change_of_a_logit": change}}


def ratio(name: str, numerator: float, denominator: float) -> dict[str, float]:
    """A ratio under its name, beside what it was made from."""
    return {name: numerator / denominator, f"{name}_numerator": numerator, f"{name}_denominator": denominator}


def main() -> None:
    """Run all measurements, or one process of the memory measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: for tests, says nothing about speed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=("ours", "body", "eager"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory_of(options.memory_of, options.folder, quick=options.quick))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_teacher(teacher_config(options.quick)).save_pretrained(folder / "teacher")
        # Memory comes first: nothing of this process is in the way then.
        found = measure_memory(folder, quick=options.quick)
        found |= measure_capture(folder, quick=options.quick, repeats=options.repeats)
        found |= measure_body(folder, quick=options.quick, repeats=options.repeats)
        found |= measure_int8(quick=options.quick)
        found |= measure_bytes(folder, quick=options.quick)
    found |= {"quick": options.quick, "repeats": options.repeats, "threads": torch.get_num_threads()}
    found |= {"seconds": time.perf_counter() - started, "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    print(json.dumps(found))


def versions() -> dict[str, str]:
    """What the numbers were measured with."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in ("torch", "transformers", "pyarrow", "numpy")}


if __name__ == "__main__":
    main()
