"""Answers sampled from a model and their Rouge-L, by the protocol of docs/method.md, section 7.

Sampling at temperature 1 and top-p 1 over five seeds; Rouge-L F with stemming, times 100; prompts cut from the left to
256 tokens, because the question stands at the end; up to 512 new tokens. Prompts are padded on the LEFT here and
nowhere else: a model writes on at the right end.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sra_data.positions import most_positions
from sra_train.config import GenerationConfig
from sra_train.parallel import gather_objects


@dataclass(frozen=True)
class Prompt:
    """One thing to answer, and the answer it is compared with."""

    id: str
    ids: list[int]  # as the model's tokenizer cuts it, beginning tokens included
    reference: str


@dataclass(frozen=True)
class RougeScores:
    """Rouge-L F x 100 on one set.

    Attributes:
        per_seed: Mean over the examples, one a seed.
        num_examples: How many examples.
    """

    per_seed: tuple[float, ...]
    num_examples: int

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.per_seed)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 with one seed."""
        return statistics.stdev(self.per_seed) if len(self.per_seed) > 1 else 0.0


def rouge_l(*, references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Rouge-L F x 100 of each answer, stemmed, by the rouge-score package."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        100 * scorer.score(reference, answer)["rougeL"].fmeasure
        for reference, answer in zip(references, answers, strict=True)
    ]


def sample_answers(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], options: GenerationConfig, *, seed: int
) -> list[str]:
    """One sampled answer for each prompt, in their order.

    Args:
        model: A Hugging Face causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: What to answer.
        options: Sampling and lengths.
        seed: Of every batch together with its number, so that a rerun says the same.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids), reverse=True)
    answers = [""] * len(prompts)
    for number, start in enumerate(range(0, len(order), options.batch_size)):
        chosen = order[start : start + options.batch_size]
        torch.manual_seed(seed * 1_000_003 + number)
        texts = sample_batch(
            model, tokenizer, [prompts[index].ids[-options.max_prompt_tokens :] for index in chosen], options
        )
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


@torch.no_grad()
def sample_batch(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], options: GenerationConfig) -> list[str]:
    """Answers to one batch of prompts [B, n_b]; special tokens left out of the text."""
    import transformers

    end = tokenizer.eos_token_id
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end if end is not None else 0
    width = max(len(ids) for ids in prompts)
    input_ids = torch.full((len(prompts), width), filler, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[row, width - len(ids) :] = 1
    positions = most_positions(model.config)
    room = options.max_new_tokens if positions is None else min(options.max_new_tokens, positions - width)
    if room < 1:
        return [""] * len(prompts)
    said = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=transformers.GenerationConfig(
            do_sample=True,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=0,
            max_new_tokens=room,
            eos_token_id=end,
            pad_token_id=filler,
            use_cache=True,
        ),
    )
    return [until_end(row, tokenizer, end) for row in said[:, width:].tolist()]


def until_end(ids: list[int], tokenizer: Any, end: int | None) -> str:
    """The text of `ids` up to the first end-of-sequence; padding behind it may be any token."""
    stop = ids.index(end) if end is not None and end in ids else len(ids)
    return tokenizer.decode(ids[:stop], skip_special_tokens=True)


def rouge_scores(model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], options: GenerationConfig) -> RougeScores:
    """The protocol on one set, in this process."""
    per_seed = []
    for seed in options.seeds:
        answers = sample_answers(model, tokenizer, prompts, options, seed=seed)
        scores = rouge_l(references=[prompt.reference for prompt in prompts], answers=answers)
        per_seed.append(statistics.fmean(scores))
    return RougeScores(tuple(per_seed), len(prompts))


def measure_generation(
    model: nn.Module,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Prompt]],
    options: GenerationConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Rouge-L of named sets while training, each process answering its share of every set.

    Returns:
        ``rouge_l.<name>`` for each set and ``rouge_l``, their mean; the same on every process.
    """
    found: dict[str, float] = {}
    for name, prompts in sets.items():
        share = prompts[accelerator.process_index :: accelerator.num_processes]
        scores = [
            score
            for seed in options.seeds
            for score in rouge_l(
                references=[prompt.reference for prompt in share],
                answers=sample_answers(model, tokenizer, share, options, seed=seed),
            )
        ]
        found[f"rouge_l.{name}"] = statistics.fmean([s for one in gather_objects(accelerator, scores) for s in one])
    return found | {"rouge_l": statistics.fmean(found.values())}
