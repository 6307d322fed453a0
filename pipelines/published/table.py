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
WIDTHS = (28, 14, 14, 14, 12, 12)


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
    seeds = [[model["rouge_l"]["per_seed"] for model in said["models"]] for said in sets.values()]
    rows = [["", *COLUMNS]]
    for name, said, of_models in zip(sets, sets.values(), seeds, strict=True):
        cells = [mean_and_deviation(scores) for scores in of_models]
        rows.append([f"Rouge-L {name} ({said['num_examples']:,})", *cells, "", ""])
    # The deviation of the mean is that of each seed's mean over the sets.
    means = [[statistics.fmean(scores) for scores in zip(*of_model, strict=True)] for of_model in zip(*seeds, strict=True)]
    rows.append(["Rouge-L, mean of the sets", *map(mean_and_deviation, means), *reported(pair)])
    for name, said in sets.items():
        rows.append([f"bits per byte {name}", *(f"{model['bits_per_byte']:.4f}" for model in said["models"]), "", ""])
    num_seeds = len(means[0])
    return [
        pair,
        *("  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(zip(row, WIDTHS, strict=True))).rstrip() for row in rows),
        f"Rouge-L F x 100, mean ± deviation over {num_seeds} seed{'s' if num_seeds > 1 else ''}, higher is better; bits per byte, lower is better.",
        "The paper's means are over Dolly, SelfInst, Vicuna, S-NI and DialogSum; other sets do not compare with them.",
    ]


def mean_and_deviation(scores: list[float]) -> str:
    """In words; a single seed has no deviation."""
    mean = f"{statistics.fmean(scores):.2f}"
    return f"{mean} ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else mean


if __name__ == "__main__":
    main()
