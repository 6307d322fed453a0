"""What a run left in its folder, as a report reads it: configuration, identity, provenance and metrics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra_data.errors import TrainingError, one_line
from sra_data.terminal import bytes_in_words, clock
from sra_train.config import flatten
from sra_train.config.files import read_yaml
from sra_train.record.run_folder import CONFIG_FILE, RUN_FILE
from sra_train.record.tracking import read_metrics

LONGEST_NAME = 36
Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: what it is called on the page, unlike all others.
        folder: where it is.
        config: nested, as config.yaml has it; `text` the file itself.
        about: run.json: identity, roots, facts, versions, git.
        steps: of metrics.jsonl, those of training; `evaluations` those of the development split.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    text: str
    about: dict[str, Any]
    steps: tuple[Record, ...]
    evaluations: tuple[Record, ...]

    @property
    def model(self) -> Path | None:
        """The finished model's folder; None while there is none."""
        return self.folder / "model" if (self.folder / "model").is_dir() else None

    @property
    def settings(self) -> dict[str, str]:
        """The configuration by dotted names, without what every run has to itself."""
        return {name: str(value) for name, value in flatten(self.config).items() if name != "output_dir"}

    def of(self, section: str) -> dict[str, Any]:
        """A part of run.json; empty where there is none."""
        found = self.about.get(section)
        return found if isinstance(found, dict) else {}

    def setting(self, section: str, name: str, default: str) -> str:
        """One value of the configuration, or what stands where it says nothing."""
        found = self.config.get(section)
        return str((found.get(name) if isinstance(found, dict) else None) or default)

    def best(self) -> tuple[str, float, int] | None:
        """Metric, value and step of the best development measurement, by the metric that the run chose by."""
        metric = self.setting("evaluation", "metric", "loss")
        measured = [(float(one[metric]), int(one["step"])) for one in self.evaluations if is_number(one.get(metric))]
        if not measured:
            return None
        pick = max if metric.startswith("rouge") else min
        value, step = pick(measured, key=lambda found: found[0])
        return metric, value, step


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """Every run, in the order they were named.

    Raises:
        TrainingError: If one is no run's folder, has no steps yet, is named twice, or is damaged.
        ConfigError: If its config.yaml cannot be read.
    """
    paths = [Path(folder) for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise TrainingError(f"{twice}: named twice; name each run once")
    return [read_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def read_run(folder: Path, name: str) -> RunRecord:
    """One run.

    Raises:
        TrainingError: If it is no run's folder, has no steps yet, or is damaged.
        ConfigError: If its config.yaml cannot be read.
    """
    if not (folder / RUN_FILE).is_file():
        raise TrainingError(
            f"{folder}: not the folder of a run ({RUN_FILE} is missing); give one that `sra-train run` wrote"
        )
    try:
        about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise TypeError("no object")
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        said = one_line(error)
        raise TrainingError(
            f"{folder}: damaged ({said}); start the run again, it goes on from its checkpoint"
        ) from None
    config = read_yaml(folder / CONFIG_FILE)
    records = read_metrics(folder / "metrics.jsonl")
    steps = tuple(record for record in records if record["kind"] == "step")
    if not steps:
        raise TrainingError(f"{folder}: has no step yet; wait for the first, or name another run")
    evaluations = tuple(record for record in records if record["kind"] == "evaluation")
    method = config.get("method")
    if isinstance(method, str):
        config["method"] = {"name": method}
    return RunRecord(name, folder, config, text, about, steps, evaluations)


def names_of(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]  # what all of them end in tells nothing apart
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return [name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME + 1 :]}" for name in names]


def is_number(value: object) -> bool:
    """Whether a record's value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# --------------------------------------------------------------------------- in numbers


def numbers_of(run: RunRecord) -> Iterator[tuple[str, str]]:
    """What a run came to, name and value; the same names for every run."""
    last = run.steps[-1]
    total = run.of("identity").get("total_steps")
    yield "method", run.setting("method", "name", "sra")
    yield "taught by", ", ".join(teachers_of(run)) or "nobody"
    yield "steps", f"{last['step']:,}" + (f" of {total:,}" if isinstance(total, int) else "")
    yield "loss at the last step", number_of(last, "loss")
    best = run.best()
    yield (
        "best on the development split",
        "" if best is None else f"{best[0].replace('_', ' ')} {best[1]:.4f}, step {best[2]:,}",
    )
    bits = [one["bits_per_byte"] for one in run.evaluations if is_number(one.get("bits_per_byte"))]
    yield "bits per byte there at the end", f"{bits[-1]:.4f}" if bits else ""
    yield "training time", clock(sum(values_of(run, "seconds")))
    yield "seconds a step, median", median_of(run, "seconds", "{:.3g}")
    yield "student tokens per second, median", median_of(run, "tokens_per_second", "{:,.0f}")
    yield "share of a step spent waiting for data, median", median_of(run, "data_wait", "{:.2%}")
    memory = values_of(run, "peak_memory_bytes")
    yield "peak memory", bytes_in_words(max(memory)) if memory else ""
    yield "model", "" if run.model is None else str(run.model)


def values_of(run: RunRecord, name: str) -> list[float]:
    """One number of every step that has it."""
    return [float(record[name]) for record in run.steps if is_number(record.get(name))]


def median_of(run: RunRecord, name: str, words: str) -> str:
    """In words; nothing where no step has it."""
    values = values_of(run, name)
    return words.format(statistics.median(values)) if values else ""


def number_of(record: Record, name: str) -> str:
    """A number of one record."""
    return f"{record[name]:.4f}" if is_number(record.get(name)) else ""


def teachers_of(run: RunRecord) -> list[str]:
    """Names of the models whose pages it read, with their weights where there are several."""
    teachers = [one for one in run.of("facts").get("teachers") or [] if isinstance(one, dict)]
    if len(teachers) == 1:
        return [str(teachers[0].get("model"))]
    return [f"{one.get('model')} ({one.get('weight')})" for one in teachers]


def provenance_of(run: RunRecord) -> Iterator[tuple[str, str]]:
    """What a run is made of, name and value."""
    facts, git = run.of("facts"), run.of("git")
    sources = facts.get("sources")
    yield "data", ", ".join(map(str, sources)) if isinstance(sources, list) and sources else "not recorded"
    yield "student's side", str(facts.get("side", "not recorded"))
    yield "its tokenizer", str(facts.get("tokenizer", "not recorded"))
    for name, root in run.of("roots").items():
        yield f"root of {name}", str(root)
    for name, version in run.of("versions").items():
        yield name, str(version)
    if git:
        yield "git", f"{git.get('commit')}{' with changes' if git.get('has_changes') else ''}"
