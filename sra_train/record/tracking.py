"""What a run writes down as it goes: metrics.jsonl and metrics.csv always, trackers where asked for.

One JSON object a line, in the order things happened: ``{"kind": "step", "step": 12, "loss": ...}`` for a step,
``"evaluation"`` for a development measurement. A resumed run first drops the lines behind its checkpoint, so the file
reads as if nothing had happened. metrics.csv is the same as one table, written anew at every checkpoint.

TensorBoard, Weights & Biases and trackio go through accelerate's trackers and only where their library is installed.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from sra_data.errors import ConfigError, TrainingError
from sra_train.config import TrackingConfig, flatten

LIBRARIES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
Value = float | int | str | None


class Metrics:
    """The two files; only the first process has one.

    Args:
        folder: Of the run.
        resume_step: Steps done according to the checkpoint; later lines are dropped.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.csv = folder / "metrics.csv"
        kept = [record for record in read_metrics(self.jsonl) if record["step"] <= resume_step]
        rewrite(self.jsonl, "".join(json_line(record) for record in kept))
        self._file = self.jsonl.open("a", encoding="utf-8", buffering=1)  # a line at a time reaches the disk

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Add one line. `step` counts the steps done, from 1."""
        self._file.write(json_line({"kind": kind, "step": step, **values}))

    def write_csv(self) -> None:
        """The whole of metrics.jsonl as one table; a cell is empty where a line has no such value."""
        records = read_metrics(self.jsonl)
        columns = list(dict.fromkeys(name for record in records for name in record))
        temporary = self.csv.with_suffix(".csv.tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns or ["kind", "step"])
            writer.writeheader()
            writer.writerows(records)
        os.replace(temporary, self.csv)

    def close(self) -> None:
        """Write the table a last time."""
        self._file.close()
        self.write_csv()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a last line cut off by a crash is left out.

    Raises:
        TrainingError: If a line is none that `Metrics` wrote.
    """
    if not path.is_file():
        return []
    records = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line) if line else None
            if record is not None:
                int(record["step"]), str(record["kind"])
                records.append(record)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path}: damaged behind line {len(records)} ({' '.join(str(error).split())}); delete it and run again"
        ) from None
    return records


def json_line(record: Mapping[str, Value]) -> str:
    """One record as strict JSON: a number that is none becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def rewrite(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # in a folder from somebody else it may be a link to another file
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def refuse_missing_trackers(options: TrackingConfig) -> None:
    """Refuse trackers that are not there.

    Raises:
        ConfigError: If a tracker's library is not installed.
    """
    for name in options.trackers:
        if not any(importlib.util.find_spec(library) for library in LIBRARIES[name]):
            raise ConfigError(
                f"tracking.trackers={name}: the library is not installed; run `pip install {LIBRARIES[name][0]}`"
            )


def start_trackers(
    accelerator: Accelerator, options: TrackingConfig, *, folder: Path, config: Mapping[str, Any]
) -> list[GeneralTracker]:
    """The trackers asked for, told the configuration; none but on the first process.

    Raises:
        ConfigError: If a tracker's library is not installed.
    """
    refuse_missing_trackers(options)
    if not options.trackers or not accelerator.is_main_process:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    trackers: list[GeneralTracker] = []
    plain = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in flatten(config).items()
    }
    for name in options.trackers:
        kind = LOGGER_TYPE_TO_CLASS[name]
        arguments: dict[str, Any] = {"logging_dir": str(folder / "trackers")} if kind.requires_logging_directory else {}
        if options.run_name is not None and name != "tensorboard":
            arguments["name"] = options.run_name
        tracker = kind(options.project, **arguments)
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(plain)
        trackers.append(tracker)
    return trackers


def log_to(trackers: list[GeneralTracker], kind: str, step: int, values: Mapping[str, Value]) -> None:
    """Send the numbers of one line to every tracker, under ``step/`` or ``evaluation/``."""
    numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
    for tracker in trackers:
        tracker.log(numbers, step=step)


def finish(trackers: list[GeneralTracker]) -> None:
    """Close every tracker."""
    for tracker in trackers:
        tracker.finish()
