"""One teacher and two far smaller students with clearly different tokenizers, made on the spot with a fixed seed.

The teacher cuts with a byte-level BPE of 4,096 pieces trained on the corpus; one student with a byte-level BPE of 1,800
pieces, the other with a Unigram model of 1,800, both trained on OTHER text beside a part of the corpus, as a student's
tokenizer is in earnest: it was not made for the data it is distilled on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import run as this
from models import save_random_model, train_student_tokenizer, train_teacher_tokenizer
from transformers import GPT2Config, PreTrainedTokenizerFast

POSITIONS = 160  # tokens of an example; longer ones are cut, and left out of every measure
STUDENTS = ("bpe", "unigram")
SIZES = {"teacher": (256, 4, 4), "bpe": (96, 3, 4), "unigram": (96, 3, 4)}  # width, layers, heads


def write_models(output: Path, data: Path, arguments: argparse.Namespace) -> None:
    """Write untrained models and their tokenizers below `output`/untrained, where they are not there."""
    folder = output / "untrained"
    if (folder / "done").exists():
        return
    corpus, other = (texts_of(data / f"{name}.jsonl") for name in ("train", "other"))
    mixed = other[::8] + corpus[::24]
    student_rows = this.read_lines(data / "train.jsonl")[:: max(1, len(corpus) // arguments.student_examples)]
    this.write_lines(data / "student.jsonl", student_rows[: arguments.student_examples])
    tokenizers = {
        "teacher": train_teacher_tokenizer(corpus, vocab_size=4096),
        "bpe": train_teacher_tokenizer(mixed, vocab_size=1800),
        "unigram": train_student_tokenizer(mixed, vocab_size=1800),
    }
    for place, (name, tokenizer) in enumerate(tokenizers.items()):
        save_random_model(config_of(name, tokenizer), tokenizer, folder / name, seed=arguments.seed + place)
    (folder / "done").touch()


def texts_of(path: Path) -> list[str]:
    """Prompt and response in one, of every row."""
    return [row["prompt"] + row["response"] for row in this.read_lines(path)]


def config_of(name: str, tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """A GPT-2 of that model's size, without dropout."""
    width, layers, heads = SIZES[name]
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
