"""Which texts of a corpus are cut into windows, and where: by the sides of the call that begins it, then for good.

The windows are rows of the corpus like any others: they make its units and the order of training, and no later call
changes them. Where they were cut lies in the corpus's plan, with the unit they belong to. So a second student, whose
tokenizer might have cut elsewhere, needs neither those of the first call nor any tokenizing to scan the data again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sra_data.corpus.windows import LARGEST_OVERLAP, Cuts, Reads, Windower
from sra_data.errors import ConfigError, ShardError
from sra_data.shards.store import Manifest, Plan, Unit
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.unit_windows import FACT, Windowing, windows_of

USUAL_OVERLAP = 64  # tokens
SHARE_OF_USUAL_OVERLAP = 8  # of the shortest maximum length, where that is less


def windowing(options: AlignOptions, sides: Sequence[Reads], shards: Path) -> Windowing | None:
    """How this call cuts long texts; None where it does not.

    Raises:
        ConfigError: An overlap that leaves too little.
        ShardError: The folder's corpus was begun otherwise.
    """
    overlap = _overlap(options, sides)
    asked = options.overlong == "window"
    section = Manifest.load(shards).section("corpus") if Manifest.exists(shards) else None
    if section is None:
        return Windowing(Windower(sides, overlap), overlap) if asked else None
    there = section.get(FACT)
    if there is None:
        if asked:
            raise ShardError(
                f"{shards}: its corpus was begun without --overlong window, and its rows are the same for all sides; "
                "choose another folder with --out or delete this one"
            )
        return None
    if options.window_overlap not in (None, there["overlap"]):
        raise ShardError(
            f"{shards}: its windows overlap by {there['overlap']} tokens, --window-overlap {overlap} would be others; "
            "leave it out, or choose another folder with --out"
        )
    known = _cuts_of_all(Plan.load(shards / "corpus").units)
    if there["texts"] and not known:  # a plan that was made again from a neighbour's
        if not asked:
            raise ShardError(
                f"{shards}: the plan of its corpus has lost the places of its windows; run the `sra-data align` it was "
                "begun with, then this one"
            )
        return Windowing(Windower(sides, there["overlap"]), there["overlap"])
    return Windowing(lambda row: known.get(row.id), there["overlap"])


def _cuts_of_all(units: Sequence[Unit]) -> dict[str, Cuts]:
    """The windows of every row; those of one may lie in several units."""
    known: dict[str, Cuts] = {}
    for unit in units:
        for row_id, cuts in windows_of(unit):
            before = known.get(row_id)
            known[row_id] = cuts if before is None else replace(before, windows=before.windows + cuts.windows)
    return known


def _overlap(options: AlignOptions, sides: Sequence[Reads]) -> int:
    lengths = [side.max_length for side in sides if side.max_length is not None]
    if options.window_overlap is None:
        return min([USUAL_OVERLAP, *(length // SHARE_OF_USUAL_OVERLAP for length in lengths)])
    if lengths and options.window_overlap > min(lengths) // LARGEST_OVERLAP:
        raise ConfigError(
            f"--window-overlap {options.window_overlap}: more than a quarter of the shortest maximum length "
            f"({min(lengths)} tokens); give less"
        )
    return options.window_overlap
