"""The comparisons of one run of the pipeline as one page of Markdown, dated: RESULTS.md."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

COLUMNS = (
    "method",
    "seeds",
    "rate",
    "bits per byte",
    "at its best temperature",
    "difference to sft, 95 %",
    "Rouge-L",
    "s a step",
    "teacher's tokens heard",
)


def write_results(output: Path, settings: list[str], *, seconds: float) -> None:
    """Write `output`/RESULTS.md from the comparisons' results.json.

    Args:
        output: Of the pipeline.
        settings: Folders below comparisons/.
        seconds: What this call took; less than the whole where it was resumed.
    """
    found = {name: json.loads((output / "comparisons" / name / "results.json").read_text("utf-8")) for name in settings}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Results",
        "",
        f"{datetime.date.today().isoformat()}, {platform.machine()}, {versions}; {seconds / 60:.0f} minutes.",
        "Bits per byte on the test split, mean and standard deviation over the seeds; lower is better. The difference",
        "is paired with plain fine-tuning of the same seed on the same examples; its interval is a hierarchical",
        "bootstrap over seeds and examples. Rates were chosen on the development split from one grid for all.",
        *(line for name in settings for line in section(name, found[name])),
        "",
        "## In one look",
        "",
        *overview(found),
    ]
    (output / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def section(name: str, found: dict[str, Any]) -> list[str]:
    """One setting: its table, best first, with what a reader must know before it."""
    rows = sorted(found["methods"], key=lambda row: row["bits_per_byte"])
    lines = ["", f"## {name}", "", *(f"> {note}" for note in found["notes"]), "", *head(COLUMNS)]
    lines += [row_of(row) for row in rows]
    for one in found["references"]:
        cells = [f"*{one['name']}*", "", "", f"{one['bits_per_byte']:.4f}", f"{one['tempered']:.4f}", "", rouge(one)]
        lines.append("| " + " | ".join([*cells, "", ""]) + " |")
    return lines


def row_of(row: dict[str, Any]) -> str:
    """One method."""
    seeds = f"{row['num_seeds']}" + (f" (+{row['num_diverged']} diverged)" if row["num_diverged"] else "")
    difference = row["difference"]
    cells = [
        row["name"],
        seeds,
        f"{row['rate']:g}",
        f"{row['bits_per_byte']:.4f}" + (f" ± {row['deviation']:.4f}" if row["num_seeds"] > 1 else ""),
        f"{row['tempered']:.4f}",
        "" if difference is None else interval(difference),
        rouge(row),
        "" if row["seconds_per_step"] is None else f"{row['seconds_per_step']:.2f}",
        "" if row["covered"] is None else f"{row['covered']:.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def rouge(row: dict[str, Any]) -> str:
    """Empty where nothing was generated."""
    return "" if row["rouge_l"] is None else f"{row['rouge_l']:.1f}"


def interval(difference: dict[str, float]) -> str:
    """Bold where it lies on one side of 0."""
    text = f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return f"**{text}**" if difference["low"] > 0 or difference["high"] < 0 else text


def overview(found: dict[str, dict[str, Any]]) -> list[str]:
    """Difference to plain fine-tuning of every method in every setting."""
    names = list(dict.fromkeys(row["name"] for one in found.values() for row in one["methods"]))
    lines = head(("method", *found))
    for name in names:
        cells = []
        for one in found.values():
            row = next((row for row in one["methods"] if row["name"] == name), None)
            cells.append("" if row is None or row["difference"] is None else interval(row["difference"]))
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def head(columns: tuple[str, ...]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
