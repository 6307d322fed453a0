"""The whole way on a laptop: no network, no account, no GPU, a few minutes.

Corpus: Python's own documentation, read from the installed standard library. A small teacher learns much of it; a
smaller student with ANOTHER tokenizer gets a slice: with cross entropy alone, with SRA as published, and with the tuned
preset, two seeds each, at equal steps and equal data, from the teacher's cached pages. All are judged on held-out
documentation in bits per byte, the measure that does not care how a text is cut. The result is whatever it is.

    python pipelines/demo/run.py --output demo-output
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import write_student, write_teacher
from steps import call, say, write_rows

from sra_data.corpus.builtin import builtin_records

HERE = Path(__file__).resolve().parent
SEED = 17
METHODS = "sft,paper,tuned"


def main() -> None:
    """Run every step; the last line printed is the path of the picture."""
    arguments = parse_arguments()
    output = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()

    say("1. A corpus, two tokenizers, two untrained models")
    texts = write_corpus(output, teacher=arguments.teacher_examples, student=arguments.student_examples)
    write_teacher(output / "teacher-untrained", texts, seed=SEED)
    write_student(output / "student", texts, seed=SEED)

    say("2. The teacher reads its text twice (plain fine-tuning: it needs no cache)")
    shards = output / "teacher-shards"
    call("sra-data", "align", "--teacher", output / "teacher-untrained", "--student", output / "teacher-untrained",
         "--data", output / "teacher.jsonl", "--dev-data", output / "dev.jsonl", "--out", shards)  # fmt: skip
    call("sra-train", "run", shards, "--config", HERE / "teacher.yaml", "--output-dir", output / "teacher-run")
    teacher = output / "teacher-run" / "model"

    say("3. Align the two tokenizers' texts, and keep what the teacher says")
    shards = output / "shards"
    call("sra-data", "align", "--teacher", teacher, "--student", output / "student",
         "--data", output / "student.jsonl", "--dev-data", output / "dev.jsonl", "--out", shards)  # fmt: skip
    call("sra-data", "cache-teacher", shards)

    say("4. Students without the teacher: every method is `sra-train run` on the same shards, here through one command")
    call("sra-train", "compare", shards, "--config", HERE / "train.yaml", "--methods", METHODS, "--seeds", 2,
         "--rates", "3e-3", "--test", output / "test.jsonl", "--teacher-model", teacher,
         "--output-dir", output / "comparison")  # fmt: skip
    seconds = time.monotonic() - started
    (output / "result.json").write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")
    print(f"\n{seconds:.0f} s in all; the page: {output / 'comparison' / 'comparison.html'}")
    print((output / "comparison" / "comparison.png").resolve())


def parse_arguments() -> argparse.Namespace:
    """The few things worth changing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write; emptied first")
    parser.add_argument("--teacher-examples", type=int, default=3500, help="what the teacher learns of the split")
    parser.add_argument("--student-examples", type=int, default=480, help="what the students learn of that")
    return parser.parse_args()


def write_corpus(output: Path, *, teacher: int, student: int) -> list[str]:
    """Write teacher.jsonl (a slice of train), student.jsonl (a slice of that), dev.jsonl and test.jsonl.

    Returns:
        The teacher's texts, from which both tokenizers are made.
    """
    rows = {split: builtin_records(split) for split in ("train", "dev", "test")}
    learnt = every(rows["train"], teacher)
    files = {
        "teacher": learnt,
        "student": every(learnt, student),
        "dev": rows["dev"][:48],
        "test": rows["test"],
    }
    for name, chosen in files.items():
        write_rows(output / f"{name}.jsonl", chosen)
    print("   " + ", ".join(f"{name} {len(chosen):,} examples" for name, chosen in files.items()))
    return [row["prompt"] + row["response"] for row in learnt]


def every(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """So many rows, spread evenly over all."""
    return rows[:: max(len(rows) // count, 1)][:count]


if __name__ == "__main__":
    main()
