"""Small whole shards without a teacher: random words, byte-level tokenizers, random numbers for the teachers' pages.

For tests of the trainer, which must not depend on the stages that make shards. Everything is a function of the seed.
One student, and as many teachers as asked for, each with a tokenizer, a width and a depth of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.codecs import encode_float32
from sra_data.shards.images import IMAGES, save_images
from sra_data.shards.kinds import Row
from sra_data.shards.manifest import kind_of
from sra_data.shards.nearest import save_nearest
from sra_data.shards.schema import (
    CLOSES,
    OK,
    SPECIAL,
    AlignmentRow,
    ExampleRow,
    SideRow,
    TeacherRow,
    response_positions,
)
from sra_data.shards.store import (
    VOCABULARY,
    FolderSchema,
    StoredVocabulary,
    Unit,
    alignment_name,
    alignment_schema,
    begin,
    corpus_schema,
    cut_row_groups,
    model_name,
    record_pairs,
    save_embeddings,
    save_head,
    save_vocabulary,
    seal,
    side_schema,
    sides_of,
    teacher_schema,
    write_part,
)
from sra_data.spans.vocabulary import shared_vocabulary
from sra_data.stages.align.images import images_of
from sra_data.stages.align.nearest import nearest_of

TEACHER_WIDTH = 12
TEACHER_LAYERS = 3
TEMPERATURES = (1.0, 2.0)
END = "<|end|>"
STUDENT = "student-00000000"
TEACHERS = ("teacher-00000000", "second-00000000", "third-00000000")
ALIGNMENT = alignment_name(STUDENT, TEACHERS[0])
BYTES_PER_GROUP = 80
POSITIONS_PER_GROUP = 40


@dataclass(frozen=True)
class SyntheticShards:
    """Where everything is."""

    shards: Path
    student: Path
    num_train: int  # usable rows of the student with the first teacher; num_dev likewise
    num_dev: int
    teachers: tuple[str, ...]  # names under teachers/


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
    num_teachers: int = 1,
    num_skipped_by_second: int = 0,
    prompts: bool = True,
    shards: Path | None = None,
) -> SyntheticShards:
    """Write shards and the student they are aligned with under `folder`; without `prompts` rows are plain text.

    Rows 0, 3, 6, ... (`num_skipped` of them, those that train) are skipped on the student's side, rows 2, 5, 8, ...
    (`num_skipped_by_second`) on the second teacher's side alone. Pages are only written `with_teacher`. The shards go
    into `folder`/shards, or into `shards`: what stands for a place in a store, say.
    """
    examples = make_examples(num_examples, num_dev, seed)
    if not prompts:
        examples = [replace(one, prompt="") for one in examples]
    tokenizers = make_tokenizers(folder, examples, num_teachers)
    make_student(folder / "student", tokenizers[STUDENT].tokenizer, dropout=dropout)
    train = {number for number, example in enumerate(examples) if example.split == "train"}
    skipped = {
        STUDENT: train & set(range(0, 3 * num_skipped, 3)),
        TEACHERS[1]: train & set(range(2, 3 * num_skipped_by_second + 2, 3)),
    }
    world = World(shards or folder / "shards", examples, rows_per_part, seed)
    world.begin("corpus")
    world.write("corpus", corpus_schema(), examples, {"source": [f"random words, seed {seed}"], "num_dev": num_dev})
    sides = {name: world.write_side(name, one, skipped.get(name, set())) for name, one in tokenizers.items()}
    teachers = TEACHERS[:num_teachers]
    aligned = [world.write_alignment(teacher, sides, tokenizers) for teacher in teachers]
    for number, teacher in enumerate(teachers if with_teacher else ()):
        size = len(tokenizers[teacher].tokenizer)
        world.write_teacher(number, sides[teacher], size, top_k=top_k, hidden_dtype=hidden_dtype)
    usable = [example for example, row in zip(examples, aligned[0], strict=True) if row.status == OK]
    return SyntheticShards(
        world.shards,
        folder / "student",
        num_train=sum(row.split == "train" for row in usable),
        num_dev=sum(row.split == "dev" for row in usable),
        teachers=teachers if with_teacher else (),
    )


def make_examples(count: int, num_dev: int, seed: int) -> list[ExampleRow]:
    """Prompts and responses of random words."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnop"), random.integers(2, 8))) for _ in range(40)]
    examples = []
    for number in range(count):
        prompt = " ".join(random.choice(words, random.integers(2, 6)))
        response = " " + " ".join(random.choice(words, random.integers(1, 14)))
        split = "dev" if num_dev and number % (count // num_dev) == 1 else "train"
        examples.append(ExampleRow(f"example-{number:03d}", split, len(response), prompt, response))
    return examples


def make_tokenizers(folder: Path, examples: Sequence[ExampleRow], num_teachers: int) -> dict[str, SideTokenizer]:
    """The student's and each teacher's, by side: of other sizes, trained on other parts of the text."""
    whole = [f"{example.prompt}{example.response}" for example in examples]
    make_tokenizer(whole, 300, folder / "student")
    for number, name in enumerate(TEACHERS[:num_teachers]):
        make_tokenizer(whole[number :: number + 2], 330 - 20 * number, folder / stem(name))
    return {name: SideTokenizer.load(str(folder / stem(name))) for name in (STUDENT, *TEACHERS[:num_teachers])}


def stem(name: str) -> str:
    """A side's name without its 8 hex digits."""
    return name.rpartition("-")[0]


def named(name: str, tokenizer: SideTokenizer) -> dict[str, Any]:
    """The model of a side: a student is a local folder, a teacher is nowhere."""
    return {"name": model_name(tokenizer.name) if name == STUDENT else f"synthetic {stem(name)}", "revision": None}


@dataclass(frozen=True)
class World:
    """The folder that is being written: its examples, and how they are cut into parts."""

    shards: Path
    examples: list[ExampleRow]
    rows_per_part: int
    seed: int

    @property
    def units(self) -> list[Unit]:
        """The parts."""
        starts = range(0, len(self.examples), self.rows_per_part)
        stops = [min(start + self.rows_per_part, len(self.examples)) for start in starts]
        return [Unit(part, start, stop) for part, (start, stop) in enumerate(zip(starts, stops, strict=True))]

    def begin(self, section: str, *, files: Sequence[str] = (), made_from: Sequence[str] = ("corpus",)) -> Path:
        """Begin a folder; where it is."""
        begin(self.shards, section, {"seed": self.seed}, lambda: self.units, files=files, made_from=made_from)
        return self.shards / section

    def write(self, section: str, schema: FolderSchema, rows: Sequence[Row], facts: dict[str, Any]) -> None:
        """Write all parts of a folder that was begun, and seal it."""
        for unit in self.units:
            chosen = slice(unit.start, unit.stop)
            if kind_of(section) == "teacher":
                counts = [len(row.next_log_prob) for row in rows[chosen]]  # type: ignore[union-attr, arg-type]
                groups = cut_row_groups(counts, most=POSITIONS_PER_GROUP)
            else:
                groups = cut_row_groups([row.num_bytes for row in self.examples[chosen]], most=BYTES_PER_GROUP)
            write_part(self.shards / section, schema, unit, rows[chosen], groups)
        seal(self.shards, section, facts)

    def write_side(self, name: str, tokenizer: SideTokenizer, skipped: set[int]) -> list[SideRow]:
        """The corpus as one tokenizer reads it."""
        rows = [side_row(row, tokenizer, number in skipped) for number, row in enumerate(self.examples)]
        model = named(name, tokenizer)
        facts = {"tokenizer_name": model["name"], "revision": None, "tokenizer": tokenizer.fingerprint}
        facts |= {"max_positions": tokenizer.max_positions, "max_length": None, "overlong": "truncate"}
        self.begin(f"sides/{name}")
        self.write(f"sides/{name}", side_schema(), rows, facts)
        return rows

    def write_alignment(
        self, teacher: str, sides: dict[str, list[SideRow]], tokenizers: dict[str, SideTokenizer]
    ) -> list[AlignmentRow]:
        """The student's side with a teacher's, and the pair."""
        name = alignment_name(STUDENT, teacher)
        left, right = sides_of(name)
        rows = [align_rows(*pair) for pair in zip(sides[left], sides[right], strict=True)]
        section = f"alignments/{name}"
        folder = self.begin(section, files=[VOCABULARY, IMAGES], made_from=(f"sides/{left}", f"sides/{right}"))
        shared = shared_vocabulary(student=tokenizers[left].vocabulary, teacher=tokenizers[right].vocabulary)
        ends = tokenizers[left].tokenizer.eos_token_id, tokenizers[right].tokenizer.eos_token_id
        tables = (shared.student_ids, shared.teacher_ids, shared.teacher_of_student, shared.student_of_teacher)
        save_vocabulary(folder, StoredVocabulary(*tables, ends))
        save_images(folder, images_of(tokenizers[left], tokenizers[right]))
        save_nearest(folder, nearest_of(tokenizers[left], tokenizers[right]))
        options = {"boundaries": "token", "max_spans": 2048, "vocabulary_match": "bytes"}
        self.write(section, alignment_schema(), rows, {"options": options, "shared_ids": len(shared)})
        models = {"teacher": named(teacher, tokenizers[teacher]), "student": named(STUDENT, tokenizers[STUDENT])}
        record_pairs(self.shards, [{**models, "teacher_side": teacher, "student_side": STUDENT, "alignment": name}])
        return rows

    def write_teacher(
        self, number: int, side: Sequence[SideRow], vocabulary_size: int, *, top_k: int, hidden_dtype: str
    ) -> None:
        """A teacher's pages, its head, and the embeddings of the ids that occur."""
        name, width, num_layers = TEACHERS[number], TEACHER_WIDTH + 4 * number, TEACHER_LAYERS + number
        random = np.random.default_rng(self.seed + 1 + 1000 * number)
        head = random.standard_normal((vocabulary_size, width)).astype(np.float32)
        layers = (num_layers - 1, num_layers)
        rows = [teacher_row(row, head, layers, random, top_k=top_k, hidden_dtype=hidden_dtype) for row in side]
        schema = teacher_schema(
            hidden=dict.fromkeys(layers, width),
            hidden_dtype=hidden_dtype,
            attention=layers,
            top_k=top_k,
            vocab_size=vocabulary_size,
            num_temperatures=len(TEMPERATURES),
        )
        section = f"teachers/{name}"
        files = ["head.safetensors", "embeddings.safetensors"]
        folder = self.begin(section, files=files, made_from=[f"sides/{name}"])
        save_head(folder, {"weight": head}, {"scale": "1.0", "softcap": ""})
        ids = np.unique(np.concatenate([row.ids for row in side])).astype(np.int32)
        save_embeddings(folder, ids, random.standard_normal((len(ids), width)).astype(np.float32), {"scale": "1.0"})
        shape = {"num_layers": num_layers, "layers": list(layers), "hidden_size": width, "hidden_dtype": hidden_dtype}
        facts = {
            "name": f"synthetic {stem(name)}",
            "revision": None,
            "adapter": None,
            "side": name,
            "alignment": None,
            **shape,
            "vocabulary_size": vocabulary_size,
            "attention": True,
            "top_k": top_k,
            "temperatures": list(TEMPERATURES),
            "failed_examples": [],
        }
        self.write(section, schema, rows, facts)


def side_row(example: ExampleRow, tokenizer: SideTokenizer, is_skipped: bool) -> SideRow:
    """One example as one side reads it."""
    assert example.prompt is not None
    assert example.response is not None
    text = example.prompt + example.response
    ranges = np.array([[len(example.prompt), len(text)]], np.int32)
    if is_skipped:
        none, no_spans = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
        kinds = np.zeros(0, np.uint8)
        return SideRow(example.id, "skipped:overlong", none, none, none, kinds, no_spans, none, no_spans, no_spans)
    read = tokenizer.encode([text], response_ranges=[ranges], is_chat=False)
    kinds = np.where(read.offsets.closes[0], CLOSES, 0).astype(np.uint8)
    kinds[np.asarray(read.offsets.is_special[0])] = SPECIAL
    return SideRow(
        id=example.id,
        status=read.status[0],
        ids=np.asarray(read.ids[0], np.int32),
        starts=np.asarray(read.offsets.starts[0], np.int32),
        ends=np.asarray(read.offsets.ends[0], np.int32),
        kinds=kinds,
        response_ranges=ranges,
        response_turns=np.zeros(1, np.int32),
        response_spans=np.asarray(read.response_spans[0], np.int32),
        label_spans=np.asarray(read.label_spans[0], np.int32),
    )


def align_rows(left: SideRow, right: SideRow) -> AlignmentRow:
    """The spans of two readings."""
    for name, side in (("left", left), ("right", right)):
        if side.status != OK:
            nothing = np.zeros((0, 2), np.int32)
            return AlignmentRow(side.id, side.status.replace(":", f":{name}_"), nothing, nothing)
    spans = shared_spans([left.ends, right.ends], [left.response_spans[0], right.response_spans[0]])
    return AlignmentRow(left.id, OK, *spans)


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


def teacher_row(
    side: SideRow,
    head: np.ndarray,
    layers: tuple[int, int],
    random: np.random.Generator,
    *,
    top_k: int,
    hidden_dtype: str,
) -> TeacherRow:
    """Random states that hang together with the rest: what is said of the next token comes from the last layer's."""
    positions = response_positions(side.response_spans)
    count = len(positions)
    states = {layer: random.standard_normal((count, head.shape[1])).astype(np.float32) for layer in layers}
    logits = states[layers[-1]] @ head.T
    values = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-values, axis=1, kind="stable")
    kept, left = np.take_along_axis(values, order[:, :top_k], 1), np.take_along_axis(values, order[:, top_k:], 1)
    tails = [np.log(np.exp(left.astype(np.float64) / t).sum(1)) for t in TEMPERATURES]
    attention = {layer: random.dirichlet(np.ones(max(count, 1)))[:count].astype(np.float32) for layer in layers}
    next_log_prob = np.full(count, np.nan, np.float32)  # nothing follows the last token
    followed = np.flatnonzero(positions + 1 < len(side.ids))
    next_log_prob[followed] = values[followed, side.ids[positions[followed] + 1]]
    return TeacherRow(
        id=side.id,
        hidden={layer: encode_float32(one, hidden_dtype) for layer, one in states.items()},
        attention=attention,
        top_k_ids=order[:, :top_k].astype(np.int32),
        top_k_values=kept.astype(np.float16),
        log_tails=np.array(tails, np.float32).reshape(len(TEMPERATURES), count),
        next_log_prob=next_log_prob,
    )
