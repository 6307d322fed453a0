"""The numbers of a comparison, from what its runs left on disk."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import SourceError, TrainingError
from sra_train.compare.bootstrap import Difference, paired_difference
from sra_train.compare.plan import Point, RunKey
from sra_train.compare.records import RUN, Scored, Trained
from sra_train.config import YARDSTICK
from sra_train.record.tracking import read_lines

NOT_A_LOSS = {"kind", "step", "epoch", "lr", "projector_lr", "grad_norm", "tokens", "spans", "tokens_per_second"} | {
    "seconds",
    "data_wait",
    "peak_memory_bytes",
}


@dataclass(frozen=True)
class RunResult:
    """One run; the numbers are None where it diverged.

    Attributes:
        bits_per_byte: on the test data; `tempered` at the best temperature of the development split.
        losses: the terms of the first step, in nats and without their coefficients, and their sum as `loss`.
        curve: (step, bits per byte on the development split), as training measured it.
    """

    method: str
    rate: float
    clip: float | None
    seed: int
    status: str
    folder: str
    reason: str = ""
    bits_per_byte: float | None = None
    tempered: float | None = None
    temperature: float | None = None
    development: float | None = None
    rouge_l: float | None = None
    steps: int = 0
    exported_step: int = 0
    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Tried:
    """A point of the grid, and what came of it on the development split; None where it diverged."""

    rate: float
    clip: float | None
    development: float | None


@dataclass(frozen=True)
class MethodResult:
    """One row of the table: means over the seeds that ended, and how far they are spread.

    Attributes:
        difference: to fine-tuning, with its interval; None for fine-tuning, and where it is not among the methods.
        covered: share of the teachers' response tokens the method hears.
    """

    name: str
    about: str
    rate: float
    clip: float | None
    num_seeds: int
    num_diverged: int
    bits_per_byte: float
    deviation: float
    tempered: float
    tempered_deviation: float
    temperature: float
    development: float
    rouge_l: float | None
    seconds_per_step: float | None
    peak_memory_bytes: int | None
    losses: dict[str, float]
    covered: float | None
    difference: Difference | None
    tempered_difference: Difference | None
    grid: list[Tried]


@dataclass(frozen=True)
class Reference:
    """A model that no run of the comparison made: the untrained student, or the teacher."""

    name: str
    model: str
    bits_per_byte: float
    tempered: float
    temperature: float
    rouge_l: float | None


@dataclass(frozen=True)
class Ended:
    """A run or a reference with everything that is known of it."""

    trained: Trained
    tested: Scored | None


@dataclass(frozen=True, eq=False)
class Ruler:
    """The examples that every model of a comparison reads.

    Attributes:
        kept: bool [E].
        num_bytes: int64 [E].
    """

    kept: NDArray[np.bool_]
    num_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, tested: Sequence[Scored]) -> Ruler:
        """The examples that all of them read.

        Raises:
            SourceError: If there is none.
        """
        kept = np.all([~np.isnan(one.bits) for one in tested], axis=0) & (tested[0].num_bytes > 0)
        if not kept.any():
            raise SourceError("the test data: no example fits all models; give shorter examples")
        return cls(kept, tested[0].num_bytes)

    def per_byte(self, bits: NDArray[np.float64]) -> float:
        """Bits per byte over the kept examples."""
        return float(bits[self.kept].sum() / self.num_bytes[self.kept].sum())

    def difference(self, bits: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> Difference:
        """Between the rows of two methods' seeds, pair by pair."""
        kept = self.kept
        return paired_difference(np.array(bits)[:, kept], np.array(other)[:, kept], self.num_bytes[kept])


def run_result(key: RunKey, folder: Path, ended: Ended, ruler: Ruler) -> RunResult:
    """One run's numbers; `folder` is the one its job wrote into."""
    trained, tested = ended.trained, ended.tested
    common = {
        "method": key.method,
        "rate": key.point.rate,
        "clip": key.point.clip,
        "seed": key.seed,
        "folder": str(key.folder),
    }
    if tested is None:
        return RunResult(status="diverged", reason=trained.reason, **common)  # type: ignore[arg-type]
    path = folder / RUN / "metrics.jsonl"
    records, num_damaged = read_lines(path)
    if num_damaged:
        raise TrainingError(f"{path}: {num_damaged} damaged line(s); delete {folder} and run the comparison again")
    steps = [record for record in records if record["kind"] == "step"]
    first = steps[0] if steps else {}
    return RunResult(
        status="done",
        bits_per_byte=ruler.per_byte(tested.bits),
        tempered=ruler.per_byte(tested.tempered_bits),
        temperature=trained.temperature,
        development=trained.bits_per_byte,
        rouge_l=None if tested.rouge is None else statistics.fmean(tested.rouge),
        steps=int(steps[-1]["step"]) if steps else 0,
        exported_step=trained.exported_step,
        seconds_per_step=statistics.median(record["seconds"] for record in steps) if steps else None,
        peak_memory_bytes=int(max(record["peak_memory_bytes"] for record in steps)) if steps else None,
        losses={name: value for name, value in first.items() if is_loss(name, value)},
        curve=[
            (record["step"], record["bits_per_byte"])
            for record in records
            if record["kind"] == "evaluation" and record.get("bits_per_byte") is not None
        ],
        **common,  # type: ignore[arg-type]
    )


def is_loss(name: str, value: object) -> bool:
    """Whether a number of a step's record is a loss or one of its terms."""
    return isinstance(value, int | float) and name not in NOT_A_LOSS and not name.startswith("count_")


def method_result(
    name: str,
    point: Point,
    runs: Sequence[RunResult],
    tested: Mapping[int, Scored],
    yardstick: Mapping[int, Scored] | None,
    ruler: Ruler,
    *,
    about: str,
    covered: float | None,
    grid: list[Tried],
) -> MethodResult:
    """One row.

    Args:
        name: of the method.
        point: its best.
        runs: one a seed, of which at least one ended.
        tested: seed -> its test data.
        yardstick: fine-tuning's; None for itself, and where it is not there.
        ruler: the common examples.
        about, covered, grid: see `MethodResult`.
    """
    done = [run for run in runs if run.status == "done"]
    pairs = [seed for seed in tested if yardstick is not None and seed in yardstick]
    differences: list[Difference | None] = [None, None]
    if pairs and yardstick is not None:
        plain = [tested[seed].bits for seed in pairs], [yardstick[seed].bits for seed in pairs]
        tempered = [tested[seed].tempered_bits for seed in pairs], [yardstick[seed].tempered_bits for seed in pairs]
        differences = [ruler.difference(*plain), ruler.difference(*tempered)]
    bits = values(done, "bits_per_byte")
    peaks = values(done, "peak_memory_bytes")
    return MethodResult(
        name=name,
        about=about,
        rate=point.rate,
        clip=point.clip,
        num_seeds=len(done),
        num_diverged=len(runs) - len(done),
        bits_per_byte=statistics.fmean(bits),
        deviation=deviation(bits),
        tempered=statistics.fmean(values(done, "tempered")),
        tempered_deviation=deviation(values(done, "tempered")),
        temperature=statistics.fmean(values(done, "temperature")),
        development=statistics.fmean(values(done, "development")),
        rouge_l=mean_or_none(values(done, "rouge_l")),
        seconds_per_step=statistics.median(values(done, "seconds_per_step")),
        peak_memory_bytes=int(max(peaks)) if peaks else None,
        losses={term: statistics.fmean(run.losses[term] for run in done) for term in done[0].losses},
        covered=covered,
        difference=differences[0],
        tempered_difference=differences[1],
        grid=grid,
    )


def values(runs: Iterable[RunResult], name: str) -> list[float]:
    """One number of each run that has it."""
    return [found for run in runs if (found := getattr(run, name)) is not None]


def deviation(found: Sequence[float]) -> float:
    """Standard deviation; 0 of one value."""
    return statistics.stdev(found) if len(found) > 1 else 0.0


def mean_or_none(found: Sequence[float]) -> float | None:
    """Of several values; None of none."""
    return statistics.fmean(found) if found else None


def is_usable(trained: Trained) -> bool:
    """Whether a run ended with numbers."""
    return trained.status == "done" and trained.bits_per_byte is not None and math.isfinite(trained.bits_per_byte)


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        notes: what a reader must know before the numbers.
        tables: title -> methods, of an ablation.
    """

    output_dir: str
    student: str
    test: str
    is_development: bool
    num_examples: int
    num_bytes: int
    num_left_out: int
    steps: int
    seeds: int
    methods: list[MethodResult]
    references: list[Reference]
    runs: list[RunResult]
    notes: list[str]
    tables: dict[str, tuple[str, ...]]
    configs: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def method(self, name: str) -> MethodResult:
        """The row of that name."""
        return next(method for method in self.methods if method.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as results.json has them."""
        return asdict(self)


def notes_of(*, methods: Sequence[MethodResult], references: Sequence[Reference], is_development: bool) -> list[str]:
    """What a reader must know before the numbers."""
    found = []
    if is_development:
        found.append(
            "NO TEST DATA: rates and temperatures were chosen on the development split, and the numbers are of the same"
            " split; they flatter every method. Give --test."
        )
    sft = next((method for method in methods if method.name == YARDSTICK), None)
    teacher = next((one for one in references if one.name == "teacher"), None)
    if sft is None:
        found.append(f"{YARDSTICK} is not among the methods: there are no differences to it. Add it to --methods.")
    elif teacher is not None and teacher.bits_per_byte >= sft.bits_per_byte:
        found.append(
            f"THIS COMPARISON MEANS NOTHING: the teacher ({teacher.bits_per_byte:.4f} bits per byte) is not better than"
            f" the fine-tuned student ({sft.bits_per_byte:.4f}), so there is nothing to be learnt from it."
        )
    found += [
        f"{method.name}: {method.num_diverged} of its runs diverged and are in no mean; {method.num_seeds} did not"
        for method in methods
        if method.num_diverged
    ]
    untrained = next((one for one in references if one.name == "untrained"), None)
    found += [
        f"{method.name}: worse ({method.bits_per_byte:.4f} bits per byte) than the untrained student"
        f" ({untrained.bits_per_byte:.4f}): at these rates and steps it teaches nothing"
        for method in methods
        if untrained is not None and method.bits_per_byte > untrained.bits_per_byte
    ]
    found += [
        f"{method.name}: the best rate, {method.rate:g}, is the {end} of the grid; a wider one may be better"
        for method in methods
        for end in [edge_of(method)]
        if end
    ]
    if any(method.num_seeds < 3 for method in methods):
        found.append("fewer than three seeds: the intervals say little about how seeds differ")
    return found


def edge_of(method: MethodResult) -> str:
    """Which end of the grid a method's rate is; empty for none, and where there is nothing between the ends."""
    rates = sorted({tried.rate for tried in method.grid})
    if len(rates) < 3:
        return ""
    return {rates[0]: "lowest", rates[-1]: "highest"}.get(method.rate, "")
