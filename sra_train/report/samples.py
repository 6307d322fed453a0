"""What the finished students answer: the same few prompts of the shards' development split, put to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sra_data.errors import SRAError
from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train.config import GenerationConfig
from sra_train.measure.evaluation import (
    EvaluateOptions,
    check_options,
    load_model,
    load_side,
    make_prompts,
    rows_of_split,
)
from sra_train.measure.generation import sample_answers
from sra_train.report.records import RunRecord

SEED = 10  # the first of the protocol's
NEW_TOKENS = 96
SHOWN = 1200  # characters of a prompt, its end


@dataclass(frozen=True)
class Sample:
    """One prompt, the answer that the data have, and each run's, by its name."""

    id: str
    prompt: str
    reference: str
    answers: dict[str, str]


def samples_of(
    runs: Sequence[RunRecord], count: int, *, device: str | None, reporter: Reporter
) -> tuple[list[Sample], list[str]]:
    """Answers of every run that has a model, and why others have none, a sentence each.

    The prompts are those of the first run's shards. Code that comes with a model is not run.
    """
    shards = Path(runs[0].setting("data", "shards", "shards"))
    try:
        with ShardSet.open(shards) as opened:
            rows = (rows_of_split(opened, "dev") or rows_of_split(opened, "train"))[:count]
    except SRAError as error:
        return [], [f"No answers: {error}."]
    said: dict[str, list[str]] = {}
    missing = []
    references: list[tuple[str, str, str]] = []
    for run in runs:
        if run.model is None:
            missing.append(f"{run.name} has no finished model yet, and so no answers.")
            continue
        reporter.line(f"samples of {run.name}: {len(rows)} answers of up to {NEW_TOKENS} tokens")
        options = EvaluateOptions(models=(str(run.model),), data="", device=device)
        try:
            place = check_options(options)
            side = load_side(str(run.model))
            prompts = make_prompts(rows, side)
            model = load_model(str(run.model), options).to(place).eval()
        except SRAError as error:
            missing.append(f"No answers of {run.name}: {error}.")
            continue
        chosen = GenerationConfig(seeds=(SEED,), max_new_tokens=NEW_TOKENS, batch_size=max(count, 1))
        with torch.random.fork_rng(devices=[]):
            said[run.name] = sample_answers(model, side.tokenizer, prompts, chosen, seed=SEED)
        texts = [side.tokenizer.decode(prompt.ids) for prompt in prompts]
        references = references or [(one.id, text, one.reference) for one, text in zip(prompts, texts, strict=True)]
    samples = [
        Sample(name, prompt[-SHOWN:], reference, {run: answers[number] for run, answers in said.items()})
        for number, (name, prompt, reference) in enumerate(references)
    ]
    return samples, missing
