"""Shards with a document that nobody wrote, under seals that fit: what `sra-train run` makes of them.

The changes are those of `make crash` (`tests/crash/malformed.py`), which reads and verifies them; here a student is
trained on them. Some change nothing that training reads: then it trains. What is refused is one line; a traceback, or
anything left that a run does not leave, is a violation.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bad_inputs.case import RUN, Case
from tests.bad_inputs.meeting import meet
from tests.bad_inputs.shards import TRAINED
from tests.crash.world import World

ONE_STEP = f"{RUN} shards --max-steps 1 --set evaluation.enabled=false"
KINDS = ("manifest.json", "*/plan.json", "*/*/plan.json", "*/*.receipt.json", "*/*/*.receipt.json", "*/*/*.safetensors")


@dataclass
class Forged:
    """How many were refused, and how many trained; what went wrong, a line each."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def train_on_forged(world: World, wanted: int, seed: int) -> Forged:
    """So many documents, each kind equally often."""
    found = Forged()
    for number in range(wanted):
        kind = KINDS[number % len(KINDS)]
        name = f"document {number} of seed {seed}, {kind}"
        met = meet(Case(name, ONE_STEP, (), partial(_forge, kind=kind, name=name), leaves=TRAINED), world)
        if met.ended.code == 0:
            found.counts["trained"] += 1
        else:
            found.counts["refused"] += 1
            found.violations += [f"{name}: {line}" for line in (*met.answer, *met.left)]
    return found


def _forge(place: Path, world: World, *, kind: str, name: str) -> None:
    """A copy of the shards with one document of a kind changed, and bound in where that can be."""
    from sra_data.errors import ShardError
    from tests.crash.malformed import bind, changed_bytes

    rng = random.Random(name)
    shards = place / "shards"
    shutil.copytree(world.shards, shards)
    path = rng.choice(sorted(shards.glob(kind)))
    content = None
    while content is None:
        content = changed_bytes(path, rng)
    path.write_bytes(content)
    with suppress(ShardError):
        bind(shards, path)
