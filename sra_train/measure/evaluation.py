"""`sra-train evaluate`: bits per byte and Rouge-L of any Hugging Face models on any text; the Python API of both.

Bits per byte compares models whatever their tokenizers: the sum of -log2 P over the tokens of the responses, divided
by their UTF-8 bytes. End-of-sequence is left out, a token across the border of prompt and response counts whole, one
that nothing stands before costs log2 of the vocabulary, and an example beyond the context of ANY of the compared models
is left out for all of them (and counted). So every model pays for the same bytes.

This is the only module of sra_train that reads the user's text; training reads shards.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sra_data.corpus.chat import PLAIN_CHAT_TEMPLATE, TEMPLATE_FAILURES, Renderer
from sra_data.corpus.examples import Row
from sra_data.corpus.sources import open_source
from sra_data.corpus.tokenization import SideTokenizer, split_revision
from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ConfigError, ModelError, SourceError, TokenizerError, one_line
from sra_data.models.decoder import input_embeddings
from sra_data.models.devices import kernels_for_any_shape, usable_device
from sra_data.models.output_head import OutputHead
from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train.body import Body
from sra_train.choices import WeightDtype
from sra_train.config import GenerationConfig, StudentConfig
from sra_train.contract import LabelRows, map_tensors
from sra_train.likelihood import bits_of_unpredicted, token_nats_at
from sra_train.measure.generation import Prompt, RougeScores, rouge_scores
from sra_train.student import load_student, quiet_transformers

OK = "ok"


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured.

    Attributes:
        models: Hub ids (with `@revision`) or folders; compared on the same examples.
        data: As `sra-data align --data` takes it.
        columns: Named columns, likewise.
        split: Only rows of this split ("train", "dev", "test"); all where None.
        max_examples: The first so many.
        max_length: Tokens per example, at most the models' own positions (the default).
        batch_size: Examples of one forward.
        generation: The Rouge-L protocol, or None to leave it out.
        device: Where to run; a GPU where there is one.
        dtype: float32 or bfloat16.
        trust_remote_code: Run code that comes with a model.
    """

    models: tuple[str, ...]
    data: str
    columns: str | None = None
    split: str | None = None
    max_examples: int | None = None
    max_length: int | None = None
    batch_size: int = 8
    generation: GenerationConfig | None = None
    device: str | None = None
    dtype: WeightDtype = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ModelScores:
    """One model's numbers."""

    model: str
    bits_per_byte: float
    bits: float
    tokens: int  # scored
    unpredicted: int = 0  # of them: first ones, that nothing stands before
    rouge_l: RougeScores | None = None


@dataclass(frozen=True)
class EvaluationSummary(Told):
    """All numbers; examples and bytes are the same for every model."""

    scores: list[ModelScores]
    data: str
    num_examples: int
    num_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """It as plain values; `models` in the order they were named."""
        return {"models" if name == "scores" else name: value for name, value in asdict(self).items()}

    def ending(self) -> Ending:
        """It in words."""
        rows = [
            (
                score.model,
                f"{score.bits_per_byte:.4f}",
                f"{score.rouge_l.mean:.2f} ± {score.rouge_l.deviation:.2f}" if score.rouge_l else "",
            )
            for score in self.scores
        ]
        scores = Grid.of_columns(("model", "bits per byte", "Rouge-L"), rows)
        left_out = Grid.of_facts(*((f"left out: {reason}", f"{count}") for reason, count in self.left_out.items()))
        title = f"{self.data}: {self.num_examples:,} examples, {self.num_bytes:,} bytes of responses"
        said = tuple(
            f"{score.model}: {score.unpredicted:,} first tokens have nothing before them: log2 V bits each"
            for score in self.scores
            if score.unpredicted
        )
        return Ending(title, (left_out, scores), said, next=f"sra-train compare --test {shlex.quote(self.data)}")


@dataclass(frozen=True)
class Encoded:
    """One model's reading of the examples."""

    ids: list[np.ndarray]  # [N] int
    wanted: list[np.ndarray]  # [N] bool, tokens of the responses
    status: list[str]


def check_options(options: EvaluateOptions) -> torch.device:
    """Refuse what cannot be; where to run.

    Raises:
        ConfigError: One line.
    """
    if not options.models:
        raise ConfigError("evaluate: no model given; name at least one Hub id or folder")
    for name in ("batch_size", "max_examples", "max_length"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {count}: not a positive number; write 1 or more")
    return usable_device(options.device)


@kernels_for_any_shape()
def evaluate(options: EvaluateOptions, reporter: Reporter | None = None) -> EvaluationSummary:
    """Measure models on one corpus.

    Raises:
        SourceError: If no example fits all models.
        ModelError, TokenizerError: If a model or its tokenizer cannot be used.
    """
    reporter = reporter or Reporter()
    device = check_options(options)
    rows = read_rows(options.data, columns=options.columns, split=options.split, limit=options.max_examples)
    sides = [load_side(name, trust_remote_code=options.trust_remote_code) for name in options.models]
    encoded = [encode(side, rows, max_length=options.max_length) for side in sides]
    statuses = [next((s for s in found if s != OK), OK) for found in zip(*(one.status for one in encoded), strict=True)]
    kept = [index for index, status in enumerate(statuses) if status == OK]
    left_out = dict(Counter(status for status in statuses if status != OK))
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise SourceError(f"{options.data}: no example fits all models ({reasons}); give shorter examples")
    num_bytes = sum(count_response_bytes(rows[index]) for index in kept)
    scores = [
        score_model(name, side, one, rows, kept, num_bytes=num_bytes, device=device, options=options, reporter=reporter)
        for name, side, one in zip(options.models, sides, encoded, strict=True)
    ]
    return EvaluationSummary(scores, options.data, len(kept), num_bytes, left_out)


def score_model(
    name: str,
    side: SideTokenizer,
    encoded: Encoded,
    rows: Sequence[Row],
    kept: Sequence[int],
    *,
    num_bytes: int,
    device: torch.device,
    options: EvaluateOptions,
    reporter: Reporter,
) -> ModelScores:
    """One model's bits per byte and, if asked for, Rouge-L."""
    model = load_model(name, options).to(device).eval()
    ids, wanted = [encoded.ids[index] for index in kept], [encoded.wanted[index] for index in kept]
    refuse_beyond_table(model, ids, name=name)
    with reporter.task(f"bits per byte of {name}", total=len(ids), unit="examples") as task:
        bits = float(example_bits(model, ids, wanted, batch_size=options.batch_size, advance=task.advance).sum())
    rouge = None
    if options.generation is not None:
        prompts = make_prompts([rows[index] for index in kept], side)[: options.generation.max_examples]
        reporter.line(f"Rouge-L of {name}: {len(prompts)} prompts, {len(options.generation.seeds)} seeds")
        rouge = rouge_scores(model, side.tokenizer, prompts, options.generation)
    tokens, first = int(sum(one.sum() for one in wanted)), int(sum(one[:1].sum() for one in wanted))
    return ModelScores(name, bits / num_bytes, bits, tokens, first, rouge)


def refuse_beyond_table(model: nn.Module, ids: Sequence[NDArray[np.integer]], *, name: str) -> None:
    """Refuse a tokenizer that gives ids the model has no embedding for.

    Raises:
        ModelError: With both numbers.
    """
    rows, largest = input_embeddings(model).weight.shape[0], max(int(one.max(initial=0)) for one in ids)
    if largest >= rows:
        raise ModelError(
            f"model {name}: {rows} embeddings, its tokenizer gives id {largest}; give the model its own tokenizer"
        )


def example_bits(
    model: nn.Module,
    ids: Sequence[NDArray[np.integer]],
    wanted: Sequence[NDArray[np.bool_]],
    *,
    batch_size: int,
    temperatures: Sequence[float] = (1.0,),
    advance: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Sum of -log2 P over the wanted tokens of every example, at each temperature of the softmax.

    Args:
        model: In evaluation mode, on its device.
        ids: [N] of each of E examples.
        wanted: [N] likewise; which of the tokens are scored.
        batch_size: Examples of one forward.
        temperatures: T of them; the logits are divided by each.
        advance: Told how many examples are done.

    Returns:
        [T, E] bits.
    """
    bits = np.zeros((len(temperatures), len(ids)))
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [ids[index] for index in chosen], [wanted[index] for index in chosen]
        bits[:, chosen] = batch_bits(model, *batch, temperatures)
        advance(len(chosen))
    return bits


@torch.no_grad()
def batch_bits(
    model: nn.Module,
    ids: Sequence[NDArray[np.integer]],
    wanted: Sequence[NDArray[np.bool_]],
    temperatures: Sequence[float],
) -> NDArray[np.float64]:
    """`example_bits` of one batch, padded on the right [T, B]."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(one) for one in ids])
    padded = [torch.from_numpy(tokens.astype(np.int64)) for tokens in ids]
    input_ids = nn.utils.rnn.pad_sequence(padded, batch_first=True)
    marks = nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in wanted], batch_first=True)
    example, before = marks[:, 1:].nonzero(as_tuple=True)  # token n + 1 is predicted from n
    rows = LabelRows(example * input_ids.shape[1] + before, example, input_ids[example, before + 1])
    said, head = Body(model)(input_ids.to(device), lengths.to(device)), OutputHead.from_model(model)
    nats = token_nats_at(
        temperatures,
        hidden=said.last_hidden_state,
        head=head,
        rows=map_tensors(rows, lambda one: one.to(device)),
    )
    first = np.array([bits_of_unpredicted(int(one[:1].sum()), head) for one in wanted])
    bits: NDArray[np.float64] = (nats / math.log(2)).cpu().numpy() + first  # uniform at every temperature
    return bits


def read_rows(data: str, *, columns: str | None, split: str | None, limit: int | None) -> list[Row]:
    """The examples of a source.

    Raises:
        SourceError: If there are none.
    """
    rows = []
    for located in open_source(data, columns).scan():
        if split is None or located.row.split == split:
            rows.append(located.row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise SourceError(f"{data}: no examples{f' in the split {split}' if split else ''}; check --data and --split")
    return rows


def rows_of_split(shards: ShardSet, split: str) -> list[Row]:
    """The examples of one split of the shards' corpus, as the user gave them; none where the split is empty."""
    corpus, found = shards.corpus, []
    for example in corpus.read(np.flatnonzero(corpus.index.in_split(split)), ("prompt", "response", "chat")):
        chat = json.loads(example.chat) if example.chat else {}
        where = f"{shards.path}: {example.id}"
        messages, tools = chat.get("messages"), chat.get("tools")
        found.append(Row(example.id, where, example.prompt, example.response, messages, split, tools))
    return found


def load_side(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> SideTokenizer:
    """A model's tokenizer with what it knows of its context; `name@revision` names a revision too."""
    return SideTokenizer.load(name, revision, trust_remote_code)


def tokenizer_to_export(side: SideTokenizer, options: StudentConfig) -> Any:
    """The tokenizer behind `side` as its model folder has it.

    Loaded afresh: reading texts exactly switched off the other one's own limits, which must not be exported.
    """
    from transformers import AutoTokenizer

    trusted = options.trust_remote_code
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(side.name, revision=side.revision, trust_remote_code=trusted)


def generation_prompts(options: GenerationConfig, name: str, student: StudentConfig) -> dict[str, list[Prompt]]:
    """The prompts of every named set, cut by the student's tokenizer."""
    side = load_side(name, revision=student.revision, trust_remote_code=student.trust_remote_code)
    return {
        title: make_prompts(read_rows(data, columns=None, split=None, limit=options.max_examples), side)
        for title, data in options.sets.items()
    }


def load_model(name: str, options: EvaluateOptions) -> nn.Module:
    """The model of `name@revision`, checked to be its head over its last hidden states."""
    model, revision = split_revision(name)
    options_of_model = {
        "revision": revision,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
    }
    return load_student(model, StudentConfig.model_validate(options_of_model))


def encode(side: SideTokenizer, rows: Sequence[Row], *, max_length: int | None) -> Encoded:
    """How one model reads the examples; those beyond its context or its template say so in their status."""
    rendered = Renderer(side).render(rows)
    limits = [limit for limit in (side.max_positions, max_length) if limit is not None]
    ids = [np.zeros(0, np.int64) for _ in rows]
    wanted = [np.zeros(0, bool) for _ in rows]
    status = list(rendered.statuses)
    for is_chat in (False, True):
        chosen = [i for i, chat in enumerate(rendered.is_chat) if chat == is_chat and rendered.statuses[i] == OK]
        if not chosen:
            continue
        batch = side.encode(
            [rendered.texts[index] for index in chosen],
            response_ranges=[rendered.ranges[index] for index in chosen],
            closings=[rendered.closings[index] for index in chosen],
            is_chat=is_chat,
            max_length=min(limits) if limits else None,
            overlong="skip",
            names=[rows[index].where for index in chosen],
        )
        for number, index in enumerate(chosen):
            ids[index], status[index] = np.asarray(batch.ids[number]), batch.status[number]
            wanted[index] = np.zeros(len(ids[index]), dtype=bool)
            for start, stop in batch.response_spans[number].tolist():
                wanted[index][start:stop] = True
    return Encoded(ids, wanted, status)


def count_response_bytes(row: Row) -> int:
    """UTF-8 bytes of an example's responses."""
    if row.messages is None:
        return len((row.response or "").encode())
    return sum(
        len((message.get("content") or "").encode()) for message in row.messages if message["role"] == "assistant"
    )


def make_prompts(rows: Sequence[Row], side: SideTokenizer) -> list[Prompt]:
    """What the model is asked: the prompt, or the chat up to its last assistant turn; the response is the reference."""
    tokenizer: Any = side.tokenizer
    prompts = []
    for row in rows:
        if row.messages is None:
            text, reference, is_chat = row.prompt or "", row.response or "", False
        else:
            last = max(turn for turn, message in enumerate(row.messages) if message["role"] == "assistant")
            reference, is_chat = row.messages[last].get("content") or "", True
            try:
                text = tokenizer.apply_chat_template(
                    row.messages[:last],
                    tools=row.tools,
                    chat_template=side.chat_template or PLAIN_CHAT_TEMPLATE,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            except TEMPLATE_FAILURES as error:
                reason = one_line(error, 120)
                raise TokenizerError(
                    f"{side.name}: its chat template refuses {row.where} ({reason}); leave the example out, or give"
                    " the tokenizer another template"
                ) from error
        # a template writes its special tokens out; a plain prompt is text, whatever it spells
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not is_chat)["input_ids"]
        prompts.append(Prompt(row.id, ids if is_chat else [*side.prefix_ids, *ids], reference))
    return [prompt for prompt in prompts if prompt.ids]
