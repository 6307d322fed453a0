"""README.md beside the model: what it learned from, how, and what was measured. Written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_train.config import TrainConfig
from sra_train.record.provenance import ShardFacts

EVALUATIONS_SHOWN = 12


def model_card(
    *,
    config: TrainConfig,
    student: str,
    facts: ShardFacts,
    roots: Mapping[str, str],
    versions: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    extended_at: Sequence[int],
    exported_step: int,
    total_steps: int,
) -> str:
    """The card as Markdown.

    Args:
        config: Of the run.
        student: Hub id or folder.
        facts: Of the shards.
        roots: Seals of the folders that were read.
        versions: Of the libraries.
        records: Lines of metrics.jsonl.
        extended_at: Steps at which the finished run was given more.
        exported_step: The step whose weights these are.
        total_steps: Of the run.
    """
    training = config.training
    method = config.method.model_dump(mode="json")
    student, teachers = short_name(student), teachers_in_words(facts)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- knowledge-distillation",
        "- sra",
        "---",
        "",
        f"# {student}, taught by {teachers}" if facts.teachers else f"# {student}, fine-tuned",
        "",
        f"`{student}` learned from the cached words of {teachers} with the method `{config.method.name}`;"
        " no teacher was needed while training."
        if facts.teachers
        else f"`{student}` learned from the data alone with the method `{config.method.name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| Student | {student} |",
        f"| Taught by | {teachers or 'nobody'} |",
        f"| Data | {facts.data} |",
        f"| Method | {', '.join(f'{name}={value}' for name, value in method.items())} |",
        f"| Training | {training.epochs} epochs, batch {training.batch_size}, learning rate {training.learning_rate:g},"
        f" {training.schedule}, warm-up {training.warmup:g}, weight decay {training.weight_decay:g},"
        f" precision {training.precision}, seed {training.seed} |",
        *(f"| Given more steps | behind step {step}, where it had been finished |" for step in extended_at),
        f"| Adapters | {lora_in_words(config)} |",
        f"| Weights of | step {exported_step} of {total_steps} |",
        "",
        *evaluation_table(records),
        "## What it was made from",
        "",
        *(f"* {name}: `{root}`" for name, root in roots.items()),
        f"* versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        "",
    ]
    return "\n".join(lines)


def short_name(model: str) -> str:
    """A Hub id as it is; of a folder its own name, because where it lay says nothing to others."""
    return Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model


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
