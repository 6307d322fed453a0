"""README.md beside the model: what it learned from, how, and what was measured. Written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra_train.config import TrainConfig

EVALUATIONS_SHOWN = 12


def model_card(
    *,
    config: TrainConfig,
    student: str,
    teacher: str,
    data: str,
    roots: Mapping[str, str],
    versions: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    exported_step: int,
    total_steps: int,
) -> str:
    """The card as Markdown.

    Args:
        config: Of the run.
        student, teacher, data: In words, from the manifest.
        roots: Seals of the folders that were read.
        versions: Of the libraries.
        records: Lines of metrics.jsonl.
        exported_step: The step whose weights these are.
        total_steps: Of the run.
    """
    training = config.training
    method = config.method.model_dump(mode="json")
    student, teacher = short_name(student), short_name(teacher)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- knowledge-distillation",
        "- sra",
        "---",
        "",
        f"# {student}, taught by {teacher}",
        "",
        f"`{student}` learned from the cached words of `{teacher}` with the method `{config.method.name}`;"
        " the two have different tokenizers, and the teacher was not needed while training.",
        "",
        "| | |",
        "|---|---|",
        f"| Student | {student} |",
        f"| Teacher | {teacher} |",
        f"| Data | {data} |",
        f"| Method | {', '.join(f'{name}={value}' for name, value in method.items())} |",
        f"| Training | {training.epochs} epochs, batch {training.batch_size}, learning rate {training.learning_rate:g},"
        f" {training.schedule}, warm-up {training.warmup:g}, weight decay {training.weight_decay:g},"
        f" precision {training.precision}, seed {training.seed} |",
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
