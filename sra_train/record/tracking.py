"""What a run writes down as it goes: metrics.jsonl and metrics.csv always, trackers where asked for.

One JSON object a line, in the order things happened: ``{"kind": "step", "step": 12, "loss": ...}`` for a step,
``"evaluation"`` for a development measurement. A resumed run first drops the lines behind its checkpoint, so the file
reads as if nothing had happened. A line that is none (a disk that lost some bytes) is left out and costs itself alone.
metrics.csv is the same as one table, written anew when a call ends.

TensorBoard, Weights & Biases and trackio go through accelerate's trackers and only where their library is installed.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from sra_data.errors import ConfigError
from sra_train.config import TrackingConfig, flatten
from sra_train.record.files import write_text

LARGEST = 1 << 53  # of a count that is drawn: a float holds it
LONGEST_NAME = 200
LIBRARIES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
Value = float | int | str | None


class Metrics:
    """The two files; only the first process has one.

    Args:
        folder: Of the run.
        resume_step: Steps done according to the checkpoint; later lines are dropped.
        is_evaluated: Whether the checkpoint knows of an evaluation after them; one of which it does not comes again.

    Attributes:
        num_damaged: lines that could not be read, and are dropped.
    """

    def __init__(self, folder: Path, *, resume_step: int, is_evaluated: bool = True) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.csv = folder / "metrics.csv"
        records, self.num_damaged = read_lines(self.jsonl)
        end = (resume_step, is_evaluated)
        kept = [record for record in records if (record["step"], record["kind"] == "evaluation") <= end]
        write_text(self.jsonl, "".join(json_line(record) for record in kept))
        self._file = self.jsonl.open("a", encoding="utf-8", buffering=1)  # a line at a time reaches the disk

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Add one line. `step` counts the steps done, from 1."""
        self._file.write(json_line({"kind": kind, "step": step, **values}))

    def write_csv(self) -> None:
        """The whole of metrics.jsonl as one table; a cell is empty where a line has no such value."""
        records = read_metrics(self.jsonl)
        columns = list(dict.fromkeys(name for record in records for name in record))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns or ["kind", "step"])
        writer.writeheader()
        writer.writerows(records)
        write_text(self.csv, table.getvalue())

    def close(self) -> None:
        """Write the table a last time."""
        self._file.close()
        self.write_csv()

    @contextmanager
    def closed_in_the_end(self) -> Iterator[None]:
        """Close behind the block; where that ends with an error, a full disk say, this is the one to be heard."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.close()
            raise
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl that `Metrics` wrote; what is damaged is left out."""
    return read_lines(path)[0]


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the lines of a metrics.jsonl that `Metrics` wrote, how many others there are).

    A last line that a crash has cut off is neither.
    """
    if not path.is_file():
        return [], 0
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    records = [record for line in lines if (record := parse_line(line)) is not None]
    return records, len(lines) - len(records)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line; None where it is none that `Metrics` wrote."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (RecursionError, ValueError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    fits = all(is_own_name(name) and (name == "kind" or is_number(value)) for name, value in record.items())
    return record if fits else None


def is_own_name(name: str) -> bool:
    """Whether a quantity may be called so: a picture's file will be, in a folder that may be from somebody else."""
    return name.isprintable() and "/" not in name and 0 < len(name) <= LONGEST_NAME


def is_number(value: object) -> bool:
    """Whether it is a number of a table, or the null that stands for one that is none."""
    return value is None or type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def json_line(record: Mapping[str, Value]) -> str:
    """One record as strict JSON: a number that is none becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def start_trackers(
    accelerator: Accelerator, options: TrackingConfig, *, folder: Path, config: Mapping[str, Any]
) -> list[GeneralTracker]:
    """The trackers asked for, told the configuration; none but on the first process.

    Raises:
        ConfigError: If a tracker's library is not installed.
    """
    for name in options.trackers:
        if not any(importlib.util.find_spec(library) for library in LIBRARIES[name]):
            raise ConfigError(
                f"tracking.trackers={name}: the library is not installed; run `pip install {LIBRARIES[name][0]}`"
            )
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
