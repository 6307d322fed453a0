"""`python -m tests.bad_inputs.run`: every bad input, one after the other; exit code 1 if one is not as it should be.

--only PATTERN   those whose names fit          --every N   every N-th of them
--show           say what each was answered     --world F   make the world in this folder, or use the one there
--forged N       shards with forged metadata to train on as well
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bad_inputs.case import Case
    from tests.crash.world import World

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}


def main() -> int:
    """Carry it out; 0 if all are refused as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--forged", type=int, default=200)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--world", default=None)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bad-", ignore_cleanup_errors=True) as name:
        root = Path(wanted.world or name)
        is_made = (root / "whole" / "run").is_dir()
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        # Before anything that reads it is imported: what a library keeps in a home is seen like the rest.
        os.environ.update(ENVIRONMENT, CUDA_VISIBLE_DEVICES="", HOME=str(root / "home"), HF_HOME=str(root / "home/hf"))
        (root / "home").mkdir(exist_ok=True)
        from tests.bad_inputs.forged import train_on_forged
        from tests.bad_inputs.meeting import keep
        from tests.bad_inputs.table import all_cases, import_everything
        from tests.crash.world import World, make_world

        import_everything()
        world = World(root) if is_made else make_world(root)
        if not is_made:
            keep(world)
        cases = [case for case in all_cases() if fnmatch(case.name, wanted.only)][:: wanted.every]
        counts = meet_all(cases, world, shows=wanted.show)
        forged = train_on_forged(world, wanted.forged, seed=0)
    for line in forged.violations:
        print(f"VIOLATION {line}")
    print(f"forged shards {wanted.forged}: {forged.counts['refused']} refused, {forged.counts['trained']} trained on")
    if counts["waiting"]:
        print(f"{counts['waiting']} more wait for others' work")
    print(f"bad inputs {counts['met']}, one line each {counts['one line']}, nothing left {counts['nothing left']}")
    return 0 if not forged.violations and counts["met"] == counts["one line"] == counts["nothing left"] else 1


def meet_all(cases: Sequence[Case], world: World, *, shows: bool) -> Counter[str]:
    """Meet each; counts those met, with one line, with nothing left, and those that wait for others' work."""
    from tests.bad_inputs.meeting import meet

    counts: Counter[str] = Counter()
    for case in cases:
        met = meet(case, world)
        if shows:
            print(f"{case.name}\n    {met.ended.said.strip()}", flush=True)
        open_work = f" (waits for: {case.owned_by})" if case.owned_by else ""
        for line in (*met.answer, *met.left):
            print(f"VIOLATION{open_work} {case.name}: {line}", flush=True)
        if case.owned_by and (met.answer or met.left):
            counts["waiting"] += 1
            continue
        counts["met"] += 1
        counts["one line"] += not met.answer
        counts["nothing left"] += not met.left
    return counts


if __name__ == "__main__":
    sys.exit(main())
