"""Calls of the two command lines inside the test's process, and a small pair of models to call them on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from sra_data.cli import app as data_app
from sra_data.errors import SRAError
from sra_train.cli import app as train_app
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level_bpe, train_unigram

SENTENCES = (
    "A span is a stretch of text on whose borders both tokenizers agree.",
    "Return the naïve café's résumé, untranslated — 🙂👩‍🚀 included!",
    "def walk(tree):\n\tfor leaf in tree:\r\n        yield leaf  # 日本語",
    "The centre of mass moves less than any of its particles.",
    "مرحبا بالعالم and नमस्ते दुनिया in one line, with <|endoftext|> as text.",
)


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit code, standard output, and its error if it was a known one."""

    exit_code: int
    output: str
    error: str


def sra_data(*arguments: object) -> Answer:
    """Call `sra-data`."""
    return _call(data_app, arguments)


def sra_train(*arguments: object) -> Answer:
    """Call `sra-train`."""
    return _call(train_app, arguments)


def _call(app: object, arguments: tuple[object, ...]) -> Answer:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    if isinstance(result.exception, SRAError):
        return Answer(1, result.stdout, str(result.exception))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def write_examples(path: Path, num_examples: int, *, first: int = 0) -> Path:
    """Prompt/response pairs made of a few sentences in several scripts; none equal."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(first, first + num_examples):
            chosen = [SENTENCES[(number * step + step) % len(SENTENCES)] for step in (1, 2)]
            row = {"id": f"example-{number}", "prompt": f"Say number {number}:\n", "response": " ".join(chosen)}
            file.write(json.dumps(row) + "\n")
    return path


def write_six_units(path: Path) -> Path:
    """Long texts, of which the models read the beginning: six units of few tokens."""
    rows = [
        {"id": str(number), "prompt": f"Say {number}:", "response": " ".join(SENTENCES[number % 3 :] * 60)}
        for number in range(75)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A byte-level BPE teacher (Llama) and a Unigram student (GPT-2), untrained; (teacher, student) folders."""
    teacher, student = folder / "teacher", folder / "student"
    for place, family, tokenizer, seed in (
        (teacher, "llama", train_byte_level_bpe(SENTENCES, 400), 1),
        (student, "gpt2", train_unigram(SENTENCES, 420), 2),
    ):
        # A few rows more than ids, as real checkpoints are padded.
        positions = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[family]
        model = tiny_model(family, seed=seed, vocab_size=len(tokenizer) + 3, **{positions: 256})
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return teacher, student
