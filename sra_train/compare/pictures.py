"""The picture of a comparison: how good each method is, how sure its difference to fine-tuning is, how it got there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no window, no global state
from matplotlib.ticker import MaxNLocator

from sra_train.compare.results import Comparison, RunResult

COLOURS = ("#1f6f8b", "#d1495b", "#b98119", "#5b7f3a", "#7a5195", "#4a4e57")
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # a colour returns in another style
INK, SOFT = "#1f2431", "#8a909b"
INCHES_A_METHOD = 0.36


def draw(found: Comparison, path: Path) -> None:
    """The whole picture as a PNG."""
    num_bars = len(found.methods) + len(found.references)
    figure = Figure(figsize=(11, 2.0 + INCHES_A_METHOD * num_bars + 3.4), dpi=150, layout="constrained")
    heights = (1.3 + INCHES_A_METHOD * num_bars, 3.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    top, bottom = parts
    bars, differences = top.subplots(1, 2, sharey=False, width_ratios=(1.25, 1))
    draw_bars(bars, found)
    draw_differences(differences, found)
    draw_curves(bottom.subplots(), found)
    figure.savefig(path)


def look_of(place: int) -> dict[str, Any]:
    """Colour and style of the method at that place, the same in all three parts."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place // len(COLOURS) % len(STYLES)]}


def draw_bars(axes: Any, found: Comparison) -> None:
    """Bits per byte of every method with its standard deviation, the references behind."""
    rows = len(found.methods)
    values = [method.bits_per_byte for method in found.methods]
    for place, method in enumerate(found.methods):
        axes.barh(place, method.bits_per_byte, height=0.62, color=look_of(place)["color"], alpha=0.85)
        axes.errorbar(method.bits_per_byte, place, xerr=method.deviation, color=INK, capsize=3, linewidth=1.2)
    for place, reference in enumerate(found.references, rows):
        axes.barh(place, reference.bits_per_byte, height=0.62, color=SOFT, alpha=0.55)
    values += [reference.bits_per_byte for reference in found.references]
    ends = [(method.bits_per_byte, method.deviation) for method in found.methods]
    ends += [(reference.bits_per_byte, 0.0) for reference in found.references]
    for place, (value, deviation) in enumerate(ends):
        axes.annotate(
            f"{value:.4f}", (value + deviation, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    names = [method.name for method in found.methods] + [reference.name for reference in found.references]
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.45, -0.55), xlim=(0, 1.2 * max(values)), xlabel="bits per byte, fewer is better")
    where = "development split" if found.is_development else "test data"
    axes.set_title(f"Bits per byte on the {where}, ± standard deviation of seeds", loc="left", fontsize=10.5)
    axes.tick_params(axis="y", length=0)
    plain(axes, grid="x")


def draw_differences(axes: Any, found: Comparison) -> None:
    """Each method less fine-tuning with its interval, on the same rows as the bars."""
    names = []
    for place, method in enumerate(found.methods):
        difference = method.difference
        names.append(method.name)
        if difference is None:
            continue
        ends = [[difference.mean - difference.low], [difference.high - difference.mean]]
        ends = [[max(0.0, value) for value in side] for side in ends]
        axes.errorbar(
            difference.mean, place, xerr=ends, fmt="o", markersize=6, capsize=4, color=look_of(place)["color"]
        )
        axes.annotate(
            f"{difference.mean:+.4f}",
            (difference.mean, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    rows = len(names) + len(found.references)
    axes.set(ylim=(rows - 0.45, -0.55), xlabel="bits per byte less those of sft; left of 0 is better")
    axes.margins(x=0.15)
    title = "Difference to sft, paired, 95 % interval"
    if not any(method.difference for method in found.methods):
        axes.text(0.5, 0.5, "no difference: sft stands alone or is missing", ha="center", transform=axes.transAxes)
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.tick_params(axis="y", length=0)
    plain(axes, grid="x")


def draw_curves(axes: Any, found: Comparison) -> None:
    """The development split while training: the mean of a method's seeds at each step all of them measured."""
    for place, method in enumerate(found.methods):
        curve = mean_curve([run for run in found.runs if run.method == method.name and run.status == "done"])
        if curve:
            steps, bits = zip(*sorted(curve.items()), strict=True)
            axes.plot(steps, bits, marker="o", markersize=3.5, linewidth=1.8, label=method.name, **look_of(place))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="bits per byte")
    axes.set_title("Development split while training, mean of the seeds", loc="left", fontsize=10.5)
    axes.legend(frameon=False, fontsize=8.5, ncols=1 + len(found.methods) // 5)
    plain(axes, grid="both")


def mean_curve(runs: Sequence[RunResult]) -> Mapping[int, float]:
    """step -> mean over the runs, where all of them have a value."""
    curves = [dict(run.curve) for run in runs]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {step: statistics.fmean(curve[step] for curve in curves) for step in shared}


def plain(axes: Any, *, grid: str) -> None:
    """No frame, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, alpha=0.25)
    axes.set_axisbelow(True)
