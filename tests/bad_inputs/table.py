"""All bad inputs, by kind."""

from __future__ import annotations

import importlib
from collections import Counter

from tests.bad_inputs.case import Case
from tests.crash import world

KINDS = (
    "align_options",
    "cache_options",
    "import_options",
    "run_options",
    "corpus",
    "models",
    "shards",
    "configs",
    "runs",
    "evaluate",
    "hub",
)
# Beside what the three commands import: what they do where a name is no file.
MODULES = (
    "sra_data.cli",
    "sra_train.cli",
    "datasets",
    "sra_train.measure.evaluation",
    "sra_data.teacher.admission",
    "pyarrow.parquet",
    "pyarrow.csv",
)


def all_cases() -> list[Case]:
    """The table, in order; no two cases of one name, none of one command line over the same files."""
    found = [case for kind in KINDS for case in importlib.import_module(f"tests.bad_inputs.{kind}").CASES]
    twice = [name for name, count in Counter(case.name for case in found).items() if count > 1]
    assert not twice, f"called alike: {twice}"
    return found


def import_everything() -> None:
    """What the commands would import by themselves; no thread is started by it."""
    world.import_everything()
    for name in MODULES:
        importlib.import_module(name)
