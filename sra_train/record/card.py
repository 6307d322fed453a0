"""README.md beside the model: what it learned from, how, and what was measured. Written from the run's own records.

The metadata are huggingface_hub's, so that the Hub's pages and search know the model by them. Nothing stands there that
the run does not know: no base model where the weights were new, no licence where the student's card names none, no
teacher where the method has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sra_data.cards import hub_data, hub_model, licence_in_words, short_name, short_source
from sra_train.config import TrainConfig
from sra_train.record.provenance import ShardFacts

EVALUATIONS_SHOWN = 12
# Key of an evaluation -> the metric's name on the Hub, and in words.
METRICS = {"bits_per_byte": ("bits_per_byte", "Bits per byte"), "rouge_l": ("rouge", "Rouge-L")}


@dataclass(frozen=True)
class Told:
    """What a card is written from.

    Attributes:
        config: Of the run.
        student: Hub id or folder.
        facts: Of the shards.
        licence: Of the student, as `licence_of` finds it.
        roots: Seals of the folders that were read.
        versions: Of the libraries.
        records: Lines of metrics.jsonl.
        extended_at: Steps at which the finished run was given more.
        exported_step: The step whose weights these are.
        total_steps: Of the run.
    """

    config: TrainConfig
    student: str
    facts: ShardFacts
    licence: Mapping[str, str]
    roots: Mapping[str, str]
    versions: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]
    extended_at: Sequence[int]
    exported_step: int
    total_steps: int


def model_card(told: Told) -> ModelCard:
    """The card: metadata and Markdown."""
    return ModelCard(f"---\n{card_data(told).to_yaml()}\n---\n\n{card_text(told)}")


# -------------------------------------------------------------------------------------------------------- metadata


def card_data(told: Told) -> ModelCardData:
    """What the Hub reads."""
    config, results = told.config, eval_results(told)
    lora = config.student.lora
    is_adapter = lora is not None and lora.export == "adapter"
    base = hub_model(told.student) if config.student.init == "pretrained" else None
    others: dict[str, Any] = dict(told.licence)
    if base is not None:
        others["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return ModelCardData(
        base_model=base,
        datasets=[name for name in map(hub_data, told.facts.sources) if name is not None] or None,
        eval_results=results or None,
        library_name="peft" if is_adapter else "transformers",
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=f"{short_name(told.student)}-{config.method.name}" if results else None,
        pipeline_tag="text-generation",
        tags=tags_of(told),
        **others,
    )


def tags_of(told: Told) -> list[str]:
    """What the model is found by."""
    if not told.facts.teachers:
        return ["sra-distill", told.config.method.name]
    crossed = ["cross-tokenizer"] if told.facts.other_tokenizers else []
    return ["sra-distill", "knowledge-distillation", *crossed, told.config.method.name]


def eval_results(told: Told) -> list[EvalResult]:
    """What was measured of the very weights that were exported, on the development split."""
    measured = [
        record for record in told.records if record["kind"] == "evaluation" and record.get("step") == told.exported_step
    ]
    if not measured:
        return []
    named = next((name for name in map(hub_data, told.facts.sources) if name is not None), None)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=named or "development-split",
            dataset_name=f"development split of {', '.join(map(short_source, told.facts.sources))}",
            metric_type=metric,
            metric_name=words,
            metric_value=round(float(measured[-1][key]), 6),
        )
        for key, (metric, words) in METRICS.items()
        if key in measured[-1]
    ]


# ------------------------------------------------------------------------------------------------------------ words


def card_text(told: Told) -> str:
    """What people read."""
    config, facts, training = told.config, told.facts, told.config.training
    student, teachers = short_name(told.student), teachers_in_words(facts)
    method = config.method.model_dump(mode="json")
    lines = [
        f"# {student}, taught by {teachers}" if facts.teachers else f"# {student}, fine-tuned",
        "",
        *what_happened(told),
        "",
        "| | |",
        "|---|---|",
        f"| Student | {student}{', new random weights' if config.student.init == 'random' else ''} |",
        f"| Taught by | {teachers or 'nobody'} |",
        f"| Data | {', '.join(map(short_source, facts.sources))} |",
        f"| Method | {', '.join(f'{name}={value}' for name, value in method.items())} |",
        f"| Training | {training.epochs} epochs, batch {training.batch_size}, learning rate {training.learning_rate:g},"
        f" {training.schedule}, warm-up {training.warmup:g}, weight decay {training.weight_decay:g},"
        f" precision {training.precision}, seed {training.seed} |",
        *(f"| Given more steps | behind step {step}, where it had been finished |" for step in told.extended_at),
        f"| Adapters | {lora_in_words(config)} |",
        f"| Weights of | step {told.exported_step} of {told.total_steps} |",
        *licence_row(told),
        "",
        *evaluation_table(told.records),
        "## What it was made from",
        "",
        *(f"* {name}: `{root}`" for name, root in told.roots.items()),
        f"* versions: {', '.join(f'{name} {version}' for name, version in told.versions.items())}",
        "",
    ]
    return "\n".join(lines)


def what_happened(told: Told) -> list[str]:
    """Who learned what from whom, in two sentences."""
    student, method, facts = short_name(told.student), told.config.method.name, told.facts
    if not facts.teachers:
        return [f"`{student}` learned from the data alone with the method `{method}`: no teacher's pages were read."]
    lines = [
        f"`{student}` learned from the cached words of {teachers_in_words(facts)} with the method `{method}`;"
        " no teacher was needed while training."
    ]
    others = ", ".join(f"`{short_name(model)}`" for model in facts.other_tokenizers)
    if len(facts.other_tokenizers) == len(facts.teachers):
        return [*lines, "Student and teacher cut text by different tokenizers."]
    if others:
        return [*lines, f"Its tokenizer is not that of {others}; the other teachers share it."]
    return [*lines, "Student and teacher share one tokenizer."]


def licence_row(told: Told) -> list[str]:
    """What is known of the licence."""
    if not told.licence:
        return []
    also = "; the teacher's may ask for more" if told.facts.teachers else ""
    return [f"| Licence | {licence_in_words(dict(told.licence))}, the student's{also} |"]


def teachers_in_words(facts: ShardFacts) -> str:
    """Their models, and their weights where there are several."""
    if len(facts.teachers) == 1:
        return f"`{short_name(facts.teachers[0].model)}`"
    return " and ".join(f"`{short_name(one.model)}` ({one.weight:g})" for one in facts.teachers)


def lora_in_words(config: TrainConfig) -> str:
    """How the weights were adapted."""
    lora = config.student.lora
    if lora is None:
        return (
            "none: all weights were trained" if not config.student.freeze else f"none; frozen: {config.student.freeze}"
        )
    return f"LoRA r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, {lora.export}"


def evaluation_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last development measurements as a Markdown table; nothing where there are none."""
    found = [record for record in records if record["kind"] == "evaluation"]
    if not found:
        return []
    names = [name for name in dict.fromkeys(name for record in found for name in record) if name != "kind"]
    return [
        "## Development split",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|" + "---:|" * len(names),
        *("| " + " | ".join(cell(record.get(name)) for name in names) + " |" for record in found[-EVALUATIONS_SHOWN:]),
        "",
    ]


def cell(value: Any) -> str:
    """One number of a table."""
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
