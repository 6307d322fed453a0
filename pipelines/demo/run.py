"""The whole way on a laptop: no network, no account, no GPU, a few minutes.

Corpus: Python's own documentation, read from the installed standard library. A small teacher learns all of it; a
smaller student with ANOTHER tokenizer gets a slice, once with cross-entropy alone and once with SRA from the teacher's
cached pages, at equal steps and equal data. All three are judged on held-out documentation in bits per byte, the
measure that does not care how a text is cut. The result is whatever it is.

    python pipelines/demo/run.py --output demo-output
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import write_student, write_teacher
from plot import draw

from sra_data.corpus.builtin import builtin_records

HERE = Path(__file__).resolve().parent
COMMANDS = Path(sys.executable).parent
SEED = 17
# The published recipe sums L_KD over an example's spans: for a student from scratch it drowns the rest (README.md).
METHODS = {"sft": [], "sra": ["--set", "method.kd_reduction=mean"]}


def main() -> None:
    """Run every step; the last line printed is the path of the plot."""
    arguments = parse_arguments()
    output = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()

    say("1. A corpus, two tokenizers, two untrained models")
    texts = write_corpus(output, num_student_examples=arguments.student_examples)
    write_teacher(output / "teacher-untrained", texts, seed=SEED)
    write_student(output / "student", texts, seed=SEED)

    say("2. The teacher learns the whole training split (plain fine-tuning: it needs no cache)")
    shards = output / "teacher-shards"
    call("sra-data", "align", "--teacher", output / "teacher-untrained", "--student", output / "teacher-untrained",
         "--data", output / "teacher.jsonl", "--dev-data", output / "dev.jsonl", "--out", shards)  # fmt: skip
    call("sra-train", "run", shards, "--config", HERE / "teacher.yaml", "--output-dir", output / "teacher-run")
    teacher = output / "teacher-run" / "model"

    say("3. The three commands: align, cache-teacher, run (once with cross-entropy alone, once with SRA)")
    shards = output / "shards"
    call("sra-data", "align", "--teacher", teacher, "--student", output / "student",
         "--data", output / "student.jsonl", "--dev-data", output / "dev.jsonl", "--out", shards)  # fmt: skip
    call("sra-data", "cache-teacher", shards)
    train_side_by_side(shards, output)

    say("4. Bits per byte on held-out documentation")
    scores = evaluate(output, teacher)
    seconds = time.monotonic() - started
    (output / "result.json").write_text(json.dumps({"bits_per_byte": scores, "seconds": round(seconds, 1)}, indent=2))
    print_table(scores, seconds)
    print(draw(scores, runs={"CE only": output / "sft", "SRA": output / "sra"}, path=output / "demo.png"))


def parse_arguments() -> argparse.Namespace:
    """The few things worth changing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write; emptied first")
    parser.add_argument("--student-examples", type=int, default=600, help="the student's slice of the training split")
    return parser.parse_args()


def write_corpus(output: Path, *, num_student_examples: int) -> list[str]:
    """Write teacher.jsonl (all of train), student.jsonl (a slice of it), dev.jsonl and test.jsonl.

    Returns:
        The training texts, from which both tokenizers are made.
    """
    rows = {split: builtin_records(split) for split in ("train", "dev", "test")}
    step = max(len(rows["train"]) // num_student_examples, 1)
    files = {
        "teacher": rows["train"],
        "student": rows["train"][::step][:num_student_examples],
        "dev": rows["dev"][:48],
        "test": rows["test"],
    }
    for name, chosen in files.items():
        with open(output / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in chosen:
                file.write(json.dumps({key: row[key] for key in ("id", "prompt", "response")}) + "\n")
    print("   " + ", ".join(f"{name} {len(chosen):,} examples" for name, chosen in files.items()))
    return [row["prompt"] + row["response"] for row in rows["train"]]


def train_side_by_side(shards: Path, output: Path) -> None:
    """Train both students at once, half of the cores each: models this small gain little from more."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(max((os.cpu_count() or 2) // 2, 1))}
    runs = {}
    for method, options in METHODS.items():
        words = ["run", shards, "--config", HERE / "train.yaml", "--method", method, *options]
        words += ["--output-dir", output / method]
        line = ["sra-train", *map(str, words)]
        print("$ " + " ".join(line), flush=True)
        runs[method] = subprocess.Popen(
            [str(COMMANDS / line[0]), *line[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    with ThreadPoolExecutor() as pool:
        list(pool.map(show_lines, runs, runs.values()))
    failed = [process.returncode for process in runs.values() if process.returncode != 0]
    if failed:
        sys.exit(failed[0])


def show_lines(name: str, process: subprocess.Popen[str]) -> None:
    """Print what a process says as it says it, each line under its name; wait for its end."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{name}] {line}", end="", flush=True)
    process.wait()


def evaluate(output: Path, teacher: Path) -> dict[str, float]:
    """Bits per byte of teacher and students on test.jsonl, over the examples all of them can read."""
    models = {
        "teacher": teacher,
        "student, CE only": output / "sft" / "model",
        "student, SRA": output / "sra" / "model",
    }
    answer = call("sra-train", "evaluate", *models.values(), "--data", output / "test.jsonl", "--json", capture=True)
    results = json.loads(answer)["models"]
    return {name: result["bits_per_byte"] for name, result in zip(models, results, strict=True)}


def print_table(scores: dict[str, float], seconds: float) -> None:
    """The three numbers and what they mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "bits per byte (lower is better)", title="Held-out documentation")
    for name, score in scores.items():
        table.add_row(name, f"{score:.4f}")
    Console().print(table)
    gap = scores["student, CE only"] - scores["teacher"]
    gained = scores["student, CE only"] - scores["student, SRA"]
    print(f"SRA changes the student by {-gained:+.4f} bits per byte; the gap to the teacher was {gap:.4f}.")
    print(f"All of it took {seconds:.0f} s.")


def call(command: str, *arguments: object, capture: bool = False) -> str:
    """Run one of the commands as a user would, showing the line; stop the demo if it fails."""
    words = [str(argument) for argument in arguments]
    print("$ " + " ".join([command, *words]), flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(COMMANDS / command), *words], env=environment, text=True, stdout=subprocess.PIPE if capture else None
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout or ""


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
