"""The charts of a report on runs: one for every quantity that any of them recorded, all runs in it.

One run is drawn as a faint line with a running mean over it, and the development split as points; of several runs each
has a line of its own, means alone. Long runs are thinned out, or the page would be as large as their records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from sra_data.pages.chart import COLOUR, Chart, short_bytes
from sra_train.record.plots import LABELS, NOT_DRAWN, points, running_mean
from sra_train.report.records import RunRecord

COLOURS = ("one", "two", "three")
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # a colour returns in another style
MOST_POINTS = 400
MEAN_OF = 50  # a running mean is over one of so many parts of a run
SMOOTH = frozenset({"lr", "projector_lr"})
SECTIONS = {
    "lr": "rates",
    "projector_lr": "rates",
    "grad_norm": "rates",
    "tokens_per_second": "work",
    "data_wait": "work",
    "peak_memory_bytes": "work",
    "spans": "work",
}
Points = list[tuple[float, float]]


def charts_of(runs: Sequence[RunRecord]) -> list[Chart]:
    """All quantities, in the order in which they were recorded; those without a section of their own are losses."""
    every = [record for run in runs for record in (*run.steps, *run.evaluations)]
    names = dict.fromkeys(name for record in every for name in record)
    return [chart for name in names if (chart := chart_of(name, runs)) is not None]


def chart_of(name: str, runs: Sequence[RunRecord]) -> Chart | None:
    """One quantity; None where nothing of it can be drawn."""
    if name in NOT_DRAWN or name.startswith("count_"):
        return None
    drawn = [(run.name, points(run.steps, name), points(run.evaluations, name)) for run in runs]
    if not any(value for _, training, development in drawn for _, value in (*training, *development)):
        return None  # what is 0 throughout, as the spans of a run without teachers, says nothing
    title, unit = LABELS.get(name, (name.replace("_", " "), name.replace("_", " ")))
    caption = "" if len(drawn) > 1 or name in SMOOTH else caption_of(drawn[0][1], drawn[0][2])
    draw = partial(draw_runs if len(drawn) > 1 else draw_run, name=name, unit=unit, drawn=drawn)
    return Chart(name, SECTIONS.get(name, "losses"), title, caption, draw)


def caption_of(training: Points, development: Points) -> str:
    """How to read the chart of one run."""
    if not training:
        return "On the development split."
    width = max(len(training) // MEAN_OF, 1)
    said = "" if width == 1 else f"Faint: the steps; strong: the mean of {width} steps."
    return f"{said} Points: the development split.".strip() if development else said


def draw_run(axes: Axes, *, name: str, unit: str, drawn: Sequence[tuple[str, Points, Points]]) -> None:
    """One run: steps, their mean, and the development split."""
    ((_, training, development),) = drawn
    if training:
        mean = means_of(training, name)
        if mean != training:
            axes.plot(*columns(thinned(training)), color=COLOUR["one"], alpha=0.3, linewidth=1)
        axes.plot(*columns(thinned(mean)), color=COLOUR["one"], linewidth=1.8)
    if development:
        axes.plot(*columns(thinned(development)), "o-", color=COLOUR["two"], linewidth=1.3, markersize=4)
    finish(axes, name, unit)


def draw_runs(axes: Axes, *, name: str, unit: str, drawn: Sequence[tuple[str, Points, Points]]) -> None:
    """Several runs, each in its look: the mean of its steps as a line, the development split with points."""
    has_training = any(training for _, training, _ in drawn)
    for place, (run, training, development) in enumerate(drawn):
        look = {
            "color": COLOUR[COLOURS[place % len(COLOURS)]],
            "linestyle": STYLES[place // len(COLOURS) % len(STYLES)],
        }
        if training:
            axes.plot(*columns(thinned(means_of(training, name))), linewidth=1.6, label=run, **look)
        if development:
            label = None if has_training else run
            axes.plot(*columns(thinned(development)), marker="o", markersize=4, linewidth=1, label=label, **look)
    axes.legend(loc="best")
    finish(axes, name, unit)


def finish(axes: Axes, name: str, unit: str) -> None:
    """Names and numbers of the axes."""
    axes.set(xlabel="step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if name == "data_wait":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif name == "peak_memory_bytes":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    elif name in ("tokens_per_second", "spans"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=True)


def means_of(training: Points, name: str) -> Points:
    """A running mean; what is smooth by itself stays."""
    width = 1 if name in SMOOTH else max(len(training) // MEAN_OF, 1)
    if width == 1:
        return training
    steps, values = columns(training)
    return list(zip(steps, running_mean(values, width), strict=True))


def thinned(found: Points) -> Points:
    """At most `MOST_POINTS` of them: means of neighbours, the last one as it is."""
    if len(found) <= MOST_POINTS:
        return found
    width = -(-len(found) // (MOST_POINTS - 1))
    return [*neighbours(found[:-1], width), found[-1]]


def neighbours(found: Points, width: int) -> Iterator[tuple[float, float]]:
    """The mean of every `width` points that follow each other."""
    for some in (found[start : start + width] for start in range(0, len(found), width)):
        yield sum(step for step, _ in some) / len(some), sum(value for _, value in some) / len(some)


def columns(found: Points) -> tuple[list[float], list[float]]:
    """Steps and values."""
    return [step for step, _ in found], [value for _, value in found]
