"""Small whole shards without a teacher: random words, two byte-level tokenizers, random numbers for its pages.

For tests of the trainer, which must not depend on the stages that make shards. Everything is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.codecs import encode_float32
from sra_data.shards.columns import Row
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow, response_positions
from sra_data.shards.store import (
    FolderSchema,
    Unit,
    alignment_schema,
    begin,
    corpus_schema,
    cut_row_groups,
    save_head,
    seal,
    teacher_schema,
    write_part,
)
from sra_data.shards.vocabulary import VOCABULARY, StoredVocabulary, save_vocabulary
from sra_data.spans.vocabulary import shared_vocabulary

TEACHER_WIDTH = 12
TEACHER_LAYERS = 3
TEMPERATURES = (1.0, 2.0)
END = "<|end|>"
ALIGNMENT = "student-00000000"


@dataclass(frozen=True)
class SyntheticShards:
    """Where everything is."""

    shards: Path
    student: Path
    num_train: int
    num_dev: int


def make_tokenizer(texts: list[str], vocabulary_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, saved as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    wrapped.save_pretrained(folder)
    return wrapped


def make_student(folder: Path, tokenizer: PreTrainedTokenizerFast, *, dropout: float, seed: int = 0) -> None:
    """A GPT-2 of two layers with random weights beside its tokenizer."""
    import torch

    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        n_positions=128,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def make_shards(
    folder: Path,
    *,
    num_examples: int = 30,
    num_dev: int = 4,
    num_skipped: int = 2,
    dropout: float = 0.0,
    top_k: int = 4,
    hidden_dtype: str = "bf16",
    rows_per_part: int = 16,
    seed: int = 0,
    with_teacher: bool = True,
) -> SyntheticShards:
    """Write shards and the student they are aligned with under `folder`."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnop"), random.integers(2, 8))) for _ in range(40)]
    texts = []
    for _ in range(num_examples):
        prompt = " ".join(random.choice(words, random.integers(2, 6)))
        texts.append((prompt, " " + " ".join(random.choice(words, random.integers(1, 14)))))
    whole = ["".join(pair) for pair in texts]
    student_tokenizer = make_tokenizer(whole, 300, folder / "student")
    teacher_tokenizer = make_tokenizer(whole[::2], 330, folder / "teacher")
    make_student(folder / "student", student_tokenizer, dropout=dropout)
    student, teacher = (SideTokenizer.load(str(folder / name)) for name in ("student", "teacher"))

    corpus, alignment = [], []
    for number, (prompt, response) in enumerate(texts):
        split = "dev" if num_dev and number % (num_examples // num_dev) == 1 else "train"
        is_skipped = split == "train" and number in range(0, 3 * num_skipped, 3)
        rows = example_rows(f"example-{number:03d}", split, prompt, response, student, teacher, is_skipped)
        corpus.append(rows[0])
        alignment.append(rows[1])

    shards = folder / "shards"
    units = [
        Unit(part, start, min(start + rows_per_part, num_examples))
        for part, start in enumerate(range(0, num_examples, rows_per_part))
    ]
    groups = {
        unit.part: cut_row_groups([row.num_positions for row in corpus[unit.start : unit.stop]], max_positions=40)
        for unit in units
    }
    begin(shards, "corpus", {"seed": seed}, lambda: units)
    write_parts(shards, "corpus", corpus_schema(), corpus, units, groups)
    read = {"name": "synthetic teacher", "tokenizer": teacher.fingerprint}
    seal(shards, "corpus", {"teacher": read, "source": [f"random words, seed {seed}"]})
    section = f"alignments/{ALIGNMENT}"
    shared = shared_vocabulary(student=student.vocabulary, teacher=teacher.vocabulary)
    vocabulary = StoredVocabulary(
        shared.student_ids, shared.teacher_ids, shared.student_of_teacher, (student.eos_id, teacher.eos_id)
    )
    begin(shards, section, {"seed": seed}, lambda: units, files=[VOCABULARY])
    save_vocabulary(shards / section, vocabulary)
    write_parts(shards, section, alignment_schema(), alignment, units, groups)
    aligned = {"name": str(folder / "student"), "revision": None, "tokenizer": student.fingerprint}
    seal(shards, section, {"student": aligned})
    if with_teacher:
        vocabulary_size = len(teacher_tokenizer)
        write_teacher(shards, corpus, units, groups, vocabulary_size, top_k=top_k, hidden_dtype=hidden_dtype, seed=seed)
    usable = [row for row, aligned in zip(corpus, alignment, strict=True) if aligned.status == "ok"]
    return SyntheticShards(
        shards,
        folder / "student",
        num_train=sum(row.split == "train" for row in usable),
        num_dev=sum(row.split == "dev" for row in usable),
    )


def example_rows(
    name: str, split: str, prompt: str, response: str, student: SideTokenizer, teacher: SideTokenizer, is_skipped: bool
) -> tuple[CorpusRow, AlignmentRow]:
    """One example in both folders; a skipped one is skipped by the student only."""
    text = prompt + response
    ranges = np.array([[len(prompt), len(text)]], np.int32)
    sides = [
        side.encode([text], response_ranges=[ranges], is_chat=False, side="student") for side in (student, teacher)
    ]
    own, others = sides
    student_spans, teacher_spans = shared_spans(
        [np.asarray(side.offsets.ends[0]) for side in sides],
        [side.response_spans[0][0] for side in sides],
    )
    row = CorpusRow(
        id=name,
        split=split,
        status="ok",
        text=text,
        response_ranges=ranges,
        teacher_ids=np.asarray(others.ids[0], np.int32),
        teacher_ends=np.asarray(others.offsets.ends[0], np.int32),
        teacher_response_spans=np.asarray(others.response_spans[0], np.int32),
    )
    nothing = np.zeros((0, 2), np.int32)
    if is_skipped:
        empty = np.zeros(0, np.int32)
        return row, AlignmentRow(name, "skipped:student_overlong", empty, empty, nothing, nothing, nothing)
    return row, AlignmentRow(
        id=name,
        status="ok",
        student_ids=np.asarray(own.ids[0], np.int32),
        student_ends=np.asarray(own.offsets.ends[0], np.int32),
        label_spans=np.asarray(own.label_spans[0], np.int32),
        student_spans=student_spans,
        teacher_spans=teacher_spans,
    )


def shared_spans(ends: list[np.ndarray], responses: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest common chunks of two token sequences, token by token; plain ASCII text."""
    shared = sorted(
        set.intersection(*({int(e) for e in one[r[0] : r[1]]} for one, r in zip(ends, responses, strict=True)))
    )
    tables = []
    for one, (start, stop) in zip(ends, responses, strict=True):
        table, first = [], int(start)
        for end in shared:
            last = next(token for token in range(first, int(stop)) if one[token] == end)
            table.append((first, last + 1))
            first = last + 1
        tables.append(np.array(table, np.int32).reshape(-1, 2))
    return tables[0], tables[1]


def write_teacher(
    shards: Path,
    corpus: list[CorpusRow],
    units: list[Unit],
    groups: dict[int, list[int]],
    vocabulary_size: int,
    *,
    top_k: int,
    hidden_dtype: str,
    seed: int,
) -> None:
    """Random pages that hang together: top-k and tails come from the head over the last layer's states."""
    random = np.random.default_rng(seed + 1)
    head = random.standard_normal((vocabulary_size, TEACHER_WIDTH)).astype(np.float32)
    layers = (TEACHER_LAYERS - 1, TEACHER_LAYERS)
    rows = []
    for row in corpus:
        count = len(response_positions(row.teacher_response_spans))
        states = {layer: random.standard_normal((count, TEACHER_WIDTH)).astype(np.float32) for layer in layers}
        logits = states[TEACHER_LAYERS] @ head.T
        values = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        order = np.argsort(-values, axis=1, kind="stable")
        kept, left = np.take_along_axis(values, order[:, :top_k], 1), np.take_along_axis(values, order[:, top_k:], 1)
        tails = [np.log(np.exp(left.astype(np.float64) / t).sum(1)) for t in TEMPERATURES]
        rows.append(
            TeacherRow(
                id=row.id,
                hidden={layer: encode_float32(one, hidden_dtype) for layer, one in states.items()},
                attention={
                    layer: random.dirichlet(np.ones(max(count, 1)))[:count].astype(np.float32) for layer in layers
                },
                top_k_ids=order[:, :top_k].astype(np.int32),
                top_k_values=kept.astype(np.float16),
                log_tails=np.array(tails, np.float32).reshape(len(TEMPERATURES), count),
                next_log_prob=np.zeros(count, np.float32),
            )
        )
    schema = teacher_schema(
        hidden=dict.fromkeys(layers, TEACHER_WIDTH),
        hidden_dtype=hidden_dtype,
        attention=layers,
        top_k=top_k,
        vocab_size=vocabulary_size,
        num_temperatures=len(TEMPERATURES),
    )
    begin(shards, "teacher", {"seed": seed}, lambda: units, files=["head.safetensors"])
    save_head(shards / "teacher", {"weight": head}, {"scale": "1.0", "softcap": ""})
    write_parts(shards, "teacher", schema, rows, units, groups)
    facts = {
        "name": "synthetic teacher",
        "num_layers": TEACHER_LAYERS,
        "hidden_size": TEACHER_WIDTH,
        "temperatures": list(TEMPERATURES),
        "failed_examples": [],
    }
    seal(shards, "teacher", facts)


def write_parts(
    shards: Path,
    section: str,
    schema: FolderSchema,
    rows: Sequence[Row],
    units: list[Unit],
    groups: dict[int, list[int]],
) -> None:
    """All parts of one folder."""
    for unit in units:
        write_part(shards / section, schema, unit, rows[unit.start : unit.stop], groups[unit.part])
