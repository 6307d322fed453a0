"""Every method on the same shards, on a laptop: the comparison behind the table in RESULTS.md.

A teacher learns the whole corpus for several epochs. Two students with clearly different tokenizers (one byte-level
BPE, one Unigram), far smaller, learn a part of it, from random weights and after other text: four settings. In each,
`sra-train compare` tunes the rate of every method over the same grid on the development split, trains every seed, and
measures on the test split. The result is whatever it is.

    python pipelines/compare/run.py --output compare-output [--data FOLDER with train, dev and test.jsonl]

Every step resumes: run the same command again after an interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from results import write_results
from small_models import STUDENTS, write_models
from steps import call, read_rows, say, write_rows

from sra_data.corpus.builtin import builtin_records

HERE = Path(__file__).resolve().parent
MANY_SEEDS = ("sft", "paper", "strict", "tuned")  # paper is sra, tuned is boundary, each as it is
FEW_SEEDS = ("strict-cos", "uld", "multilevel-ot", "alm", "dskd", "dskdv2", "mined")
STARTS = ("random", "pretrained")


def main() -> None:
    """Run what is missing; the last line printed is the path of the results."""
    arguments = parse_arguments()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    say("1. The corpus, three tokenizers, untrained models")
    data = write_corpus(output, arguments)
    write_models(output, data, arguments)

    say("2. The teacher learns the whole training split; the students read other text first")
    length = {"training.epochs": arguments.teacher_epochs}
    untrained = output / "untrained"
    teacher = fine_tune(output / "teacher", untrained / "teacher", data / "train.jsonl", data, "teacher.yaml", length)
    starts = {("random", name): untrained / name for name in STUDENTS}
    length = {"training.max_steps": arguments.pretraining_steps}
    for name in STUDENTS if "pretrained" in arguments.starts else ():
        folder = output / f"pretrained-{name}"
        model = fine_tune(folder, untrained / name, data / "other.jsonl", data, "pretrain.yaml", length)
        starts["pretrained", name] = model

    say("3. Shards: both students' sides, the teacher's pages once")
    shards = output / "shards"
    students = [word for name in STUDENTS for word in ("--student", untrained / name)]
    call("sra-data", "align", "--teacher", teacher, *students, "--edit-distance", "--data", data / "student.jsonl",
         "--dev-data", data / "student-dev.jsonl", "--out", shards)  # fmt: skip
    call("sra-data", "cache-teacher", shards, "--teacher", teacher)

    say("4. The comparisons")
    for name in STUDENTS:
        for start in arguments.starts:
            compare(output, shards, starts[start, name], (name, start), teacher, data, arguments)

    settings = [f"{name}-{start}" for name in STUDENTS for start in arguments.starts]
    write_results(output, settings, seconds=time.monotonic() - started)
    print(output / "RESULTS.md")


def parse_arguments() -> argparse.Namespace:
    """What is worth changing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("compare-output"), help="folder to write; resumed if there")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with train, dev and test.jsonl [built-in corpus]"
    )
    parser.add_argument("--student-examples", type=int, default=2400, help="the students' part of the training split")
    parser.add_argument("--dev-examples", type=int, default=400, help="by which the students' rates are chosen")
    parser.add_argument("--steps", type=int, default=110, help="of every student")
    parser.add_argument("--seeds", type=int, default=5, help=f"of {', '.join(MANY_SEEDS)}")
    parser.add_argument("--few-seeds", type=int, default=3, help="of the other methods")
    parser.add_argument("--rates", default="2e-3,5e-3,1.2e-2", help="grid of every method")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of an answer, for Rouge-L")
    parser.add_argument("--methods", default=None, help="names, or name:seeds, in place of all")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--pretraining-steps", type=int, default=400, help="of a student on other text")
    parser.add_argument("--seed", type=int, default=17, help="of the models")
    return parser.parse_args()


def write_corpus(output: Path, arguments: argparse.Namespace) -> Path:
    """train, dev, test, the students' parts of train and dev, and other text for pretraining, as JSON lines."""
    given, num_student_examples = arguments.data, arguments.student_examples
    folder = output / "data"
    if (folder / "done").exists():
        return folder
    folder.mkdir(exist_ok=True)
    builtin = builtin_records("train")
    if given is None:  # other text: the other half of the modules
        half = len(builtin) // 2
        splits = {"train": builtin[:half], "dev": builtin_records("dev"), "test": builtin_records("test")}
        other = builtin[half:]
    else:
        splits = {name: read_rows(given / f"{name}.jsonl") for name in ("train", "dev", "test")}
        other = builtin
    students = splits["train"][:: max(1, len(splits["train"]) // num_student_examples)][:num_student_examples]
    parts = {"student": students, "student-dev": splits["dev"][: arguments.dev_examples], "other": other}
    for name, rows in {**splits, **parts}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    (folder / "done").touch()
    return folder


def fine_tune(folder: Path, model: Path, train: Path, data: Path, config: str, settings: Mapping[str, object]) -> Path:
    """Plain fine-tuning of a model on a file: it needs shards of the model with itself, and no cache."""
    call("sra-data", "align", "--teacher", model, "--student", model, "--data", train,
         "--dev-data", data / "dev.jsonl", "--out", folder / "shards")  # fmt: skip
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    call("sra-train", "run", folder / "shards", "--config", HERE / config, *words, "--output-dir", folder / "run")
    return folder / "run" / "model"


def compare(
    output: Path,
    shards: Path,
    student: Path,
    setting: tuple[str, str],
    teacher: Path,
    data: Path,
    arguments: argparse.Namespace,
) -> None:
    """One setting: every method, tuned alike; those of few seeds only where the student has read before."""
    name, start = setting
    few = [f"{one}:{arguments.few_seeds}" for one in FEW_SEEDS] if start == "pretrained" else []
    methods = arguments.methods or ",".join([*MANY_SEEDS, *few])
    call("sra-train", "compare", shards, "--student", student, "--config", HERE / "student.yaml",
         "--set", f"training.max_steps={arguments.steps}", "--methods", methods, "--seeds", arguments.seeds,
         "--rates", arguments.rates, "--test", data / "test.jsonl", "--teacher-model", teacher,
         "--rouge", "--rouge-seeds", "10", "--max-new-tokens", arguments.max_new_tokens,
         "--output-dir", output / "comparisons" / f"{name}-{start}")  # fmt: skip


if __name__ == "__main__":
    main()
