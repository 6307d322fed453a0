"""Pictures of a run, from its metrics alone: every loss term, the learning rate, the throughput.

Each picture is one PNG in ``<output_dir>/plots``; the file's name is the quantity's. Training is drawn as a faint line
with a running mean over it, development measurements as points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINING = "#1f6f8b"
DEVELOPMENT = "#d1495b"
NOT_DRAWN = frozenset({"kind", "step", "epoch", "seconds", "tokens"})
LABELS = {
    "loss": ("Loss", "loss (nats)"),
    "ce": ("Cross entropy", "nats per label"),
    "cos": ("Span representations, L_cos", "1 - cosine, weighted over spans"),
    "geo": ("Geometry between spans, L_geo", "squared difference of cosines"),
    "kd": ("Distributions, L_KD", "nats per example"),
    "ce_mapped": ("Cross entropy of the teacher's mapped states", "nats per label"),
    "kd_student": ("Distributions in the student's space", "nats per label"),
    "kd_teacher": ("Distributions in the teacher's space", "nats per label"),
    "bits_per_byte": ("Bits per byte on the development split", "bits per byte"),
    "lr": ("Learning rate", "learning rate"),
    "projector_lr": ("Learning rate of the projectors", "learning rate"),
    "grad_norm": ("Gradient norm before clipping", "norm"),
    "tokens_per_second": ("Throughput", "student tokens per second"),
    "data_wait": ("Waiting for data", "share of the step"),
    "peak_memory_bytes": ("Peak memory", "bytes"),
    "spans": ("Spans", "spans per step"),
}


def draw_run(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw every quantity in `records` (lines of metrics.jsonl); the files made, in the order of the names."""
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    names = [
        name
        for name in dict.fromkeys(name for record in (*steps, *evaluations) for name in record)
        if name not in NOT_DRAWN and not name.startswith("count_")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in names:
        training = points(steps, name)
        development = points(evaluations, name)
        if training or development:
            made.append(draw_quantity(name, training, development, folder / f"{name}.png"))
    return made


def points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) where a record has one."""
    return [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over the last `width` values, fewer at the start."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means


def draw_quantity(
    name: str, training: Sequence[tuple[float, float]], development: Sequence[tuple[float, float]], path: Path
) -> Path:
    """One quantity over the steps, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    title, unit = LABELS.get(name, (name.replace("_", " "), name.replace("_", " ")))
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if training:
        steps, values = zip(*training, strict=True)
        width = max(len(values) // 50, 1)
        is_smooth = name in ("lr", "projector_lr") or width == 1
        axes.plot(steps, values, color=TRAINING, alpha=1.0 if is_smooth else 0.3, linewidth=1.2, label="training")
        if not is_smooth:
            axes.plot(steps, running_mean(values, width), color=TRAINING, linewidth=2, label=f"mean of {width} steps")
    if development:
        steps, values = zip(*development, strict=True)
        axes.plot(steps, values, "o-", color=DEVELOPMENT, linewidth=1.5, markersize=5, label="development")
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if development or (training and len(axes.lines) > 1):
        axes.legend(frameon=False)
    figure.savefig(path)
    return path
