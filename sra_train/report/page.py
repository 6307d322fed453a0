"""Runs as one self-contained page; its template is page.html beside this file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sra_data.pages.chart import Chart
from sra_data.pages.render import Table, render
from sra_train.report.records import RunRecord, numbers_of, provenance_of, teachers_of
from sra_train.report.samples import Sample

TEMPLATE = Path(__file__).with_name("page.html")
TITLES = {
    "losses": "What was learnt",
    "rates": "Learning rates and gradients",
    "work": "Throughput, waiting and memory",
}
NAMED_IN_A_TITLE = 3
Facts = Callable[[RunRecord], Iterator[tuple[str, str]]]
ON_TILES = {
    "steps": "steps",
    "training time": "of training",
    "student tokens per second, median": "student tokens per second",
    "share of a step spent waiting for data, median": "of a step spent waiting for data",
    "peak memory": "peak memory",
}


@dataclass(frozen=True)
class Section:
    """A section of the page; see the macro of that name."""

    id: str
    title: str
    link: str
    words: tuple[str, ...] = ()
    over: tuple[Table, ...] = ()
    under: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()


def page(
    runs: Sequence[RunRecord], charts: Sequence[Chart], samples: Sequence[Sample] = (), missing: Sequence[str] = ()
) -> str:
    """The whole page.

    Args:
        runs: what is shown, at least one.
        charts: of them all.
        samples: answers of the finished students; `missing` why there are not more.
    """
    return render(
        TEMPLATE,
        title=title_of([run.name for run in runs]),
        lead=" · ".join(dict.fromkeys(lead_of(run) for run in runs)),
        tiles=tiles_of(runs[0]) if len(runs) == 1 else [],
        sections=list(sections_of(runs, charts)),
        names=[run.name for run in runs],
        samples=samples,
        missing=missing,
        configs={run.name: run.text for run in runs},
    )


def title_of(names: Sequence[str]) -> str:
    """Of the page: the runs' names, or how many they are."""
    if len(names) > NAMED_IN_A_TITLE:
        return f"{len(names)} runs"
    return f"{'Run' if len(names) == 1 else 'Runs'}: {', '.join(names)}"


def tiles_of(run: RunRecord) -> list[tuple[str, str]]:
    """The numbers at the top of one run's page, and what they are."""
    numbers, best = dict(numbers_of(run)), run.best()
    tiles = [(numbers[name], words) for name, words in ON_TILES.items() if numbers[name]]
    if best is None:
        return tiles
    metric, value, step = best
    return [
        *tiles[:1],
        (f"{value:.4f}", f"{metric.replace('_', ' ')} on the development split, step {step:,}"),
        *tiles[1:],
    ]


def lead_of(run: RunRecord) -> str:
    """Who learns from whom, and how."""
    numbers = dict(numbers_of(run))
    student = run.setting("student", "name", str(run.of("facts").get("side", "student")))
    teachers = [Path(name).name if Path(name).is_absolute() else name for name in teachers_of(run)]
    taught = f", taught by {', '.join(teachers)}" if teachers else ""
    return f"{Path(student).name} by {numbers['method']}{taught}"


def sections_of(runs: Sequence[RunRecord], charts: Sequence[Chart]) -> Iterator[Section]:
    """Numbers, curves, what differs and what the runs are made of."""
    yield Section("numbers", "In numbers", "Numbers", over=(side_by_side(runs, "run", numbers_of),))
    for name, title in TITLES.items():
        drawn = tuple(chart for chart in charts if chart.section == name)
        if drawn:
            yield Section(name, title, title, charts=drawn)
    if len(runs) > 1:
        yield Section("differences", "What differs in the configurations", "Differences", over=(differing(runs),))
    yield Section("provenance", "Provenance", "Provenance", over=(side_by_side(runs, "made of", provenance_of),))


def side_by_side(runs: Sequence[RunRecord], title: str, facts: Facts) -> Table:
    """A row for every name that any run has, a column a run; rows without a value are left out."""
    found = [dict(facts(run)) for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    rows = [(name, *(one.get(name, "") for one in found)) for name in names]
    return Table((title, *heads_of(runs)), [row for row in rows if any(row[1:])], is_wide=len(runs) > 1, wraps=True)


def differing(runs: Sequence[RunRecord]) -> Table:
    """The settings in which not all runs agree."""
    found = [run.settings for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    rows = [(name, *(one.get(name, "—") for one in found)) for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table(("setting", *heads_of(runs)), rows or [("none", *("" for _ in runs))], is_wide=True, wraps=True)


def heads_of(runs: Sequence[RunRecord]) -> list[str]:
    """The runs' names over their columns; one needs none."""
    return [run.name for run in runs] if len(runs) > 1 else ["value"]
