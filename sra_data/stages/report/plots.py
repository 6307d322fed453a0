"""The charts of a report: which there are, and what each draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from sra_data.pages.chart import COLOUR, Chart, logarithmic, percent, short_bytes, steps
from sra_data.stages.align.counts import LARGEST_SHOWN
from sra_data.stages.report.facts import AlignmentFacts, PagesFacts, ReportFacts, SideFacts
from sra_data.stages.report.sample import SHARES, TAIL_EDGES, PagesSample

COLOURS = ("one", "two", "three")
NUM_BINS = 40
ROOM_FOR_A_NAME = 0.14  # of a chart's height
LONG_TAIL = 6.0  # the longest example over the median: beyond it lengths are shown on a logarithmic scale
MEASURES = {
    "relative_error": "states",
    "relative_error_non_outlier": "non-outlier states",
    "kl": "KL",
    "next_log_prob_difference": "log-probability",
    "cosine_of_centres": "cosine of centres",
}


Titled = TypeVar("Titled", AlignmentFacts, PagesFacts)


@dataclass(frozen=True)
class Place:
    """A section of the page: its id, and which of several alignments or teachers it is about ("" for the only one)."""

    section: str
    title: str


def charts_of(facts: ReportFacts) -> list[Chart]:
    """Every chart there are numbers for, in the order of the page."""
    charts = list(_side_charts(facts.sides))
    for place, alignment in facts_by_place("alignment", facts.alignments):
        charts += _placed(_alignment_charts(alignment), place)
    for place, pages in facts_by_place("pages", facts.pages):
        charts += _placed(_pages_charts(pages), place)
    return charts


def facts_by_place(kind: str, shown: Sequence[Titled]) -> Iterator[tuple[Place, Titled]]:
    """Each with its place on the page; only one of several needs a name of its own."""
    for number, one in enumerate(shown, 1):
        section = kind if number == 1 else f"{kind}-{number}"
        yield Place(section, one.title if len(shown) > 1 else ""), one


def _placed(charts: Iterable[Chart], place: Place) -> Iterator[Chart]:
    for chart in charts:
        name = f"{chart.name}-{place.title}" if place.title else chart.name
        yield replace(chart, name=name, section=place.section)


# --------------------------------------------------------------------------- sides


def _side_charts(sides: Sequence[SideFacts]) -> Iterator[Chart]:
    """Of all sides; a chart holds as many as there are colours."""
    yield from _lengths(
        "side_lengths",
        "Length of the examples",
        "Prompt and response together, as each tokenizer cuts them. Examples that were skipped are left out.",
        "tokens of an example",
        [(side.name, side.lengths) for side in sides],
    )
    yield from _lengths(
        "side_positions",
        "Positions to cache",
        "The teacher's tokens of the responses, and the one before each: what its pages hold a row for.",
        "positions of an example",
        [(side.name, side.positions) for side in sides if side.teaches or not any(one.teaches for one in sides)],
    )


def _lengths(
    name: str, title: str, caption: str, unit: str, series: list[tuple[str, NDArray[np.int32]]]
) -> Iterator[Chart]:
    """A histogram for each side that has examples, in as many charts as the colours ask for."""
    series = [(side, lengths) for side, lengths in series if len(lengths)]
    if not series:
        return
    edges, is_log = length_edges(np.concatenate([lengths for _, lengths in series]))

    def draw(axes: Axes, shown: Sequence[tuple[str, NDArray[np.int32]]]) -> None:
        counts = [np.histogram(lengths, edges)[0] for _, lengths in shown]
        for (side, lengths), found, colour in zip(shown, counts, COLOURS, strict=False):
            steps(axes, edges, found, colour, f"{side}, median {np.median(lengths):,.0f}")
        if is_log:
            logarithmic(axes)
        room = 1.05 + ROOM_FOR_A_NAME * len(shown)  # names of sides are long: they stand above the steps
        axes.set(xlabel=unit, ylabel="examples", ylim=(0, room * max(found.max() for found in counts)))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left")

    for number, first in enumerate(range(0, len(series), len(COLOURS)), 1):
        shown = series[first : first + len(COLOURS)]
        yield Chart(f"{name}-{number}" if first else name, "sides", title, caption, partial(draw, shown=shown))


def length_edges(lengths: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Borders of a histogram of lengths, and whether they are evenly spaced in the logarithm."""
    low, high = max(int(lengths.min()), 1), int(lengths.max()) + 1
    if high > LONG_TAIL * float(np.median(lengths)) and high > 2 * low:
        return np.unique(np.round(np.geomspace(low, high, NUM_BINS + 1))), True
    width = max(1, -(-(high - low) // NUM_BINS))
    return np.arange(low, high + width, width), False


# --------------------------------------------------------------------------- alignment


def _alignment_charts(alignment: AlignmentFacts) -> Iterator[Chart]:
    if alignment.counts.spans:
        yield Chart(
            "alignment_sizes",
            "alignment",
            "Tokens that make a span",
            "Share of all spans by the student's tokens (down) and the teacher's (across). 1:1 is a token both "
            "tokenizers cut the same way.",
            lambda axes: _sizes(axes, alignment.sizes),
            height=3.7,
        )
        yield Chart(
            "alignment_density",
            "alignment",
            "Spans per response token",
            "One value an example. At 1 every token is a span of its own; lower means longer common chunks.",
            lambda axes: _density(axes, alignment),
            height=3.7,
        )


def _sizes(axes: Axes, sizes: dict[str, int]) -> None:
    names = [str(count) for count in range(1, LARGEST_SHOWN)] + [f"{LARGEST_SHOWN}+"]
    total = sum(sizes.values())
    largest = max(sizes.values()) / total
    for down, student in enumerate(names):
        for across, teacher in enumerate(names):
            share = sizes.get(f"{student}:{teacher}", 0) / total
            # The square root keeps rare cells visible beside the 1:1 cell.
            shade = 0.9 * (share / largest) ** 0.5
            axes.add_patch(_square(across, down, shade))
            if share:
                colour = COLOUR["card"] if shade > 0.55 else COLOUR["ink"]
                axes.text(across, down, percent(share), ha="center", va="center", fontsize=9, color=colour)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="teacher's tokens", ylabel="student's tokens")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _square(across: int, down: int, shade: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(
        (across - 0.45, down - 0.45),
        0.9,
        0.9,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=COLOUR["one"] if shade else COLOUR["line"],
        alpha=max(shade, 0.04) if shade else 0.35,
        linewidth=0,
    )


def _density(axes: Axes, alignment: AlignmentFacts) -> None:
    both = (("teacher", alignment.spans_per_teacher_token), ("student", alignment.spans_per_student_token))
    edges = np.linspace(0, max(1.0, *(float(values.max(initial=0)) for _, values in both)), NUM_BINS + 1)
    for (name, values), colour in zip(both, ("one", "two"), strict=True):
        label = f"{name}, mean {values.mean():.2f}" if len(values) else name
        steps(axes, edges, np.histogram(values, edges)[0], colour, label)
    axes.set(xlabel="spans per response token", ylabel="examples", xlim=(0, edges[-1]), ylim=(0, None))
    axes.legend(loc="upper left")


# --------------------------------------------------------------------------- the teacher's pages


def _pages_charts(pages: PagesFacts) -> Iterator[Chart]:
    sample = pages.sample
    yield Chart(
        "cache_bytes",
        "pages",
        "What the bytes are",
        "On disk, compressed where the column is. Output head and embeddings are stored once.",
        lambda axes: _bytes(axes, pages.bytes_by_column),
        height=0.9 + 0.3 * len(pages.bytes_by_column),
    )
    if sample.tails:
        yield Chart(
            "tail_mass",
            "pages",
            f"Probability outside the top {pages.facts['top_k']}",
            f"Share of {pages.row}s whose left-out probability is at most that. It is stored exactly, as one outcome.",
            lambda axes: _tails(axes, sample, pages.row),
        )
    if sample.concentrated:
        yield Chart(
            "attention_by_place",
            "pages",
            "Attention mass of a span, by its place",
            "How much of its response's attention a span holds, times the number of spans; 1 is an even share.",
            lambda axes: _places(axes, sample),
        )
        yield Chart(
            "attention_concentration",
            "pages",
            "How few spans hold the mass",
            "Mean over examples. The dashed line is an even share.",
            lambda axes: _concentration(axes, sample),
        )
    if sample.losses:
        yield Chart(
            "teacher_loss",
            "pages",
            "The teacher's loss by example",
            "Mean over a response's tokens. A student cannot be expected to learn what its teacher finds improbable.",
            lambda axes: _losses(axes, sample),
        )
    if pages.facts.get("faithfulness", {}).get("cache"):
        yield Chart(
            "faithfulness",
            "pages",
            "Distance from the live teacher",
            "Smaller is closer. The cache should lie near the teacher's distance from itself in other batches, and far "
            "from what another example's rows would give.",
            lambda axes: _faithfulness(axes, pages.facts["faithfulness"]),
        )


def _bytes(axes: Axes, sizes: dict[str, int]) -> None:
    ordered = sorted(sizes.items(), key=lambda item: item[1])
    total = max(sum(sizes.values()), 1)
    axes.barh([name for name, _ in ordered], [size for _, size in ordered], color=COLOUR["one"], height=0.62)
    for row, (_, size) in enumerate(ordered):
        axes.annotate(
            f"{short_bytes(size)} · {percent(size / total)}",
            (size, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, 1.38 * max(size for _, size in ordered))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")


def _tails(axes: Axes, sample: PagesSample, row: str) -> None:
    for (temperature, counts), colour in zip(sorted(sample.tails.items()), COLOURS, strict=False):
        axes.plot(
            TAIL_EDGES[1:],
            np.cumsum(counts) / counts.sum(),
            color=COLOUR[colour],
            linewidth=2,
            label=f"temperature {temperature:g}",
        )
    logarithmic(axes)
    axes.set(xlabel="probability left out", ylabel=f"{row}s", xlim=(TAIL_EDGES[0], 1), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=True)
    axes.legend(loc="upper left")


def _places(axes: Axes, sample: PagesSample) -> None:
    mean = sample.salience / np.maximum(sample.placed, 1)
    edges = np.linspace(0, 1, len(mean) + 1)
    axes.bar(edges[:-1], mean, width=np.diff(edges) * 0.86, align="edge", color=COLOUR["one"])
    axes.axhline(1, color=COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="place in the response, first span to last", ylabel="times an even share", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _concentration(axes: Axes, sample: PagesSample) -> None:
    curve = sample.concentration / sample.concentrated
    axes.plot([0, 1], [0, 1], color=COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(SHARES, curve, color=COLOUR["one"], linewidth=2)
    half = float(np.interp(0.5, curve, SHARES))
    axes.plot([half], [0.5], "o", color=COLOUR["one"], markersize=6)
    axes.annotate(
        f"half of it in {half:.0%} of the spans",
        (half, 0.5),
        (10, -4),
        textcoords="offset points",
        va="top",
        bbox={"facecolor": COLOUR["card"], "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
    axes.set(xlabel="spans, heaviest first", ylabel="attention mass", xlim=(0, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=True)


def _losses(axes: Axes, sample: PagesSample) -> None:
    by_split: dict[str, list[float]] = {}
    for split, loss in sample.losses.values():
        by_split.setdefault(split, []).append(loss)
    longest = max(loss for losses in by_split.values() for loss in losses)
    edges = np.linspace(0, longest * 1.02 or 1.0, NUM_BINS + 1)
    for split, colour in (("train", "one"), ("dev", "two")):
        if split in by_split:
            label = f"{split}, mean {np.mean(by_split[split]):.2f}"
            steps(axes, edges, np.histogram(by_split[split], edges)[0], colour, label)
    axes.set(xlabel="nats per token", ylabel="examples", ylim=(0, None), xlim=(0, edges[-1]))
    axes.legend()


def _faithfulness(axes: Axes, found: dict[str, Any]) -> None:
    names = [name for name in found["cache"] if name != "cosine_of_centres"][::-1]
    kinds = (("control", "three", "teacher again"), ("cache", "one", "cache"), ("shuffled", "two", "other example"))
    for kind, colour, label in kinds:
        values = [max(found[kind].get(name, np.nan), 1e-12) for name in names]
        axes.plot(values, range(len(names)), "o", color=COLOUR[colour], markersize=8, label=label)
    logarithmic(axes)
    axes.set_yticks(range(len(names)), [MEASURES.get(name, name.replace("_", " ")) for name in names])
    axes.set(ylim=(-0.6, len(names) - 0.4), xlabel="distance (KL and log-probability in nats)")
    axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, handletextpad=0.1, columnspacing=1)
