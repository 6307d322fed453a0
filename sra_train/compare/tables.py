"""A comparison as tables: on the terminal, and as CSV for whoever counts on."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra_data.endings import Ending, Grid, Told
from sra_data.terminal import bytes_in_words
from sra_train.compare.bootstrap import Difference
from sra_train.compare.records import RUN
from sra_train.compare.results import Comparison, MethodResult, Reference, RunResult

Cells = dict[str, str]
NOT_ON_A_TERMINAL = frozenset({"losses at step 1", "to sft there", "temperature"})


def cells_of_method(method: MethodResult) -> Cells:
    """One row for people; a column that says nothing of any row is left out by `shown_columns`."""
    seeds = f"{method.num_seeds}" + (f" (+{method.num_diverged} diverged)" if method.num_diverged else "")
    return {
        "method": method.name,
        "rate": f"{method.rate:g}" + ("" if method.clip is None else f", clip {method.clip:g}"),
        "seeds": seeds,
        "bits per byte": spread(method.bits_per_byte, method.deviation, method.num_seeds),
        "to sft": interval(method.difference),
        "at best temperature": spread(method.tempered, method.tempered_deviation, method.num_seeds),
        "to sft there": interval(method.tempered_difference),
        "temperature": f"{method.temperature:.2f}",
        "Rouge-L": "" if method.rouge_l is None else f"{method.rouge_l:.2f}",
        "s a step": "" if method.seconds_per_step is None else f"{method.seconds_per_step:.3g}",
        "peak memory": "" if method.peak_memory_bytes is None else bytes_in_words(method.peak_memory_bytes),
        "teacher covered": "" if method.covered is None else f"{method.covered:.1%}",
        "losses at step 1": losses_in_words(method),
    }


def cells_of_reference(reference: Reference) -> Cells:
    """Likewise of a model that was not trained here."""
    return {
        "method": reference.name,
        "bits per byte": f"{reference.bits_per_byte:.4f}",
        "at best temperature": f"{reference.tempered:.4f}",
        "temperature": f"{reference.temperature:.2f}",
        "Rouge-L": "" if reference.rouge_l is None else f"{reference.rouge_l:.2f}",
    }


def losses_in_words(method: MethodResult) -> str:
    """What each term began with."""
    return ", ".join(f"{name} {value:.3g}" for name, value in method.losses.items())


def spread(mean: float, deviation: float, count: int) -> str:
    """A mean over seeds, with their standard deviation where there are several."""
    return f"{mean:.4f} ± {deviation:.4f}" if count > 1 else f"{mean:.4f}"


def interval(difference: Difference | None) -> str:
    """A difference with its interval; a star where it lies on one side of 0."""
    if difference is None:
        return ""
    star = "*" if difference.is_sure else ""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{star}"


def rows_of(found: Comparison, names: Sequence[str] | None = None) -> list[Cells]:
    """The rows of all methods, or of those named, with the references under them; empty columns are left out."""
    methods = found.methods if names is None else [found.method(name) for name in names]
    cells = [cells_of_method(method) for method in methods]
    if names is None:
        cells += [cells_of_reference(one) for one in found.references]
    columns = [name for name in cells[0] if any(row.get(name) for row in cells)]
    return [{name: row.get(name, "") for name in columns} for row in cells]


@dataclass(frozen=True)
class Shown(Told):
    """A comparison as a command ends with it."""

    found: Comparison

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return self.found.as_dict()

    def ending(self) -> Ending:
        """For people."""
        found = self.found
        title = (
            f"{found.student}, {found.steps:,} steps, {'development split' if found.is_development else found.test}:"
            f" {found.num_examples:,} examples, {found.num_bytes:,} bytes"
        )
        left_out = f", {found.num_left_out} left out because they do not fit all models" if found.num_left_out else ""
        tables = [grid_of(rows_of(found, methods), f"ablation: {name}") for name, methods in found.tables.items()]
        remarks = [
            *(f"losses at step 1, {method.name}: {losses_in_words(method)}" for method in found.methods),
            "to sft: bits per byte less those of sft, with a 95 % interval over seeds and examples; * beyond 0",
            *(f"! {note}" for note in found.notes),
            *found.files.values(),
        ]
        return Ending(title + left_out, (grid_of(rows_of(found)), *tables), tuple(remarks), next=self.following())

    def following(self) -> str:
        """What shows the runs of the best method, seed by seed."""
        best = min(self.found.methods, key=lambda method: method.bits_per_byte)
        folders = [Path(self.found.output_dir) / run.folder / RUN for run in self.found.runs if run.method == best.name]
        return f"sra-train report {' '.join(shlex.quote(str(folder)) for folder in folders)}"


def grid_of(rows: Sequence[Cells], title: str = "") -> Grid:
    """Some rows for the terminal, without the columns that only a page has room for."""
    names = [name for name in rows[0] if name not in NOT_ON_A_TERMINAL]
    return Grid(tuple(tuple(row[name] for name in names) for row in rows), tuple(names), title)


# --------------------------------------------------------------------------- files


def write_tables(found: Comparison, folder: Path) -> None:
    """table.csv, a row a method and reference, and runs.csv, a row a run."""
    write_csv(folder / "table.csv", [*map(method_record, found.methods), *map(reference_record, found.references)])
    write_csv(folder / "runs.csv", [run_record(run) for run in found.runs])


def method_record(method: MethodResult) -> dict[str, Any]:
    """One row of numbers."""
    record: dict[str, Any] = {
        "method": method.name,
        "rate": method.rate,
        "clip": method.clip,
        "seeds": method.num_seeds,
        "diverged": method.num_diverged,
        "bits_per_byte": method.bits_per_byte,
        "bits_per_byte_deviation": method.deviation,
        "tempered_bits_per_byte": method.tempered,
        "tempered_bits_per_byte_deviation": method.tempered_deviation,
        "temperature": method.temperature,
        "development_bits_per_byte": method.development,
    }
    for name, difference in (("", method.difference), ("tempered_", method.tempered_difference)):
        if difference is not None:
            record |= {
                f"{name}difference_to_sft": difference.mean,
                f"{name}difference_low": difference.low,
                f"{name}difference_high": difference.high,
            }
    return record | {
        "rouge_l": method.rouge_l,
        "seconds_per_step": method.seconds_per_step,
        "peak_memory_bytes": method.peak_memory_bytes,
        "teacher_tokens_covered": method.covered,
        **{f"first_{name}": value for name, value in method.losses.items()},
    }


def reference_record(reference: Reference) -> dict[str, Any]:
    """Likewise."""
    return {
        "method": reference.name,
        "bits_per_byte": reference.bits_per_byte,
        "tempered_bits_per_byte": reference.tempered,
        "temperature": reference.temperature,
        "rouge_l": reference.rouge_l,
    }


def run_record(run: RunResult) -> dict[str, Any]:
    """One run; its curve is in results.json."""
    names = (
        "method rate clip seed status bits_per_byte tempered temperature development rouge_l steps exported_step"
        " seconds_per_step peak_memory_bytes folder reason"
    )
    return {name: getattr(run, name) for name in names.split()} | {
        f"first_{name}": value for name, value in run.losses.items()
    }


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """A table in which a cell is empty where a row has no such value."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
