"""What aligning costs beside tokenizing, and whether it needs memory that grows. Prints one JSON object.

    python -m benchmarks.align [--shared ../shared] [--teacher qwen1.5-1.8b] [--student gpt2] [--examples 3000]

Ratios, each with its `..._numerator` and `..._denominator`:

* stage_over_tokenizers: tokens per second of the whole stage (scan, plan, shards written, read back and sealed) over
  those of the two tokenizers' bare `encode_batch` (target: at least 0.70). The denominator: both tokenizers as
  `AutoTokenizer` opens them, one after the other, all texts in one call each, without special tokens; no text is read,
  no id leaves the tokenizer. Both sides with the same number of tokenizer threads (--threads; RAYON_NUM_THREADS) and
  one process, tokenizers loaded beforehand, nothing else left out; interleaved, median of the runs.
  stage_over_tokenizers_cpu is the same in processor seconds (bare over stage): on a machine that others use it is the
  steadier of the two, and it also counts what the stage does beside the tokenizers' threads.
* both_over_second: seconds of the whole stage over seconds of the same stage in a folder where corpus and the teacher's
  side are there already, so that it cuts one side and aligns (target: at least 1.5); interleaved, median of the runs.
* core_over_tokenizers: processor seconds of everything between the tokenizers' encodings and finished span tables
  (ids, ends, the rules, segments, intersection, tables) over those of the tokenizers themselves, one thread (at most
  0.10).
* memory_growth: peak memory of the stage, in a process of its own, at 10 times the corpus over that at 1 (at most 1.1).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROWS_PER_BATCH = 1024  # the stage's
MAX_LENGTH = 1024


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_arguments() -> argparse.Namespace:
    """The command line; also that of the child processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=str(REPOSITORY.parent / "shared"), help="folder with data/ and tokenizers/")
    parser.add_argument("--data", default=None, help="jsonl of prompts and responses [SHARED/data/dolly/train.jsonl]")
    parser.add_argument("--teacher", default="qwen1.5-1.8b", help="folder, or a name in SHARED/tokenizers")
    parser.add_argument("--student", default="gpt2", help="likewise")
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=num_cores(), help="of the tokenizers, both sides [all cores]")
    parser.add_argument("--child", choices=("memory", "core", "stage"), help=argparse.SUPPRESS)
    return parser.parse_args()


def find(path: Path, what: str) -> Path:
    """The path, or one line about what is missing."""
    if not path.exists():
        sys.exit(f"error: {path}: no such {what}; name the shared folder with --shared")
    return path


def options_for(arguments: argparse.Namespace, data: Path, out: Path) -> Any:
    """The stage's options."""
    from sra_data.stages.align.options import AlignOptions

    return AlignOptions(
        teachers=(arguments.teacher,),
        students=(arguments.student,),
        data=str(data),
        out=str(out),
        teacher_max_length=MAX_LENGTH,
        student_max_length=MAX_LENGTH,
        num_workers=1,
    )


def read_rows(data: Path) -> list[tuple[str, str]]:
    """Prompt and response of every row."""
    rows = map(json.loads, data.read_text("utf-8").splitlines())
    return [(row["prompt"], row["response"]) for row in rows]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_stage(arguments: argparse.Namespace) -> dict[str, float]:
    """The whole stage beside the bare tokenizers, interleaved, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure_stage(arguments, Path(arguments.data), Path(folder))


def _measure_stage(arguments: argparse.Namespace, data: Path, work: Path) -> dict[str, float]:
    from transformers import AutoTokenizer

    from sra_data.stages.align.stage import align_with, load_tokenizers
    from sra_data.terminal import Reporter

    options = options_for(arguments, data, work / "shards")
    tokenizers = load_tokenizers(options)
    # The teacher's side alone, as an alignment with itself leaves it.
    align_with(replace(options, students=options.teachers, out=str(work / "one")), Reporter(), tokenizers)
    texts = [prompt + response for prompt, response in read_rows(data)]
    # Objects of their own: what the stage does to its tokenizers must not reach those it is held against.
    names = (arguments.teacher, arguments.student)
    backends = [AutoTokenizer.from_pretrained(name).backend_tokenizer for name in names]

    def bare() -> None:
        for backend in backends:
            backend.encode_batch(texts, add_special_tokens=False)

    def stage() -> None:
        align_with(options, Reporter(), tokenizers)

    num_tokens = sum(
        len(encoding.ids) for backend in backends for encoding in backend.encode_batch(texts, add_special_tokens=False)
    )
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "stage": [], "second": []}
    for run in range(arguments.runs + 1):
        for name, timed_work in (("bare", bare), ("stage", stage), ("second", stage)):
            shutil.rmtree(work / "shards", ignore_errors=True)
            if name == "second":
                shutil.copytree(work / "one", work / "shards")
            measured = timed(timed_work)
            if run:  # the first warms caches on both sides
                seconds[name].append(measured)
    wall, cpu = ({name: median(pair[axis] for pair in runs) for name, runs in seconds.items()} for axis in (0, 1))
    return {
        "stage_over_tokenizers": wall["bare"] / wall["stage"],
        "stage_over_tokenizers_numerator": num_tokens / wall["stage"],
        "stage_over_tokenizers_denominator": num_tokens / wall["bare"],
        "stage_over_tokenizers_cpu": cpu["bare"] / cpu["stage"],
        "stage_over_tokenizers_cpu_numerator": num_tokens / cpu["stage"],
        "stage_over_tokenizers_cpu_denominator": num_tokens / cpu["bare"],
        "both_over_second": wall["stage"] / wall["second"],
        "both_over_second_numerator": wall["stage"],
        "both_over_second_denominator": wall["second"],
        "tokens": num_tokens,
    }


class TimedBackend:
    """A tokenizer's backend that adds up the processor time of its encoding calls, freeing the encodings included."""

    def __init__(self, backend: Any) -> None:
        self.__dict__.update(_backend=backend, seconds=0.0, encodings=None)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        if name not in ("encode_batch", "encode_batch_fast"):
            return value

        def encode(*positional: Any, **named: Any) -> Any:
            started = time.process_time()
            self.__dict__["encodings"] = None  # the last ones: their user is done with them, so here they are freed
            encodings = self.__dict__["encodings"] = value(*positional, **named)
            self.__dict__["seconds"] += time.process_time() - started
            return encodings

        return encode

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._backend, name, value)


def measure_core(arguments: argparse.Namespace) -> dict[str, float]:
    """From texts to span tables in this process, and the share of the tokenizers in it; runs with one thread."""
    from sra_data.spans.alignment import align, segments_for
    from sra_data.stages.align.stage import load_tokenizers

    tokenizers = load_tokenizers(options_for(arguments, Path(arguments.data), Path("unused")))
    teacher_side, student_side = (tokenizers[name] for name in (arguments.teacher, arguments.student))
    rows = read_rows(Path(arguments.data))
    backends = []
    for side in (teacher_side, student_side):
        backends.append(TimedBackend(side.tokenizer.backend_tokenizer))
        side._reader._backend = backends[-1]
    batches = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        chosen = rows[start : start + ROWS_PER_BATCH]
        ranges = [np.array([[len(prompt), len(prompt) + len(response)]], np.int32) for prompt, response in chosen]
        batches.append(([prompt + response for prompt, response in chosen], ranges))

    def run() -> None:
        for texts, ranges in batches:
            teacher = teacher_side.encode(texts, response_ranges=ranges, is_chat=False)
            student = student_side.encode(texts, response_ranges=ranges, is_chat=False)
            segments = segments_for(
                student_texts=texts, student_ranges=ranges, teacher_texts=texts, teacher_ranges=ranges
            )
            align(student=student.offsets, teacher=teacher.offsets, segments=segments, student_texts=texts)

    cores, tokenizers = [], []
    for number in range(arguments.runs + 1):
        before = sum(backend.seconds for backend in backends)
        _, cpu = timed(run)
        spent = sum(backend.seconds for backend in backends) - before
        if number:
            cores.append(cpu - spent)
            tokenizers.append(spent)
    return {"core": median(cores), "tokenizers": median(tokenizers)}


def measure_memory(arguments: argparse.Namespace) -> dict[str, float]:
    """The stage once, in this process; its peak memory in bytes."""
    from sra_data.stages.align.stage import align
    from sra_data.terminal import Reporter

    with tempfile.TemporaryDirectory() as folder:
        summary = align(options_for(arguments, Path(arguments.data), Path(folder) / "shards"), Reporter())
    return {"bytes": peak_bytes(), "examples": summary.num_examples}


def peak_bytes() -> int:
    """The most memory this process has held.

    Not getrusage's ru_maxrss: Linux hands a parent's peak on to its children, across exec too, so that a child smaller
    than this benchmark would report the benchmark.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found is None:
        sys.exit("error: /proc/self/status: no VmHWM here, so peak memory cannot be measured; run on Linux")
    return int(found[1]) * 1024


def child(arguments: argparse.Namespace, kind: str, data: Path, *, threads: int | None = None) -> dict[str, float]:
    """Measure in a process of its own."""
    environment = dict(os.environ)
    if threads is not None:
        environment.update(RAYON_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM=str(threads > 1).lower())
    command = [sys.executable, "-m", "benchmarks.align", "--child", kind, "--data", str(data)]
    command += ["--teacher", arguments.teacher, "--student", arguments.student, "--runs", str(arguments.runs)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the process that measures {kind} failed: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure everything and print it."""
    arguments = parse_arguments()
    if arguments.child:
        measure = {"core": measure_core, "memory": measure_memory, "stage": measure_stage}[arguments.child]
        print(json.dumps(measure(arguments)))
        return
    shared = Path(arguments.shared)
    source = find(Path(arguments.data) if arguments.data else shared / "data" / "dolly" / "train.jsonl", "data")
    for name in ("teacher", "student"):
        value = Path(getattr(arguments, name))
        setattr(arguments, name, str(value if value.is_dir() else find(shared / "tokenizers" / value, "tokenizer")))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lines = source.read_text("utf-8").splitlines(keepends=True)[: arguments.examples]
        once, tenfold = work / "once.jsonl", work / "tenfold.jsonl"
        once.write_text("".join(lines), "utf-8")
        tenfold.write_text("".join(lines * 10), "utf-8")
        result: dict[str, Any] = child(arguments, "stage", once, threads=arguments.threads)
        core = child(arguments, "core", once, threads=1)
        small, large = (child(arguments, "memory", data) for data in (once, tenfold))
    result |= {
        "core_over_tokenizers": core["core"] / core["tokenizers"],
        "core_over_tokenizers_numerator": core["core"],
        "core_over_tokenizers_denominator": core["tokenizers"],
        "memory_growth": large["bytes"] / small["bytes"],
        "memory_growth_numerator": large["bytes"],
        "memory_growth_denominator": small["bytes"],
        "configuration": {
            "teacher": Path(arguments.teacher).name,
            "student": Path(arguments.student).name,
            "examples": len(lines),
            "runs": arguments.runs,
            "max_length": MAX_LENGTH,
            "tokenizer_threads": arguments.threads,
            "denominator": "encode_batch(all texts, add_special_tokens=False) of one tokenizer, then of the other",
            "cores": num_cores(),
            "load_average": list(os.getloadavg()),
            "machine": platform.machine(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("tokenizers", "transformers", "numpy", "pyarrow")},
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
