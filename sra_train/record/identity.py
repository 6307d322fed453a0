"""Whose a run's folder and its checkpoints are: what makes a run the run it is, and what is another.

An identity is flat names and plain values: the seals of what is read, the configuration's, the starting weights of
the student, the length. Two that differ in nothing but the length, the second the longer, are a finished run and its
extension (`resuming.py`); all others are two runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sra_data.errors import TrainingError
from sra_train.config import differences

TOTAL = "total_steps"
LENGTH = frozenset({TOTAL, "training.epochs", "training.max_steps"})
WEIGHTS = "student.weights"


def refuse_another(known: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str, other: str) -> bool:
    """Make sure that a record is this run's; whether it is that of a shorter one.

    Args:
        known: The record's identity.
        wanted: This run's.
        what: Whose record it is, the beginning of the line.
        other: The last words of the line.

    Raises:
        TrainingError: If anything but the length differs, or the length is not larger.
    """
    changed = differences(known, wanted)
    if not changed:
        return False
    if is_longer(known, wanted):
        return True
    raise TrainingError(f"{what}: {'; '.join(changed)}; {remedy(known, wanted)} or {other}")


def is_longer(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether nothing differs but the length, and `wanted` has more steps."""
    if any(known.get(name) != wanted.get(name) for name in {*known, *wanted} - LENGTH):
        return False
    before, now = known.get(TOTAL), wanted.get(TOTAL)
    return isinstance(before, int) and isinstance(now, int) and before < now


def remedy(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What to do about a difference."""
    if known.get(WEIGHTS) == wanted.get(WEIGHTS):
        return "give the old values"
    if WEIGHTS not in known:  # by a build that did not record them
        return "finish it with the build that began it"
    return (
        "the student's starting weights are others: give the model it began with (a folder as it was; a Hub id with"
        " student.revision, its commit is in run.json)"
    )
