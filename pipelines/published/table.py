"""The table a pair ends with: teacher, SFT and SRA on every set, beside what the paper reports for the pair.

    python pipelines/published/table.py PAIR runs/published/PAIR/evaluation

Reads what `sra-train evaluate TEACHER SFT SRA --rouge --json` said, a file a set; needs nothing but Python.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

PAIRS = Path(__file__).resolve().parent / "pairs.txt"
COLUMNS = ("teacher", "SFT", "SRA", "SRA, paper", "DSKD, paper")
WIDTHS = (30, 14, 14, 14, 10, 11)


def main() -> None:
    """Print it."""
    pair, folder = sys.argv[1], Path(sys.argv[2])
    sets = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if not sets:
        sys.exit(f"{folder}: no evaluation there; run pipelines/published/run.sh {pair}")
    print("\n".join(table(pair, sets)))


def reported(pair: str) -> tuple[str, str]:
    """Mean Rouge-L of SRA and DSKD in the paper, as pairs.txt has them."""
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and words[0] == pair:
            return words[-2], words[-1]
    sys.exit(f"{pair}: no such pair in {PAIRS}")


def table(pair: str, sets: dict[str, dict[str, Any]]) -> list[str]:
    """Its lines.

    Args:
        pair: As in pairs.txt.
        sets: Of each set, what `evaluate` said of teacher, SFT and SRA, in this order.
    """
    nothing = ("", "")
    rows, per_set = [("", *COLUMNS)], []
    for name, said in sets.items():
        scores = [model["rouge_l"]["per_seed"] for model in said["models"]]
        rows.append((f"Rouge-L {name} ({said['num_examples']:,})", *map(in_words, scores), *nothing))
        per_set.append(scores)
    # Seed by seed the mean over the sets, so that the deviation is that of the mean.
    by_model = list(zip(*per_set, strict=True))  # [3] models, then sets, then seeds
    means = [[statistics.fmean(of_seed) for of_seed in zip(*of_sets, strict=True)] for of_sets in by_model]
    rows.append(("Rouge-L, mean of the sets", *map(in_words, means), *reported(pair)))
    for name, said in sets.items():
        rows.append((f"bits per byte {name}", *(f"{model['bits_per_byte']:.4f}" for model in said["models"]), *nothing))
    return [
        pair,
        *map(in_columns, rows),
        f"Rouge-L F x 100 over {len(means[0])} seeds, mean ± deviation: more is better. Bits per byte: less is better.",
        "The paper's means are over Dolly, SelfInst, Vicuna, S-NI and DialogSum; over other sets they say little.",
    ]


def in_columns(row: tuple[str, ...]) -> str:
    """One line: what it is on the left, numbers under each other on the right."""
    first, *numbers = row
    cells = [cell.rjust(width) for cell, width in zip(numbers, WIDTHS[1:], strict=True)]
    return "  ".join([first.ljust(WIDTHS[0]), *cells]).rstrip()


def in_words(scores: list[float]) -> str:
    """Mean and deviation; a single seed has none."""
    mean = f"{statistics.fmean(scores):.2f}"
    return f"{mean} ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else mean


if __name__ == "__main__":
    main()
