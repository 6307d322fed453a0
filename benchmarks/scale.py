"""What several workers, another engine and another store cost, and how far `sra-data estimate` is off. One JSON object.

    python -m benchmarks.scale [--seconds 60] [--only two_workers estimate ray s3] [--shared ../shared]

Every ratio with its `..._numerator` and `..._denominator`; null, with the reason beside it, where something is missing.

* two_workers_over_one: examples per second of `align` by two workers over those by one (target: at least 1.7); a core
  and a tokenizer thread each: the one worker is kept to one core, as each of two has one. two_workers_over_one_of_two
  is the same over one worker that may use both cores, whose tokenizers and writers then have threads on both. Imports,
  the scan and the seal are left out: what counts is the time between units, from the receipts, once a tenth of them are
  there. Two workers work for `--seconds` or more, one for about twice that.
* ray_over_local: tokens per second of `cache-teacher --engine ray` over `--engine local`, one worker each, on units of
  half of `--seconds` or more, by the receipts too (at least 0.9).
* s3_over_local: what `benchmarks/scale_s3.py` prints (at least 0.9).
* estimate_error_bytes, estimate_error_hours: how far `sra-data estimate` (20 s of measuring) is from what
  `cache-teacher` then took, |estimate / taken - 1|, the largest of three unlike teachers (at most 0.15 and 0.3): of
  GPT-2 with tied embeddings; of Llama with grouped keys and a vocabulary of 128,256; of Gemma, tied, with a sliding
  window. The work is of `--seconds` or more; loading, admission and faithfulness are in both, imports in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script too

from benchmarks.align import find, num_cores

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS_OF_ESTIMATE = 20.0
WARM = 0.1  # of the units, before the clock starts
UNITS_OF_ENGINE = 4
PROBE_EXAMPLES = 64
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
TEACHERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_embd": 384,
        "n_layer": 6,
        "n_head": 6,
        "n_positions": 1024,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "gemma": {
        "model_type": "gemma3_text",
        "vocab_size": 65_536,
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 80,
        "sliding_window": 256,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


# ------------------------------------------------------------------------------------------------- children's work


def child_align(arguments: dict[str, Any]) -> dict[str, Any]:
    """The stage once, in this process, kept to one core where that is asked."""
    if arguments["one_core"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from sra_data.stages.align.options import AlignOptions
    from sra_data.stages.align.stage import align
    from sra_data.terminal import Reporter

    summary = align(
        AlignOptions(
            teachers=(arguments["teacher"],),
            students=(arguments["student"],),
            data=arguments["data"],
            out=arguments["out"],
            teacher_max_length=1024,
            student_max_length=1024,
            num_workers=arguments["workers"],
        ),
        Reporter(),
    )
    return {"examples": summary.num_examples}


def child_estimate(arguments: dict[str, Any]) -> dict[str, Any]:
    """`sra-data estimate`: bytes and seconds it expects, and the teacher's speed."""
    from sra_data.stages.estimate.stage import EstimateOptions, estimate
    from sra_data.terminal import Reporter

    said = estimate(EstimateOptions(_cache_options(arguments), seconds=arguments["seconds"]), Reporter())
    assert said.cache_hours is not None
    assert said.sample is not None
    seconds = 3600 * said.cache_hours
    return {
        "bytes": said.expected_bytes,
        "seconds": seconds,
        "tokens_per_second": said.num_tokens / max(seconds - said.sample.begin_seconds, 1e-3),
        "begin_seconds": said.sample.begin_seconds,
        "written_per_second": said.sample.num_positions
        * said.sample.bytes_per_position
        / max(said.sample.write_seconds, 1e-9),
    }


def child_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """`cache-teacher`, in this process: bytes and seconds it took, imports left out."""
    from sra_data.stages.cache.stage import cache_teacher
    from sra_data.terminal import Reporter

    options = _cache_options(arguments)
    started = time.perf_counter()
    summary = cache_teacher(options, Reporter())
    return {"bytes": summary.num_bytes, "seconds": time.perf_counter() - started, "tokens": summary.num_tokens}


def child_teacher(arguments: dict[str, Any]) -> dict[str, Any]:
    """A teacher of one of the shapes, random weights, in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(TEACHERS[arguments["kind"]])
    AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape)).save_pretrained(
        arguments["out"]
    )
    return {}


def child_side(arguments: dict[str, Any]) -> dict[str, Any]:
    """A side of random ids with Dolly's lengths, of the tokenizer that transformers believes the teacher to have."""
    from benchmarks.cache_shards import POSITIONS_PER_PART, SIDE, write_random_side
    from sra_data.corpus.tokenization import SideTokenizer
    from sra_data.errors import TokenizerError
    from sra_data.shards.store import record

    tokens, lengths = write_random_side(
        Path(arguments["out"]),
        arguments["examples"],
        arguments["vocabulary"],
        positions_per_part=arguments.get("positions_per_part", POSITIONS_PER_PART),
    )
    with suppress(TokenizerError):
        record(Path(arguments["out"]), f"sides/{SIDE}", tokenizer=SideTokenizer.load(arguments["teacher"]).fingerprint)
    return {"tokens": tokens, "lengths": lengths}


def _cache_options(arguments: dict[str, Any]) -> Any:
    """The command's defaults on the CPU, for a side of random ids."""
    from benchmarks.cache_shards import SIDE
    from sra_data.stages.cache.options import CacheOptions
    from sra_data.teacher.spec import TeacherSpec

    return CacheOptions(arguments["shards"], TeacherSpec(arguments["teacher"], device="cpu"), side=SIDE)


CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "align": child_align,
    "estimate": child_estimate,
    "cache": child_cache,
    "teacher": child_teacher,
    "side": child_side,
}


def child(job: str, *, environment: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Do one of them in a process of its own; what it found."""
    words = [sys.executable, "-m", "benchmarks.scale", "--child", job, "--arguments", json.dumps(arguments)]
    named = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    done = subprocess.run(words, cwd=REPOSITORY, env=named, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the process that does {job} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --------------------------------------------------------------------------------------------- time between receipts


def rate_between_units(folder: Path, size_of: Callable[[Any], float], *, warm: float = WARM) -> tuple[float, float]:
    """(size a second, seconds) between the unit with which `warm` of them are there and the last, by their receipts."""
    from sra_data.shards.manifest import Plan, receipt_path

    ended = sorted(
        (receipt_path(folder, unit.part).stat().st_mtime_ns, size_of(unit)) for unit in Plan.load(folder).units
    )
    first = min(max(int(warm * len(ended)), 1), len(ended) - 1)
    seconds = (ended[-1][0] - ended[first - 1][0]) / 1e9
    return sum(size for _, size in ended[first:]) / seconds, seconds


# --------------------------------------------------------------------------------------------------- two workers


def measure_two_workers(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """two_workers_over_one."""
    if num_cores() < 2 or not hasattr(os, "sched_setaffinity"):
        return {"two_workers_over_one": None, "two_workers_over_one_reason": "needs two cores that can be chosen"}
    shared = Path(options.shared)
    lines = find(shared / "data" / "dolly" / "train.jsonl", "data").read_text("utf-8").splitlines(keepends=True)
    named = {
        "teacher": str(find(shared / "tokenizers" / "qwen1.5-1.8b", "tokenizer")),
        "student": str(find(shared / "tokenizers" / "gpt2", "tokenizer")),
    }

    def run(name: str, examples: int, *, workers: int, one_core: bool) -> tuple[float, float]:
        data, out = work / f"{name}.jsonl", work / name
        with data.open("w", encoding="utf-8") as file:
            for number in range(examples):
                row = json.loads(lines[number % len(lines)])
                row.pop("id", None)
                file.write(json.dumps({**row, "id": str(number)}, ensure_ascii=False) + "\n")
        settings = {"data": str(data), "out": str(out), "workers": workers, "one_core": one_core}
        child("align", environment=ONE_THREAD, **named, **settings)
        (alignment,) = (path for path in (out / "alignments").iterdir() if path.is_dir())
        return rate_between_units(alignment, lambda unit: unit.stop - unit.start)

    probe, _ = run("probe", min(len(lines), 12_000), workers=1, one_core=True)
    examples = max(6000, round(2 * options.seconds * probe / (1 - WARM)))
    one, one_seconds = run("one", examples, workers=1, one_core=True)
    two, two_seconds = run("two", examples, workers=2, one_core=False)
    free, _ = run("free", examples, workers=1, one_core=False)
    return {
        **ratio("two_workers_over_one", two, one),
        **ratio("two_workers_over_one_of_two", two, free),
        "align_configuration": {"examples": examples, "one_seconds": one_seconds, "two_seconds": two_seconds},
    }


# -------------------------------------------------------------------------------------------------- estimate


def measure_estimate(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """estimate_error_bytes and estimate_error_hours."""
    found: dict[str, Any] = {}
    for kind, shape in TEACHERS.items():
        teacher, small, large = (str(work / f"{kind}-{name}") for name in ("teacher", "probe", "shards"))
        child("teacher", kind=kind, out=teacher)
        child("side", out=small, teacher=teacher, examples=PROBE_EXAMPLES, vocabulary=shape["vocab_size"])
        probe = child("estimate", shards=small, teacher=teacher, seconds=SECONDS_OF_ESTIMATE / 4)
        examples = _examples_for(probe["tokens_per_second"] * options.seconds)
        side = child("side", out=large, teacher=teacher, examples=examples, vocabulary=shape["vocab_size"])
        said = child("estimate", shards=large, teacher=teacher, seconds=SECONDS_OF_ESTIMATE)
        taken = child("cache", shards=large, teacher=teacher)
        found[kind] = {
            "examples": examples,
            "tokens": side["tokens"],
            "lengths": side["lengths"],
            "bytes": taken["bytes"],
            "bytes_estimated": said["bytes"],
            "seconds": taken["seconds"],
            "seconds_estimated": said["seconds"],
            "written_per_second": said["written_per_second"],
            "error_bytes": abs(said["bytes"] / taken["bytes"] - 1),
            "error_hours": abs(said["seconds"] / taken["seconds"] - 1),
        }
    return {
        "estimate_error_bytes": max(one["error_bytes"] for one in found.values()),
        "estimate_error_hours": max(one["error_hours"] for one in found.values()),
        "estimates": found,
    }


def _examples_for(tokens: float) -> int:
    """As many as have so many tokens, Dolly's having some 200, within what the data holds."""
    from benchmarks.cache_shards import LONGEST, dolly_lengths

    prompts, responses, _ = dolly_lengths(2000)
    mean = sum(min(int(a + b), LONGEST) for a, b in zip(prompts, responses, strict=True)) / 2000
    return max(PROBE_EXAMPLES, min(round(tokens / mean), 11_000))


# ------------------------------------------------------------------------------------------------------ engines


def measure_ray(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """ray_over_local."""
    from benchmarks.cache_shards import SIDE

    if find_spec("ray") is None:
        return _missing("ray_over_local", "ray is not installed: pip install 'sra-distill[ray]'")
    teacher, small = str(work / "ray-teacher"), str(work / "ray-probe")
    child("teacher", kind="gpt2", out=teacher)
    vocabulary = TEACHERS["gpt2"]["vocab_size"]
    child("side", out=small, teacher=teacher, examples=PROBE_EXAMPLES, vocabulary=vocabulary)
    probe = child("estimate", environment=ONE_THREAD, shards=small, teacher=teacher, seconds=SECONDS_OF_ESTIMATE / 4)
    tokens = probe["tokens_per_second"] * options.seconds / 2 * 1.25  # of a unit, with room
    examples = _examples_for(tokens * UNITS_OF_ENGINE)
    rates: dict[str, tuple[float, float]] = {}
    for engine in ("local", "ray"):
        shards = work / f"shards-{engine}"
        child(
            "side",
            out=str(shards),
            teacher=teacher,
            examples=examples,
            vocabulary=vocabulary,
            positions_per_part=_positions_a_unit(examples),
        )
        words = ["cache-teacher", str(shards), "--teacher", teacher, "--side", SIDE, "--device", "cpu", "--json"]
        done = sra_data(*words, "--engine", engine, "--workers", "1")
        if done.returncode:
            return _missing("ray_over_local", f"--engine {engine}: {done.stderr.strip().splitlines()[-1]}")
        (pages,) = (path for path in (shards / "teachers").iterdir() if path.is_dir())
        rates[engine] = rate_between_units(pages, _tokens_of(shards), warm=1 / UNITS_OF_ENGINE)
    return {
        **ratio("ray_over_local", rates["ray"][0], rates["local"][0]),
        "ray_configuration": {"examples": examples, "seconds_between": {name: one[1] for name, one in rates.items()}},
    }


def _positions_a_unit(examples: int) -> int:
    """So many that the examples of `write_random_side` make `UNITS_OF_ENGINE` units of about one size."""
    from benchmarks.cache_shards import LONGEST, dolly_lengths

    prompts, responses, _ = dolly_lengths(examples)
    kept = [min(int(a + b), LONGEST) - min(int(a), LONGEST - 1) + 1 for a, b in zip(prompts, responses, strict=True)]
    return -(-sum(kept) // UNITS_OF_ENGINE) + LONGEST


def _tokens_of(shards: Path) -> Callable[[Any], float]:
    """Tokens of a unit's examples."""
    from benchmarks.cache_shards import SIDE
    from sra_data.shards.store import ShardSet

    with ShardSet.open(shards) as opened:
        tokens = opened.side(SIDE).index.num_tokens.copy()
    return lambda unit: float(tokens[unit.start : unit.stop].sum())


def sra_data(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own with one thread."""
    command = [sys.executable, "-c", "from sra_data.cli import main; main()", *words]
    named = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=named, capture_output=True, text=True, check=False)


def measure_s3(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """s3_over_local, by the script that has it."""
    if find_spec("benchmarks.scale_s3") is None:
        return _missing("s3_over_local", "benchmarks/scale_s3.py is not there")
    words = [sys.executable, "-m", "benchmarks.scale_s3"]
    done = subprocess.run(words, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return _missing("s3_over_local", f"benchmarks/scale_s3.py failed: {said}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


# ------------------------------------------------------------------------------------------------------- all of it


def ratio(name: str, numerator: float, denominator: float) -> dict[str, float]:
    """A ratio under its name, beside what it was made from."""
    return {name: numerator / denominator, f"{name}_numerator": numerator, f"{name}_denominator": denominator}


def _missing(name: str, reason: str) -> dict[str, Any]:
    return {name: None, f"{name}_reason": reason}


MEASURED: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "two_workers": measure_two_workers,
    "estimate": measure_estimate,
    "ray": measure_ray,
    "s3": measure_s3,
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is asked and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of work that is measured")
    parser.add_argument("--only", nargs="+", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--shared", default=str(REPOSITORY.parent / "shared"), help="folder with data/ and tokenizers/")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.child:
        print(json.dumps(CHILDREN[options.child](json.loads(options.arguments))))
        return
    started, found = time.perf_counter(), dict[str, Any]()
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found |= MEASURED[name](options, Path(folder))
    found |= {"seconds": options.seconds, "took": time.perf_counter() - started, "date": time.strftime("%Y-%m-%d")}
    found["configuration"] = {
        "cores": num_cores(),
        "load_average": list(os.getloadavg()),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tokenizers", "pyarrow", "numpy")},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
