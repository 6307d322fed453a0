"""Running the trainer on synthetic shards, and looking at what it left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from sra_data.terminal import Reporter, Task
from sra_train.config import load_config
from sra_train.record.tracking import read_metrics
from sra_train.run import RunSummary, run
from tests.synthetic_shards import SyntheticShards

# Adam divides a first gradient by its own size: with the usual 1e-8 the rounding of elements that are nearly zero would
# decide which way they step, and runs that are equal to rounding would drift apart a hundred times faster.
EPSILON = 1e-6


def train(made: SyntheticShards, out: Path, reporter: Reporter | None = None, **changes: object) -> RunSummary:
    overrides = {
        "data.shards": str(made.shards),
        "output_dir": str(out),
        "training.epochs": 2,
        "training.batch_size": 5,
        "training.learning_rate": 3e-3,
        "training.epsilon": EPSILON,
        "tracking.plots": False,
    }
    overrides |= {name.replace("__", "."): value for name, value in changes.items()}
    return run(load_config(overrides=overrides), reporter)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "step"]


MEASURED = ("seconds", "tokens_per_second", "data_wait", "peak_memory_bytes")  # by clock and machine


def numbers(out: Path) -> list[dict[str, object]]:
    """Every line of metrics.jsonl without what depends on the clock and the machine."""
    records = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in MEASURED} for record in records]


def weights(out: Path) -> dict[str, torch.Tensor]:
    last = sorted((out / "checkpoints").glob("step-????????"))[-1]
    return load_file(last / "model.safetensors")


class Interrupting(Reporter):
    """Sends this process a signal behind the given number of steps."""

    def __init__(self, after: int, number: int = signal.SIGTERM) -> None:
        self.after = after
        self.number = number

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        def show(task: Task) -> None:
            if description == "train" and task.done == self.after:
                signal.raise_signal(self.number)

        yield Task(description, total, unit, show=show)


class Crashing(Interrupting):
    """Ends without a checkpoint behind the given number of steps."""

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        def show(task: Task) -> None:
            if description == "train" and task.done == self.after:
                raise RuntimeError(f"crashed behind step {self.after}")

        yield Task(description, total, unit, show=show)


class Listening(Reporter):
    """Keeps what is said, and does something behind every step."""

    def __init__(self, behind_step: Callable[[int], object] = lambda step: None) -> None:
        self.lines: list[str] = []
        self.behind_step = behind_step

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        yield Task(description, total, unit, show=lambda task: self.behind_step(int(task.done)))

    def said(self, words: str) -> list[str]:
        """The lines that have these words."""
        return [line for line in self.lines if words in line]
